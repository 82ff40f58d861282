// Snapshots that share layers and get them from different hosts: whoever waits for a page gets it from
// a host of its own snapshot, or is told why not, whatever becomes of the other snapshots. By
// loopback: needs no root.

import { randomBytes } from 'node:crypto';
import dgram from 'node:dgram';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import {
  CHANNEL,
  DATAGRAM,
  newSenderId,
  PAGE_BYTES,
  PAGE_KIND,
  PageNetwork,
  PageService,
  Sealer,
  snapshotKey,
  writePages,
} from '@snowfork/memserver';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { ServedObject } from '../../packages/clone-agent/src/pager/served-object.js';
import { LOOPBACK, originAt, RunFolder } from '../support/run-folder.js';

const PAGES = 64;
const LINK_BYTES_PER_SECOND = 125_000_000;
/** Of a host that does not answer. */
const SOON_MS = 1000;
const layer = randomBytes(PAGES * PAGE_BYTES);
const [key1, key2] = [randomBytes(32), randomBytes(32)];

let run: RunFolder;
let silent: dgram.Socket;
let service: PageService;

beforeEach(async () => {
  run = new RunFolder({ pageCount: PAGES });
  silent = dgram.createSocket('udp4').bind(0, LOOPBACK);
  await once(silent, 'listening');
  service = await PageService.open({
    address: LOOPBACK,
    port: 0,
    linkBytesPerSecond: LINK_BYTES_PER_SECOND,
    complain: () => undefined,
  });
  const file = path.join(run.path, 'origin');
  fs.writeFileSync(file, layer);
  service.serve({ snapshot: 's2', key: key2, layers: [{ path: file }] });
});
afterEach(async () => {
  run.close();
  silent.close();
  await service.close();
});

/** Of a host that has the layer, and does not answer. */
function fromSilent() {
  const { port } = silent.address();
  return originAt(port, { key: key1.toString('base64'), host: 'silent' });
}

/** Of one that does. */
function fromService() {
  const key = key2.toString('base64');
  return originAt(service.port, { key, host: 'answers', snapshot: 's2' });
}

function pageOf(object: ServedObject, page: number): Buffer {
  const bytes = Buffer.alloc(PAGE_BYTES);
  expect(object.paged.readInto(bytes, page, 1)).toBe(true);
  return bytes;
}

function rightPage(page: number): Buffer {
  return layer.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
}

/** Resolves when the page is here, or is said not to come. */
function fetchOne(object: ServedObject, page: number): Promise<Error | undefined> {
  return new Promise((resolve) => {
    const { nodeid } = object.shared;
    expect(run.remote.fetchOne(nodeid, page, false, { settled: resolve })).toBe(true);
  });
}

test('a page that one snapshot waits for in vain comes for another from its own host', async () => {
  const first = run.add('s1', { origins: [fromSilent()] });
  const second = run.add('s2', { origins: [fromService()] });
  const waits = fetchOne(first, 3);
  await run.remote.fetch(second.shared.nodeid, 3, 1);
  expect(pageOf(second, 3)).toEqual(rightPage(3));
  // The layer is the same.
  expect(await waits).toBeUndefined();
});

test('what waits for a page when its snapshot goes is told, and others get the page', async () => {
  const first = run.add('s1', { origins: [fromSilent()] });
  const second = run.add('s2', { origins: [fromService()] });
  const waits = fetchOne(first, 5);
  const alsoWaits = fetchOne(second, 7);
  run.drop('s1');
  expect((await waits)?.message).toMatch('nobody needs it any more');
  await run.remote.fetch(second.shared.nodeid, 5, 1);
  expect(await alsoWaits).toBeUndefined();
  expect(pageOf(second, 5)).toEqual(rightPage(5));
});

test('a page that a host has lost is lost for those alone who asked that host', async () => {
  run.close();
  run = new RunFolder({ pageCount: PAGES, originTimeoutMs: SOON_MS });
  const first = run.add('s1', { origins: [fromSilent()] });
  const gone = originAt(silent.address().port, {
    key: randomBytes(32).toString('base64'),
    host: 'gone',
  });
  const second = run.add('s2', { origins: [gone] });
  const waits = fetchOne(first, 3);
  await new Promise((resolve) => setTimeout(resolve, SOON_MS / 2));
  const startedAt = performance.now();
  const [error, other] = await Promise.all([waits, fetchOne(second, 3)]);
  expect(error?.message).toMatch('host silent, which has the page of s1, does not answer');
  expect(other?.message).toMatch('host gone');
  expect(performance.now() - startedAt).toBeGreaterThanOrEqual(SOON_MS * 0.9);
});

