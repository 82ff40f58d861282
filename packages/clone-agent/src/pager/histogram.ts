// How long READs took, from the request read to the reply written: bucket b counts those of less than
// 2^b µs (and not less than half of that). One row per thread in memory that all threads share, so
// that counting costs no lock.

import { THREADS } from './thread-data.js';

/** The last bucket holds all that took longer than about 34 s. */
export const LATENCY_BUCKETS = 26;

export function newHistogramMemory(): SharedArrayBuffer {
  return new SharedArrayBuffer(THREADS * LATENCY_BUCKETS * Float64Array.BYTES_PER_ELEMENT);
}

export class LatencyHistogram {
  readonly #row: Float64Array;

  constructor(memory: SharedArrayBuffer, thread: number) {
    const rowBytes = LATENCY_BUCKETS * Float64Array.BYTES_PER_ELEMENT;
    this.#row = new Float64Array(memory, thread * rowBytes, LATENCY_BUCKETS);
  }

  count(latencyMs: number): void {
    this.#row[bucketOf(latencyMs)]! += 1;
  }
}

export function bucketOf(latencyMs: number): number {
  const us = Math.min(Math.max(latencyMs * 1000, 0), 2 ** 31 - 1);
  return Math.min(32 - Math.clz32(us), LATENCY_BUCKETS - 1);
}

/** Of all threads together. */
export function latencyBuckets(memory: SharedArrayBuffer): number[] {
  const all = new Float64Array(memory);
  const sums = new Array<number>(LATENCY_BUCKETS).fill(0);
  for (const [index, count] of all.entries()) sums[index % LATENCY_BUCKETS]! += count;
  return sums;
}
