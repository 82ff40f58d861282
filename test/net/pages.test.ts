// Pages from one process to others on real sockets: by the group, by unicast, from layers that are
// here in part.

import fs from 'node:fs';
import path from 'node:path';
import { HeldPages, noneDropped } from '@snowfork/memserver';
import { expect, test } from 'vitest';
import { whyNoNetHosts } from '../../packages/clone-agent/src/system/net-hosts.js';
import { BY_GROUP, BY_UNICAST, PageHosts } from '../support/page-hosts.js';

const PAGES = 2048;
const reason = whyNoNetHosts();

test.skipIf(reason)('what two hosts demand comes to both, right, and crosses once', async () => {
  await using hosts = await PageHosts.start({ pullers: 2, pageCount: PAGES });
  await hosts.untilByGroup();
  expect(await hosts.pull({ atOnce: 8 })).toEqual([hosts.right(), hosts.right()]);
  expect(await hosts.pullerStats(0)).toMatchObject({ delivery: BY_GROUP, complaints: [] });
  const { pagesSent, sent } = await hosts.serverStats();
  // Each asks for all; with luck for half, as the other's come too.
  expect(pagesSent.data).toBeLessThan(PAGES * 1.5);
  expect(sent.group.bytes).toBeGreaterThan(sent.unicast.bytes);
});

test.skipIf(reason)('what another thread asks for in its name comes to the receiver', async () => {
  for (const hasGroup of [true, false]) {
    await using hosts = await PageHosts.start({ pullers: 1, pageCount: PAGES, hasGroup });
    expect(await hosts.pull({ atOnce: 8, isByAsker: true })).toEqual([hosts.right()]);
    const { counts } = await hosts.pullerStats(0);
    expect(counts.requestsSent.datagrams).toBeGreaterThanOrEqual(PAGES);
    // It would have had to ask by itself for what the other had not.
    expect(counts.pagesRetried).toBeLessThan(PAGES / 2);
    const { dropped, now } = await hosts.serverStats();
    expect(dropped).toEqual(noneDropped());
    expect(now.receivers).toBe(1);
  }
});

test.skipIf(reason)('prefetch brings a whole layer', async () => {
  await using hosts = await PageHosts.start({ pullers: 1, pageCount: PAGES });
  expect(await hosts.pull({ atOnce: 0 })).toEqual([hosts.right()]);
  expect((await hosts.pullerStats(0)).counts.pages.demand).toBe(0);
});

test.skipIf(reason)('pages that pack go whole, in a fraction of the bytes', async () => {
  for (const hasGroup of [true, false]) {
    const options = { pullers: 1, pageCount: PAGES, hasGroup, noiseBytes: 1000 };
    await using hosts = await PageHosts.start(options);
    expect(await hosts.pull({ atOnce: 8 })).toEqual([hosts.right()]);
    const { sent, pagesSent } = await hosts.serverStats();
    expect(pagesSent.packed).toBe(pagesSent.data);
    expect(sent.group.bytes + sent.unicast.bytes).toBeLessThan(pagesSent.data * 1200);
  }
});

test.skipIf(reason)('an origin without a group sends by unicast', async () => {
  await using hosts = await PageHosts.start({ pullers: 1, pageCount: PAGES, hasGroup: false });
  expect(await hosts.pull({ atOnce: 8 })).toEqual([hosts.right()]);
  expect((await hosts.pullerStats(0)).delivery).toBe(BY_UNICAST);
  expect((await hosts.serverStats()).sent.group.bytes).toBe(0);
});

test.skipIf(reason)(
  'of a replica, the pages that are here go out, the others are absent',
  async () => {
    await using hosts = await PageHosts.start({ pullers: 1, pageCount: PAGES });
    const held = path.join(hosts.folder, 'layer.held');
    HeldPages.create(held, PAGES);
    const map = HeldPages.map(held);
    for (let page = 0; page < PAGES; page += 2) map.set(page);
    await hosts.serve([{ path: path.join(hosts.folder, 'layer'), held }]);
    const [pulled] = await hosts.pull({ atOnce: 8, firstPage: 0, count: 10 });
    expect(pulled?.held).toBe(5);
    expect(pulled?.lost).toEqual(
      Object.fromEntries([1, 3, 5, 7, 9].map((page) => [`0:${page}`, 'absent'])),
    );
    map.unmap();
  },
);

test.skipIf(reason)('what is served again is served from the new files', async () => {
  await using hosts = await PageHosts.start({ pullers: 1, pageCount: PAGES });
  await hosts.pull({ atOnce: 8, count: 100 });
  const other = path.join(hosts.folder, 'other');
  fs.copyFileSync(path.join(hosts.folder, 'layer'), other);
  fs.rmSync(path.join(hosts.folder, 'layer'));
  await hosts.serve([{ path: other }]);
  expect(await hosts.pull({ atOnce: 8 })).toEqual([hosts.right()]);
});

test.skipIf(reason)('what cannot be served is refused with the reason', async () => {
  await using hosts = await PageHosts.start({ pullers: 1, pageCount: PAGES });
  const layers = [{ path: path.join(hosts.folder, 'layer') }];
  const key = Buffer.alloc(32, 1).toString('base64');
  const serve = (args: object): Promise<unknown> =>
    hosts.server.execute('serve', { snapshot: 's2', key, layers, ...args });
  await expect(serve({ layers: [{ path: '/no/such/file' }] })).rejects.toThrow('/no/such/file');
  await expect(serve({ key: 'c2hvcnQ=' })).rejects.toThrow('a key has 32 bytes');
  await expect(serve({ snapshot: 's1' })).rejects.toThrow('another key or group');
  const sameKey = hosts.key.toString('base64');
  await expect(serve({ key: sameKey })).rejects.toThrow('the key of another snapshot');
  expect(await hosts.server.execute('served')).toEqual([{ snapshot: 's1', layers: 1 }]);
  expect(await hosts.server.execute('drop', { snapshot: 's1' })).toEqual({ isDropped: true });
  expect(await hosts.server.execute('served')).toEqual([]);
});
