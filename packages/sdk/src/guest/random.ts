// What stands in for `Math.random`: a generator of the same range that can be seeded. Keeps its state
// to itself; knows nothing of forks. Called by `generators.ts`.
//
// xoshiro128** of Blackman and Vigna, "Scrambled Linear Pseudorandom Number Generators", 2021; two of
// its numbers give the 53 bits of a double.

const HIGH_BITS_DROPPED = 5;
const LOW_BITS_DROPPED = 6;
const LOW_VALUES = 2 ** 26;
const DOUBLE_VALUES = 2 ** 53;

export interface SeededRandom {
  /** As `Math.random`: at least 0, less than 1. */
  readonly next: () => number;
  /** 16 bytes, not all zero. */
  seed(bytes: Uint8Array): void;
}

export function createRandom(seed: Uint8Array): SeededRandom {
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;

  const next32 = () => {
    const scrambled = Math.imul(rotate(Math.imul(b, 5), 7), 9);
    const shifted = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= shifted;
    d = rotate(d, 11);
    return scrambled;
  };
  const reseed = (bytes: Uint8Array) => {
    const words = new DataView(bytes.buffer, bytes.byteOffset, 16);
    [a, b, c, d] = [0, 4, 8, 12].map((at) => words.getInt32(at, true)) as [
      number,
      number,
      number,
      number,
    ];
    // From a state of zeros nothing but zeros follows.
    if ((a | b | c | d) === 0) a = 1;
  };
  // A method has, like the one that it stands in for, no prototype and can't be called with `new`.
  const { random } = {
    random(): number {
      const high = next32() >>> HIGH_BITS_DROPPED;
      const low = next32() >>> LOW_BITS_DROPPED;
      return (high * LOW_VALUES + low) / DOUBLE_VALUES;
    },
  };
  reseed(seed);
  return { next: random, seed: reseed };
}

function rotate(word: number, bits: number): number {
  return (word << bits) | (word >>> (32 - bits));
}
