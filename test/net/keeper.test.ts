// The memory server's process under its keeper: killed, taken over, moved to another port. By
// loopback: needs no root.

import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { type OriginSink, PAGE_BYTES, PageNetwork } from '@snowfork/memserver';
import pino from 'pino';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { MemoryServerKeeper } from '../../packages/clone-agent/src/memserver/keeper.js';
import { ProcessJournal } from '../../packages/clone-agent/src/store/processes.js';
import { eventually } from '../support/eventually.js';
import { isRunning } from '../support/processes.js';

const ADDRESS = '127.0.0.1';
const PAGES = 64;
const MAIN = fileURLToPath(import.meta.resolve('@snowfork/memserver/main'));
const key = randomBytes(32);
const layer = randomBytes(PAGES * PAGE_BYTES);
let folder: string;
let keepers: MemoryServerKeeper[];
let snapshot: { snapshot: string; key: Buffer; layers: { path: string }[] };

beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-keeper-'));
  keepers = [];
  const file = path.join(folder, 'layer');
  fs.writeFileSync(file, layer);
  snapshot = { snapshot: 's1', key, layers: [{ path: file }] };
});
afterEach(async () => {
  for (const keeper of keepers) await keeper.stop();
  fs.rmSync(folder, { recursive: true });
});

async function keep(port = 0): Promise<MemoryServerKeeper> {
  const keeper = await MemoryServerKeeper.open({
    runFolder: folder,
    log: pino({ level: 'silent' }),
    journal: new ProcessJournal(path.join(folder, 'processes')),
    address: ADDRESS,
    port,
  });
  keepers.push(keeper);
  return keeper;
}

/** Resolves with the pages that were demanded, once all of them are here. */
async function demand(network: PageNetwork, port: number, pages: number[]): Promise<Buffer[]> {
  const came = new Map<number, Buffer>();
  const sink: OriginSink = {
    onPage: (_, page, bytes, offset) => {
      came.set(page, Buffer.from(bytes.subarray(offset, offset + PAGE_BYTES)));
    },
    onZeroPage: (_, page) => came.set(page, Buffer.alloc(PAGE_BYTES)),
    onLost: (_, page, lost) => came.set(page, Buffer.from(lost)),
    isHeld: (_, page) => came.has(page),
  };
  const origin = { address: ADDRESS, port, key };
  const client = await network.connect(origin, { sink, lostAfterMs: 20_000 });
  for (const page of pages) client.demand(0, page);
  await eventually(() => expect(came.size).toBeGreaterThanOrEqual(pages.length));
  await client.close();
  return pages.map((page) => came.get(page)!);
}

function bytesOf(page: number): Buffer {
  return layer.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
}

async function withNetwork(run: (network: PageNetwork) => Promise<void>): Promise<void> {
  const network = await PageNetwork.open({ localAddress: ADDRESS, complain: () => undefined });
  try {
    await run(network);
  } finally {
    await network.close();
  }
}

test('a memory server that is killed is started again, with port and snapshots', async () => {
  const keeper = await keep();
  await keeper.serve(snapshot);
  await withNetwork(async (network) => {
    expect(await demand(network, keeper.port, [1, 2])).toEqual([bytesOf(1), bytesOf(2)]);
    for (let kills = 0; kills < 3; kills++) {
      process.kill(await keeper.pid(), 'SIGKILL');
      expect(await demand(network, keeper.port, [3, kills])).toEqual([bytesOf(3), bytesOf(kills)]);
    }
  });
  expect((await keeper.stats()).snapshots.s1?.pagesSent.data).toBe(2);
});

test('what was dropped is not served again', async () => {
  const keeper = await keep();
  await keeper.serve(snapshot);
  await keeper.serve({ ...snapshot, snapshot: 's2', key: randomBytes(32) });
  keeper.drop('s1');
  const pid = await keeper.pid();
  process.kill(pid, 'SIGKILL');
  await eventually(async () => expect(await keeper.pid()).not.toBe(pid));
  expect(await keeper.served()).toEqual([{ snapshot: 's2', layers: 1 }]);
});

test('a snapshot whose layers have gone does not keep the others from being served', async () => {
  const keeper = await keep();
  const gone = path.join(folder, 'gone');
  fs.writeFileSync(gone, layer);
  await keeper.serve({
    ...snapshot,
    snapshot: 's0',
    key: randomBytes(32),
    layers: [{ path: gone }],
  });
  await keeper.serve(snapshot);
  fs.rmSync(gone);
  const pid = await keeper.pid();
  process.kill(pid, 'SIGKILL');
  await eventually(async () => expect(await keeper.pid()).not.toBe(pid));
  expect(await keeper.served()).toEqual([{ snapshot: 's1', layers: 1 }]);
});

test('a layer that cannot be opened is refused with its name, and changes nothing', async () => {
  const keeper = await keep();
  await keeper.serve(snapshot);
  const broken = { ...snapshot, layers: [{ path: '/no/such/layer' }] };
  await expect(keeper.serve(broken)).rejects.toMatchObject({
    code: 'SF_INTERNAL',
    message: expect.stringContaining('/no/such/layer'),
  });
  await withNetwork(async (network) => {
    process.kill(await keeper.pid(), 'SIGKILL');
    expect(await demand(network, keeper.port, [5])).toEqual([bytesOf(5)]);
  });
});

/** As an agent started it that is no more. */
async function startOrphan(port: number): Promise<{ pid: number; ended: Promise<unknown> }> {
  const args = [MAIN, '--run', folder, '--address', ADDRESS, '--port', String(port)];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(child.stdout, 'data');
  return { pid: child.pid!, ended: once(child, 'exit') };
}

test('the memory server of an agent that died is taken over, with all that it serves', async () => {
  const orphan = await startOrphan(0);
  const keeper = await keep();
  expect(await keeper.pid()).toBe(orphan.pid);
  await keeper.serve(snapshot);
  const next = await keep(keeper.port);
  expect(await next.pid()).toBe(orphan.pid);
  expect(await next.served()).toEqual([{ snapshot: 's1', layers: 1 }]);
  await withNetwork(async (network) => {
    expect(await demand(network, next.port, [7])).toEqual([bytesOf(7)]);
  });
});

test('one at another port is ended, and another started', async () => {
  const orphan = await startOrphan(0);
  const first = await keep();
  const { port } = first;
  await first.stop();
  await orphan.ended;
  const other = await startOrphan(0);
  const keeper = await keep(port);
  await other.ended;
  expect(keeper.port).toBe(port);
  expect(isRunning(await keeper.pid())).toBe(true);
});

test('a port that somebody else has is an error that says so', async () => {
  const keeper = await keep();
  fs.rmSync(path.join(folder, 'memserver.sock'));
  await expect(keep(keeper.port)).rejects.toMatchObject({
    code: 'SF_INTERNAL',
    message: expect.stringContaining('EADDRINUSE'),
  });
});
