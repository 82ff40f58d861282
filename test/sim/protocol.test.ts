// What the memory server's protocol promises, in the simulator: every page that somebody waits for
// comes, with the right bytes, and what several receivers want leaves the origin once.

import { describe, expect, test } from 'vitest';
import { LAYER } from './origin.js';
import { pagesFrom, World } from './world.js';

const MIB_PAGES = 256;

interface Crowd {
  readonly receivers: number;
  readonly mib: number;
  readonly loss?: number;
  readonly mtuBytes?: number;
}

/** Clones that do not start at the same instant, and all go through the same memory. */
function bytesFor(crowd: Crowd): number {
  const { receivers, mib, loss = 0, mtuBytes = 9000 } = crowd;
  const pageCount = mib * MIB_PAGES;
  const world = new World({ seed: 1, pageCount, mtuBytes });
  for (let count = 0; count < receivers; count++) {
    const puller = world.addReceiver({ weather: { loss } });
    world.clockwork.at(world.seeded.between(0, 20), () => {
      puller.pull({ pages: pagesFrom(0, pageCount), atOnce: 2 });
      puller.receiver.prefetch(LAYER, 0, pageCount);
      world.poke(puller);
    });
  }
  world.runUntilAllHeld(60_000);
  return world.serverHost.bytesSent;
}

describe('64 MiB that all receivers want', () => {
  const one = bytesFor({ receivers: 1, mib: 64 });

  test.each([2, 8])('leave the origin once for %i of them', (receivers) => {
    expect(bytesFor({ receivers, mib: 64 })).toBeLessThan(one * 1.15);
  });
});
