// What several receivers want leaves the origin once, however many they are; and what losses add.

import { PAGE_BYTES } from '@snowfork/memserver';
import { describe, expect, test } from 'vitest';
import { limitMs, times } from '../support/soak.js';
import { LAYER } from './origin.js';
import { pagesFrom, World } from './world.js';

const MIB_PAGES = 256;
const JUMBO = 9000;

interface Crowd {
  readonly receivers: number;
  readonly pageCount: number;
  readonly mtuBytes: number;
  readonly loss?: number;
  /** Hosts come to the group within this time. */
  readonly joinMs?: number;
  /** And their clones start within this time after it. */
  readonly startMs?: number;
  /** Under way at a time; 0: all comes by prefetch. */
  readonly faults?: number;
}

/** Clones that do not start at the same instant, and all go through the same memory. */
function run(crowd: Crowd): World {
  const { receivers, pageCount, mtuBytes, loss = 0, startMs = 20, joinMs = 0, faults = 2 } = crowd;
  const world = new World({ seed: 1, pageCount, mtuBytes });
  for (let count = 0; count < receivers; count++) {
    const joinedMs = world.seeded.between(0, joinMs);
    world.clockwork.at(joinedMs, () => {
      const puller = world.addReceiver({ weather: { loss } });
      world.clockwork.at(joinedMs + world.seeded.between(0, startMs), () => {
        puller.pull({ pages: pagesFrom(0, pageCount), atOnce: faults });
        puller.receiver.prefetch(LAYER, 0, pageCount);
        world.poke(puller);
      });
    });
  }
  world.runFor(joinMs);
  world.runUntilAllHeld(600_000);
  return world;
}

/** What the origin sent, as a multiple of the pages' bytes. */
function share(world: World): number {
  return world.serverHost.bytesSent / (world.origin.pageCount * PAGE_BYTES);
}

describe('64 MiB that all receivers read', () => {
  const crowd = { pageCount: 64 * MIB_PAGES, mtuBytes: JUMBO, joinMs: 20 };
  const one = share(run({ ...crowd, receivers: 1 }));

  test.each([2, 8])('leave the origin once for %i of them', (receivers) => {
    expect(share(run({ ...crowd, receivers }))).toBeLessThan(one * 1.15);
  });
});

test('4 MiB in datagrams of 1,500 bytes leave the origin once for 16', () => {
  const crowd = { pageCount: 4 * MIB_PAGES, mtuBytes: 1500 };
  const one = share(run({ ...crowd, receivers: 1 }));
  expect(share(run({ ...crowd, receivers: 16 }))).toBeLessThan(one * 1.15);
});

test('hosts that come late share what is still to come, and then what they missed', () => {
  const crowd = { pageCount: 16 * MIB_PAGES, mtuBytes: JUMBO, joinMs: 100, faults: 0 };
  const world = run({ ...crowd, receivers: 16 });
  expect(share(world)).toBeLessThan(2);
  // Most ask for nothing, while what others have asked for comes.
  expect(world.server.counts.pagesAsked).toBeLessThan(crowd.pageCount * 4);
});

// One that loses a tenth lacks a tenth of the pieces, and of those again. Of several, each lacks
// another tenth: what few lack goes to each of them, what many are likely to lack to all.
test.each([
  [1, 1.25],
  [8, 1.9],
  [32, 3],
])(
  'with a tenth of all datagrams lost, %i receivers cost %d times the bytes at most',
  (receivers, most) => {
    const crowd = { receivers, pageCount: MIB_PAGES, mtuBytes: 1500, loss: 0.1 };
    expect(share(run(crowd))).toBeLessThan(most);
  },
);

test('what one of many has lost goes to it alone', () => {
  const world = new World({ seed: 2, pageCount: 4 * MIB_PAGES, mtuBytes: 1500 });
  const unlucky = world.addReceiver({ weather: { loss: 0.1 } });
  const others = pagesFrom(0, 7).map(() => world.addReceiver());
  for (const puller of world.pullers) {
    puller.receiver.prefetch(LAYER, 0, 4 * MIB_PAGES);
    world.poke(puller);
  }
  world.runUntilAllHeld(10_000);
  expect(world.server.counts.pagesEndGame).toBeGreaterThan(MIB_PAGES / 2);
  const { received } = unlucky.receiver.counts;
  for (const { receiver } of others) {
    expect(receiver.counts.duplicatePieces).toBeLessThan(received.unicast.datagrams / 4);
  }
});

test('what hosts that come late have missed goes to all of them at once', () => {
  const pageCount = 4 * MIB_PAGES;
  const world = new World({ seed: 4, pageCount, mtuBytes: 1500 });
  const come = (count: number): void => {
    for (const puller of pagesFrom(0, count).map(() => world.addReceiver())) {
      puller.receiver.prefetch(LAYER, 0, pageCount);
      world.poke(puller);
    }
    world.runUntilAllHeld(10_000);
  };
  come(2);
  come(4);
  expect(share(world)).toBeLessThan(2.5);
});

test('the more receivers there are, the more rarely each of them reports', () => {
  const world = new World({ seed: 3, pageCount: MIB_PAGES });
  const pullers = pagesFrom(0, 256).map(() => world.addReceiver());
  for (const puller of pullers) world.poke(puller);
  for (const page of pagesFrom(0, 100)) {
    world.clockwork.at(page * 10, () => {
      pullers[0]!.pull({ pages: [page], atOnce: 1 });
      world.poke(pullers[0]!);
    });
  }
  world.runFor(500);
  const { reports } = world.server.counts;
  world.runFor(400);
  // 3,200 a second.
  expect(world.server.counts.reports - reports).toBeLessThan(3200 * 0.4 * 1.3);
});

const thousands = times(1000, 10_000);
const manyHosts = { receivers: thousands, pageCount: MIB_PAGES / 4, mtuBytes: JUMBO, startMs: 5 };

test(
  `256 KiB that ${thousands} hosts fault on leave the origin once`,
  () => {
    expect(share(run(manyHosts))).toBeLessThan(1.15);
  },
  limitMs(120_000),
);

test(
  `of ${thousands} hosts that prefetch the same, a few ask, and all hear the answers`,
  () => {
    const world = run({ ...manyHosts, faults: 0 });
    expect(share(world)).toBeLessThan(1.15);
    expect(world.server.counts.requests).toBeLessThan(thousands);
  },
  limitMs(120_000),
);
