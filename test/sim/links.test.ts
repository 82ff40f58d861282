// A server that takes its link for a hundred times what the path carries, as behind a bridge, in a
// cloud or where nobody knows: what receivers report decides how fast it sends.

import { expect, test } from 'vitest';
import { LAYER } from './origin.js';
import { GIGABIT, pagesFrom, World } from './world.js';

const PAGES = 16_384;
const PAGE_BYTES = 4096;
const PATH_BYTES_PER_SECOND = GIGABIT / 10;
const LOOK_MS = 50;
/** By then the first reports have come. */
const KNOWN_MS = 300;
const LIMIT_MS = 120_000;

/** Two hosts that fetch 64 MiB. */
function fetching(of: { linkBytesPerSecond: number; hasGroup: boolean }): World {
  const { linkBytesPerSecond, hasGroup } = of;
  const world = new World({ seed: 8, pageCount: PAGES, mtuBytes: 9000, linkBytesPerSecond });
  for (let count = 0; count < 2; count++) {
    const puller = world.addReceiver({ bytesPerSecond: PATH_BYTES_PER_SECOND, hasGroup });
    puller.receiver.prefetch(LAYER, 0, PAGES);
    world.poke(puller);
  }
  return world;
}

test('the group is paced by what its receivers report', () => {
  const world = fetching({ linkBytesPerSecond: GIGABIT * 10, hasGroup: true });
  const rates: number[] = [];
  while (!world.pullers.every(({ hasAll }) => hasAll)) {
    expect(world.clockwork.nowMs).toBeLessThan(LIMIT_MS);
    world.runFor(LOOK_MS);
    const { groupReceivers, groupBytesPerSecond } = world.server.counts.now;
    const isKnown = world.clockwork.nowMs >= KNOWN_MS && groupReceivers === 2;
    if (isKnown) rates.push(groupBytesPerSecond);
  }
  expect(rates.length).toBeGreaterThan(10);
  expect(Math.max(...rates)).toBeLessThan(PATH_BYTES_PER_SECOND * 2);
  expect(world.pullers.map(({ lost }) => lost.size)).toEqual([0, 0]);
});

test('all flows of a server together get no more than its link', () => {
  const linkBytesPerSecond = GIGABIT / 10;
  const world = new World({ seed: 9, pageCount: PAGES, linkBytesPerSecond });
  for (let count = 0; count < 4; count++) {
    const puller = world.addReceiver({ hasGroup: false });
    puller.receiver.prefetch(LAYER, 0, PAGES);
    world.poke(puller);
  }
  world.runFor(500);
  const { bytesSent } = world.serverHost;
  world.runFor(500);
  const bytes = world.serverHost.bytesSent - bytesSent;
  expect(bytes).toBeGreaterThan(linkBytesPerSecond * 0.4);
  expect(bytes).toBeLessThan(linkBytesPerSecond * 0.51);
});

test.each([
  ['demand', 64],
  ['prefetch', 0],
])('what is on its way to one host, over a slow link, is not sent again: %s', (_, atOnce) => {
  const pageCount = 1024;
  const world = new World({ seed: 5, pageCount });
  const puller = world.addReceiver({ hasGroup: false, bytesPerSecond: GIGABIT / 100 });
  if (atOnce === 0) puller.receiver.prefetch(LAYER, 0, pageCount);
  else puller.pull({ pages: pagesFrom(0, pageCount), atOnce });
  world.poke(puller);
  world.runUntilAllHeld(LIMIT_MS);
  const { pagesRetried, duplicatePieces } = puller.receiver.counts;
  // It asks again all the time, as it takes long.
  expect(pagesRetried).toBeGreaterThan(pageCount);
  expect(world.server.counts.pagesSuppressed).toBeGreaterThan(pageCount);
  expect(duplicatePieces).toBeLessThan(pageCount / 50);
});

test('so is each that is served by unicast', () => {
  const world = fetching({ linkBytesPerSecond: GIGABIT * 10, hasGroup: false });
  world.runUntilAllHeld(LIMIT_MS);
  const aloneMs = (PAGES * PAGE_BYTES * 1000) / PATH_BYTES_PER_SECOND;
  expect(Math.max(...world.pullers.map(({ lastMs }) => lastMs))).toBeLessThan(aloneMs * 1.5);
  expect(world.server.counts.sent.unicast.bytes).toBeLessThan(PAGES * PAGE_BYTES * 2 * 1.5);
  expect(world.pullers.map(({ lost }) => lost.size)).toEqual([0, 0]);
});