test('a page that is not here, and that no host is known to have, is lost', async () => {
  const object = run.add('s1', { origins: [] });
  const { nodeid } = object.shared;
  expect(run.remote.fetchOne(nodeid, 3, false, { settled: () => undefined })).toBe(false);
  await expect(run.remote.fetch(nodeid, 3, 1)).rejects.toThrow('no host has the page of s1');
  run.drop('s1');
  await expect(run.remote.fetch(nodeid, 3, 1)).rejects.toThrow('not open here');
});

test('what is to need no other host stays, also with another pager and for another snapshot', async () => {
  const origins = [fromService()];
  run.add('s2', { origins });
  const { nodeid } = run.rams.get('s2')!.shared;
  while (run.remote.bringAll(nodeid) > 0) await run.remote.fetch(nodeid, 0, PAGES);
  run.drop('s2');
  const again = run.add('s3', { origins });
  expect(again.paged.layers[0]?.held?.isPinned).toBe(true);
});

test('a snapshot that was opened first, and knew fewer layers, keeps no page from a later one', async () => {
  const file = path.join(run.path, 'origin');
  service.serve({ snapshot: 's2', key: key2, layers: [{ path: file }, { path: file }] });
  const first = run.add('s2', { origins: [fromService()] });
  await run.remote.fetch(first.shared.nodeid, 3, 1);
  const layers = ['l1', 'l2'];
  const later = run.add('s3', { origins: [{ ...fromService(), layers }], layers, entry: 2 });
  await run.remote.fetch(later.shared.nodeid, 4, 1);
  expect(pageOf(later, 4)).toEqual(rightPage(4));
});

test('what of an object only other hosts have is counted, page by page', async () => {
  const origins = [fromService()];
  const object = run.add('s2', { origins });
  const { nodeid } = object.shared;
  expect(run.remote.dependsOn(nodeid)).toEqual({ answers: PAGES });
  await run.remote.fetch(nodeid, 30, 5);
  const here = object.paged.layers[0]!.held!.countHeld(0, PAGES);
  expect(here).toBeGreaterThanOrEqual(5);
  expect(run.remote.dependsOn(nodeid)).toEqual({ answers: PAGES - here });
  const own = run.add('s3', { origins: [] });
  expect(run.remote.dependsOn(own.shared.nodeid)).toEqual({});
});

test('a page beyond the end of its layer, which a member names, changes nothing', async () => {
  const key = snapshotKey(key1);
  const member = new Sealer(key, newSenderId(randomBytes(8)));
  let sequence = 0;
  /** Zeros, whatever is asked for: of a page that there is, too. */
  silent.on('message', (_, from) => {
    for (const page of [1_000_000, 3]) {
      const head = { sequence: ++sequence, channel: CHANNEL.unicast, receiversLog2: 0, layer: 0 };
      const body = Buffer.alloc(64);
      const end = writePages(body, head, [{ page, count: 1, kind: PAGE_KIND.zero }]);
      silent.send(member.seal(DATAGRAM.pages, body.subarray(0, end)), from.port, from.address);
    }
  });
  const origin = fromSilent();
  const object = run.add('s1', { origins: [origin] });
  await run.remote.fetch(object.shared.nodeid, 3, 1);
  expect(pageOf(object, 3)).toEqual(Buffer.alloc(PAGE_BYTES));
  const wanted: [number, number][] = [[1_000_000, 2]];
  await run.remote.want({ key: origin.key, layer: 0, demand: wanted, prefetch: [] });
});

test('a network that could not be used is tried again', async () => {
  vi.spyOn(PageNetwork, 'open').mockRejectedValueOnce(new Error('no such address'));
  const object = run.add('s2', { origins: [fromService()] });
  const { nodeid } = object.shared;
  await expect(run.remote.fetch(nodeid, 3, 1)).rejects.toThrow('no such address');
  await run.remote.fetch(nodeid, 3, 1);
  expect(pageOf(object, 3)).toEqual(rightPage(3));
});
