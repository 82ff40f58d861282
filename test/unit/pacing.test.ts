// Pacing: a token bucket never lets more through than its rate and one burst; a receiver's rate
// follows what arrives, and is not talked down by a path that loses some of everything; what is
// fetched ahead gives way to pages in demand.

import { TokenBucket, WINDOW_PAGES_MAX } from '@snowfork/memserver';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  PrefetchQueue,
  WINDOW_PAGES_MIN,
} from '../../packages/memserver/src/receiver/prefetch-queue.js';
import {
  LOSS_OF_PATH_MAX,
  RATE_MIN,
  ReceiverRate,
} from '../../packages/memserver/src/server/rate.js';
import { times } from '../support/soak.js';

const MEGABYTE = 1_000_000;
/** 0.5 ms of the rate, or 20 kB, and the debt of one datagram. */
const burst = (rate: number): number => Math.max(rate / 2000, 20_000) + 9000;

test('a bucket lets through its rate and a burst, and all of its rate when it is used', () => {
  const rates = fc.integer({ min: RATE_MIN, max: 1000 * MEGABYTE });
  const pauses = fc.array(fc.double({ min: 0, max: 5, noNaN: true }), {
    minLength: 50,
    maxLength: 200,
  });
  fc.assert(
    fc.property(rates, pauses, (rate, waits) => {
      const bucket = new TokenBucket({ bytesPerSecond: rate, nowMs: 0 });
      let nowMs = 0;
      let sent = 0;
      for (const wait of waits) {
        nowMs += wait;
        while (bucket.waitMs(nowMs) === 0) {
          bucket.take(9000);
          sent += 9000;
        }
        expect(sent).toBeLessThanOrEqual((nowMs * rate) / 1000 + burst(rate));
        nowMs += bucket.waitMs(nowMs);
        expect(bucket.waitMs(nowMs + 1e-6)).toBe(0);
      }
    }),
    { numRuns: times(100, 100_000) },
  );
});

describe('the rate of a receiver', () => {
  const newRate = (): ReceiverRate =>
    new ReceiverRate({ start: 50 * MEGABYTE, max: 125 * MEGABYTE });
  const second = { ms: 1000, expected: 1000, received: 1000 };
  const report = { ...second, wireBytes: 50 * MEGABYTE, wasLimited: true };

  test('rises to the most, while pacing holds something back', () => {
    const rate = newRate();
    rate.report({ ...report, wasLimited: false });
    expect(rate.ceiling).toBe(50 * MEGABYTE);
    for (let count = 0; count < 10; count++) rate.report(report);
    expect(rate.ceiling).toBe(125 * MEGABYTE);
  });

  test('stays with some loss', () => {
    const rate = newRate();
    const received = 1000 * (1 - LOSS_OF_PATH_MAX);
    for (let count = 0; count < 50; count++)
      rate.report({ ...report, received, wasLimited: false });
    expect(rate.ceiling).toBe(50 * MEGABYTE);
    expect(rate.loss).toBeCloseTo(LOSS_OF_PATH_MAX);
  });

  test('goes to what arrives with more, step by step, and never to nothing', () => {
    const rate = newRate();
    const lost = { ...report, received: 500, wireBytes: 10 * MEGABYTE };
    rate.report(lost);
    expect(rate.ceiling).toBeCloseTo(25 * MEGABYTE);
    for (let count = 0; count < 20; count++) rate.report(lost);
    expect(rate.ceiling).toBeCloseTo((9 * MEGABYTE) / (1 - LOSS_OF_PATH_MAX));
    for (let count = 0; count < 50; count++) rate.report({ ...lost, wireBytes: 0 });
    expect(rate.ceiling).toBe(RATE_MIN);
  });

  test('is cut for less when the path was seen to lose nothing', () => {
    const rate = newRate();
    rate.report({ ...report, wasLimited: false });
    rate.report({ ...report, received: 900, wireBytes: 45 * MEGABYTE });
    expect(rate.ceiling).toBeCloseTo(0.9 * 45 * MEGABYTE);
  });

  test('waits for reports to add up to something', () => {
    const rate = newRate();
    const few = { ...report, expected: 10, received: 0, wireBytes: 0 };
    rate.report(few);
    expect(rate.ceiling).toBe(50 * MEGABYTE);
    rate.report(few);
    expect(rate.ceiling).toBe(25 * MEGABYTE);
  });
});

test('less is fetched ahead while pages in demand come late, and more when they do not', () => {
  const queue = new PrefetchQueue();
  const leastMs = 1;
  expect(queue.windowPages).toBe(WINDOW_PAGES_MAX);
  queue.demandTook(10, leastMs, 100);
  const cut = queue.windowPages;
  expect(cut).toBeLessThan(WINDOW_PAGES_MAX);
  // Was asked for before the cut.
  queue.demandTook(10, leastMs, 105);
  expect(queue.windowPages).toBe(cut);
  for (let nowMs = 120; nowMs < 1000; nowMs += 20) queue.demandTook(10, leastMs, nowMs);
  expect(queue.windowPages).toBe(WINDOW_PAGES_MIN);
  queue.demandTook(2, leastMs, 1000);
  expect(queue.windowPages).toBeGreaterThan(WINDOW_PAGES_MIN);
  for (let count = 0; count < 100; count++) queue.demandTook(2, leastMs, 1000 + count);
  expect(queue.windowPages).toBe(WINDOW_PAGES_MAX);
});
