// Randomness from a seed, and the seed itself: every run prints the one that it failed with, and
// SNOWFORK_SIM_SEED runs that one again.

import { randomInt } from 'node:crypto';

export class Seeded {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** From 0 to 1; mulberry32, which is in the public domain. */
  readonly next = (): number => {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };

  /** At least `from`, less than `to`. */
  between(from: number, to: number): number {
    return from + this.next() * (to - from);
  }

  whole(from: number, to: number): number {
    return Math.floor(this.between(from, to));
  }

  chance(share: number): boolean {
    return this.next() < share;
  }

  bytes(length: number): Buffer {
    const bytes = Buffer.alloc(length);
    for (let offset = 0; offset < length; offset++) bytes[offset] = this.whole(0, 256);
    return bytes;
  }
}

/** Runs with seeds that nobody chose, or with the one given; a failure names its seed. */
export function withSeeds(count: number, run: (seed: number) => void): void {
  const given = process.env.SNOWFORK_SIM_SEED;
  const seeds =
    given === undefined ? Array.from({ length: count }, () => randomInt(2 ** 32)) : [+given];
  for (const seed of seeds) {
    try {
      run(seed);
    } catch (cause) {
      throw new Error(`again with SNOWFORK_SIM_SEED=${seed}: ${(cause as Error).message}`, {
        cause,
      });
    }
  }
}
