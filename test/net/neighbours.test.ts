// A tree of neighbours, where multicast does not reach: what the host that has the pages sends does
// not grow with the number of those that fetch them, and a neighbour may die.

import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { whyNoNetHosts } from '../../packages/clone-agent/src/system/net-hosts.js';
import { eventually } from '../support/eventually.js';
import { NeighbourHosts } from '../support/neighbour-hosts.js';

const PAGES = 2048;
const LAYER_BYTES = PAGES * 4096;
/** As `Neighbours` places six hosts. */
const TREE = [0, 0, 1, 1, 2, 2];
const SIX = [1, 2, 3, 4, 5, 6];
/** Two copies, and headers, greetings and what is asked before it is known how pages come. */
const COPIES_MAX = 2.3;
/** After a neighbour was given up. */
const TRIED_AGAIN_MS = 2100;
/** A neighbour that is silent for a second is given up, also for a busy machine's sake. */
const TRIES = { retry: 2 };
const reason = whyNoNetHosts();

for (const [how, atOnce] of [
  ['by prefetch', 0],
  ['page by page', 4],
] as const) {
  test.skipIf(reason)(`six hosts fetch all ${how}: home sends two copies`, TRIES, async () => {
    await using hosts = await NeighbourHosts.start({ pageCount: PAGES, asks: TREE });
    await hosts.fetch(SIX, { atOnce });
    for (const host of SIX) expect(await hosts.hash(host), `host ${host}`).toBe(hosts.rightHash);
    const sent = hosts.net.hosts[0]!.counters().bytesSent;
    expect(sent / LAYER_BYTES).toBeLessThan(COPIES_MAX);
    expect((await hosts.received(3)).neighbour).toBe('beta');
    const { pagesSent, sent: by } = await hosts.served(hosts.of(1).server);
    expect(pagesSent).toMatchObject({ absent: 0 });
    expect(by.unicast.bytes).toBeGreaterThan(2 * LAYER_BYTES);
  });
}

test.skipIf(reason)('a host whose neighbour dies while pages come goes on', TRIES, async () => {
  await using hosts = await NeighbourHosts.start({ pageCount: PAGES, asks: [0, 1] });
  const fetched = hosts.fetch([2], { atOnce: 8, count: PAGES / 2 });
  await eventually(async () => {
    expect((await hosts.received(2)).pages.demand).toBeGreaterThan(PAGES / 8);
  });
  expect((await hosts.received(2)).neighbour).toBe('beta');
  const { server, fetcher } = hosts.of(1);
  await Promise.all([server.kill(), fetcher.kill()]);
  await fetched;
  // Also where that was over before.
  await hosts.fetch([2], { atOnce: 8 });
  expect(await hosts.hash(2)).toBe(hosts.rightHash);
  expect((await hosts.received(2)).neighbour).toBeUndefined();
});

test.skipIf(reason)('a neighbour that serves and fetches nothing is given up', async () => {
  await using hosts = await NeighbourHosts.start({ pageCount: PAGES, asks: [0, 1] });
  await hosts.of(1).fetcher.kill();
  await hosts.fetch([2], { atOnce: 8 });
  expect(await hosts.hash(2)).toBe(hosts.rightHash);
  expect((await hosts.received(2)).neighbour).toBeUndefined();
});

test.skipIf(reason)(
  'a neighbour that was given up is gone back to when it answers',
  TRIES,
  async () => {
    await using hosts = await NeighbourHosts.start({ pageCount: PAGES, asks: [0, 1] });
    await hosts.fetch([1], { atOnce: 8 });
    await hosts.fetch([2], { atOnce: 8, count: 8 });
    expect((await hosts.received(2)).neighbour).toBe('beta');
    const neighbour = hosts.of(1).server;
    process.kill(neighbour.child.pid!, 'SIGSTOP');
    let firstPage = 8;
    const fetchOne = () => hosts.fetch([2], { atOnce: 1, firstPage: firstPage++, count: 1 });
    await fetchOne();
    expect((await hosts.received(2)).neighbour).toBeUndefined();
    // Home is asked while it is tried, and nobody waits for it.
    await delay(TRIED_AGAIN_MS);
    await fetchOne();
    expect((await hosts.received(2)).neighbour).toBeUndefined();
    process.kill(neighbour.child.pid!, 'SIGCONT');
    await eventually(async () => {
      await fetchOne();
      expect((await hosts.received(2)).neighbour).toBe('beta');
    });
    const { pagesSent } = await hosts.served(neighbour);
    await hosts.fetch([2], { atOnce: 8 });
    expect(await hosts.hash(2)).toBe(hosts.rightHash);
    expect((await hosts.served(neighbour)).pagesSent.data).toBeGreaterThan(
      pagesSent.data + PAGES / 2,
    );
  },
);

test.skipIf(reason)('a neighbour that has let go of the snapshot says so', TRIES, async () => {
  await using hosts = await NeighbourHosts.start({ pageCount: PAGES, asks: [0, 1] });
  await hosts.fetch([2], { atOnce: 8, count: PAGES / 2 });
  expect((await hosts.received(2)).neighbour).toBe('beta');
  await hosts.letGo(1);
  await hosts.fetch([2], { atOnce: 8 });
  expect(await hosts.hash(2)).toBe(hosts.rightHash);
  const { pagesLost, neighbour } = await hosts.received(2);
  expect(neighbour).toBeUndefined();
  expect(pagesLost.absent).toBeGreaterThan(0);
});

test.skipIf(reason)('where multicast reaches, no neighbour is asked', async () => {
  const asks = [0, 1];
  const isMulticastBlocked = false;
  await using hosts = await NeighbourHosts.start({ pageCount: PAGES, asks, isMulticastBlocked });
  for (const host of [1, 2]) {
    await eventually(async () => {
      const { received, now } = await hosts.received(host);
      expect(received.group.datagrams).toBeGreaterThan(0);
      expect(now.delivery).toBe('group');
    });
  }
  await hosts.fetch([1, 2], { atOnce: 8 });
  expect(await hosts.hash(2)).toBe(hosts.rightHash);
  // But for what is asked for when a busy machine has been silent for long.
  const { pagesSent } = await hosts.served(hosts.of(1).server);
  expect(pagesSent.data).toBeLessThan(PAGES / 8);
});

test.skipIf(reason)('what a host has let go for newer pages it fetches again', TRIES, async () => {
  const replicaBytesMax = [LAYER_BYTES / 4, LAYER_BYTES];
  await using hosts = await NeighbourHosts.start({
    pageCount: PAGES,
    asks: [0, 1],
    replicaBytesMax,
  });
  await hosts.fetch([1], { atOnce: 8 });
  await hosts.fetch([2], { atOnce: 8 });
  expect(await hosts.hash(2)).toBe(hosts.rightHash);
  // Most of what it fetched for itself had gone.
  expect((await hosts.received(1)).pages.demand).toBeGreaterThan(PAGES * 1.5);
});
