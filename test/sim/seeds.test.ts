// That a run can be had again: by its seed alone, which a failure says.

import { afterEach, expect, test, vi } from 'vitest';
import { LAYER } from './origin.js';
import { withSeeds } from './seeded.js';
import { pagesFrom, World } from './world.js';

const PAGES = 256;

/** What happened, and when: of hosts that lose much, in no order that anybody set. */
function story(seed: number): object {
  const weather = { loss: 0.1, duplicates: 0.05, jitterMs: 3 };
  const world = new World({ seed, pageCount: PAGES, zeroShare: 0.2, weather });
  for (let count = 0; count < 3; count++) {
    const puller = world.addReceiver({ weather });
    puller.pull({ pages: pagesFrom(0, PAGES), atOnce: 4 });
    puller.receiver.prefetch(LAYER, 0, PAGES);
    world.poke(puller);
  }
  world.runUntilAllHeld(60_000);
  const receivers = world.pullers.map(({ receiver, latenciesMs }) => [
    receiver.counts,
    latenciesMs,
  ]);
  return { atMs: world.clockwork.nowMs, server: world.server.counts, receivers };
}

afterEach(() => {
  vi.unstubAllEnvs();
});

test('a seed makes the same run, to the last datagram', () => {
  expect(story(7)).toEqual(story(7));
  expect(story(7)).not.toEqual(story(8));
});

test('a failure says its seed', () => {
  let used = -1;
  const fail = (seed: number): void => {
    used = seed;
    throw new Error('no page came');
  };
  expect(() => withSeeds(3, fail)).toThrow(/^again with SNOWFORK_SIM_SEED=\d+: no page came$/);
  expect(() => withSeeds(3, fail)).toThrow('again with SNOWFORK_SIM_SEED=');
  expect(used).toBeGreaterThanOrEqual(0);
});

test('a seed that is given is the one that is run, once', () => {
  vi.stubEnv('SNOWFORK_SIM_SEED', '4711');
  const seeds: number[] = [];
  withSeeds(20, (seed) => seeds.push(seed));
  expect(seeds).toEqual([4711]);
});
