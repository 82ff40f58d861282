// What several receivers want leaves the origin once, however many they are; and what losses add.

import { PAGE_BYTES } from '@snowfork/memserver';
import { describe, expect, test } from 'vitest';
import { TIMEOUT_MS, times } from '../support/soak.js';
import { LAYER } from './origin.js';
import { pagesFrom, World } from './world.js';

const MIB_PAGES = 256;
const JUMBO = 9000;

interface Crowd {
  readonly receivers: number;
  readonly pageCount: number;
  readonly mtuBytes: number;
  readonly loss?: number;
  readonly startsWithinMs?: number;
}

/** Clones that do not start, and come to the group, at the same instant; all go through the same memory. */
function run(crowd: Crowd): World {
  const { receivers, pageCount, mtuBytes, loss = 0, startsWithinMs = 20 } = crowd;
  const world = new World({ seed: 1, pageCount, mtuBytes });
  for (let count = 0; count < receivers; count++) {
    world.clockwork.at(world.seeded.between(0, startsWithinMs), () => {
      const puller = world.addReceiver({ weather: { loss } });
      puller.pull({ pages: pagesFrom(0, pageCount), atOnce: 2 });
      puller.receiver.prefetch(LAYER, 0, pageCount);
      world.poke(puller);
    });
  }
  world.runFor(startsWithinMs);
  world.runUntilAllHeld(600_000);
  console.log(JSON.stringify(crowd), share(world), world.clockwork.nowMs, JSON.stringify(world.server.counts));
  return world;
}

/** What the origin sent, as a multiple of the pages' bytes. */
function share(world: World): number {
  return world.serverHost.bytesSent / (world.origin.pageCount * PAGE_BYTES);
}

describe('64 MiB that all receivers read', () => {
  const pageCount = 64 * MIB_PAGES;
  const one = share(run({ receivers: 1, pageCount, mtuBytes: JUMBO }));

  test.each([2, 8])('leave the origin once for %i of them', (receivers) => {
    const all = share(run({ receivers, pageCount, mtuBytes: JUMBO }));
    expect(all).toBeLessThan(one * 1.15);
  });
});

test('4 MiB in datagrams of 1,500 bytes leave the origin once for 16', () => {
  const crowd = { pageCount: 4 * MIB_PAGES, mtuBytes: 1500 };
  const one = share(run({ ...crowd, receivers: 1 }));
  expect(share(run({ ...crowd, receivers: 16 }))).toBeLessThan(one * 1.15);
});

test('receivers that start one after another share what is still to come', () => {
  const crowd = { pageCount: 4 * MIB_PAGES, mtuBytes: JUMBO, startsWithinMs: 200 };
  expect(share(run({ ...crowd, receivers: 16 }))).toBeLessThan(1.15);
});

// One that loses a tenth lacks a tenth of the pieces, and of those again. Of several, each lacks another
// tenth: what few lack goes to each of them, what many are likely to lack to all.
test.each([
  [1, 1.25],
  [8, 1.9],
  [32, 3],
])(
  'with a tenth of all datagrams lost, %i receivers cost %d times the bytes at most',
  (receivers, most) => {
    const crowd = { receivers, pageCount: 2 * MIB_PAGES, mtuBytes: 1500, loss: 0.1 };
    expect(share(run(crowd))).toBeLessThan(most);
  },
);

const thousands = times(1000, 10_000);
test(
  `${thousands} receivers get 256 KiB each, which leave the origin once`,
  () => {
    const crowd = { receivers: thousands, pageCount: MIB_PAGES / 4, mtuBytes: JUMBO };
    const world = run({ ...crowd, startsWithinMs: 5 });
    expect(share(world)).toBeLessThan(1.15);
    // A small part of them asks; the others hear the answers.
    expect(world.server.counts.requests).toBeLessThan(thousands * 8);
  },
  TIMEOUT_MS,
);
