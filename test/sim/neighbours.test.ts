// A server that is a neighbour: it has no page before it was wanted, and answers when it has come.

import { expect, test } from 'vitest';
import { LAYER } from './origin.js';
import { withSeeds } from './seeded.js';
import { pagesFrom, World } from './world.js';

const PAGES = 512;

test('a page that the server does not have yet comes when it does, and is wanted once', () => {
  const world = new World({ seed: 11, pageCount: PAGES, fetchMs: 3 });
  const pullers = [0, 1].map(() => world.addReceiver({ hasGroup: false }));
  for (const puller of pullers) {
    puller.pull({ pages: pagesFrom(0, PAGES), atOnce: 8 });
    world.poke(puller);
  }
  world.runUntilAllHeld(10_000);
  for (const { lost } of pullers) expect(lost.size).toBe(0);
  expect(world.wantedPages).toBe(PAGES);
  const { pagesSent } = world.server.counts;
  expect(pagesSent.absent).toBe(0);
  // Each of the two once; some that come later than others are asked for while they are on the way.
  expect(pagesSent.data).toBeLessThan(PAGES * 2.25);
});

test('slow, over a bad network, by demand and prefetch: every page comes, right', () => {
  withSeeds(20, (seed) => {
    const weather = { loss: 0.05, duplicates: 0.02, delayMs: 1 };
    const world = new World({ seed, pageCount: PAGES, fetchMs: 60, weather });
    const [first, second] = [world.addReceiver({ hasGroup: false }), world.addReceiver()];
    first.pull({ pages: pagesFrom(0, PAGES), atOnce: 16 });
    second.receiver.prefetch(LAYER, 0, PAGES);
    for (const puller of [first, second]) world.poke(puller);
    world.runUntilAllHeld(60_000);
    for (const { lost } of [first, second]) expect(lost.size).toBe(0);
    expect(world.server.counts.pagesSent.absent).toBe(0);
  });
});

test('a page that never comes is reported lost, and is not waited for after that', () => {
  const world = new World({ seed: 12, pageCount: 4, fetchMs: Number.POSITIVE_INFINITY });
  const puller = world.addReceiver({ hasGroup: false, lostAfterMs: 5000 });
  puller.pull({ pages: pagesFrom(0, 4), atOnce: 4 });
  world.poke(puller);
  world.run(() => puller.isDone, 7500);
  expect([...puller.lost.values()]).toEqual(Array(4).fill('timeout'));
  expect(world.wantedPages).toBeGreaterThan(4);
});
