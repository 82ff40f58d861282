// Which pages of a replica are on this host: a bitmap in a file that the pager and the memory server
// of the host map, so that a pager that is killed loses none. One process writes (the pager's main
// thread), all read. A page is written to the replica's file before its bit is set, and its bit is
// cleared before it leaves the file.
//
//   u32         u32         from byte 8: a bit for each page, the lowest bit of a word first
//  +-----------+-----------+------------------------------------------------+
//  | generation| pinned    | words of 32 bits                               |
//  +-----------+-----------+------------------------------------------------+
//
// Pinned is 1 when the pages are to stay: their origin will go. The generation is odd while pages
// leave. A reader that has found an even one before it read, and the same after it, has read what the
// bits promised.

import fs from 'node:fs';
import { type MappedFile, mapFile, mappedBytes, unmapFile } from './mapped-file.js';

/** What `guard` says when a page is not here. */
export const ABSENT = -1;

const GENERATION = 0;
const PINNED = 1;
const WORDS = 2;

export class HeldPages {
  /** For the other threads of the process. */
  readonly place: MappedFile;
  readonly #cells: Int32Array;

  /** Makes the file for a replica of so many pages, none of which is here. */
  static create(path: string, pages: number): void {
    const words = WORDS + Math.ceil(pages / 32);
    // Written, not only made long: the tmpfs may be full one day, and a fault in it must not fail.
    fs.writeFileSync(path, Buffer.alloc(words * Int32Array.BYTES_PER_ELEMENT), { mode: 0o600 });
  }

  /** Maps the file until `unmap`. @throws Error of the system. */
  static map(path: string): HeldPages {
    return new HeldPages(mapFile(path));
  }

  /** One that another thread of this process has mapped, and unmaps. */
  static at(place: MappedFile): HeldPages {
    return new HeldPages(place);
  }

  private constructor(place: MappedFile) {
    this.place = place;
    this.#cells = new Int32Array(mappedBytes(place));
  }

  /** Nobody uses it any more, in no thread. */
  unmap(): void {
    unmapFile(this.place);
  }

  /** How many there is a bit for: as many as it was made for, or a few more. */
  get pageCount(): number {
    return (this.#cells.length - WORDS) * 32;
  }

  has(page: number): boolean {
    return (Atomics.load(this.#cells, WORDS + (page >>> 5)) & (1 << (page & 31))) !== 0;
  }

  /** Those that are here, in order. */
  *pages(): Generator<number> {
    for (let word = 0; word < this.#cells.length - WORDS; word++) {
      let bits = Atomics.load(this.#cells, WORDS + word);
      for (; bits !== 0; bits &= bits - 1) yield word * 32 + 31 - Math.clz32(bits & -bits);
    }
  }

  /** How many of these pages are here. */
  countHeld(firstPage: number, count: number): number {
    let held = 0;
    const end = firstPage + count;
    for (let page = firstPage; page < end; ) {
      const bit = page & 31;
      const bits = Math.min(32 - bit, end - page);
      const mask = bits === 32 ? -1 : ((1 << bits) - 1) << bit;
      held += onesOf(Atomics.load(this.#cells, WORDS + (page >>> 5)) & mask);
      page += bits;
    }
    return held;
  }

  hasAll(firstPage: number, count: number): boolean {
    for (let page = firstPage; page < firstPage + count; page++) if (!this.has(page)) return false;
    return true;
  }

  /** Before pages are read: ABSENT, or what `isStill` must be told after. */
  guard(firstPage: number, count: number): number {
    const generation = Atomics.load(this.#cells, GENERATION) >>> 0;
    return generation % 2 === 0 && this.hasAll(firstPage, count) ? generation : ABSENT;
  }

  /** Whether what was read since `guard` is what the pages hold. */
  isStill(guard: number): boolean {
    return Atomics.load(this.#cells, GENERATION) >>> 0 === guard;
  }

  /** No page is to leave, whichever process has the file. */
  get isPinned(): boolean {
    return Atomics.load(this.#cells, PINNED) !== 0;
  }

  pin(): void {
    Atomics.store(this.#cells, PINNED, 1);
  }

  /** The page's bytes are in the file. */
  set(page: number): void {
    Atomics.or(this.#cells, WORDS + (page >>> 5), 1 << (page & 31));
  }

  /** Takes pages out: `leave` empties their place in the file, when no bit promises them any more. */
  clear(pages: Iterable<number>, leave: () => void): void {
    Atomics.add(this.#cells, GENERATION, 1);
    for (const page of pages) {
      Atomics.and(this.#cells, WORDS + (page >>> 5), ~(1 << (page & 31)));
    }
    try {
      leave();
    } finally {
      Atomics.add(this.#cells, GENERATION, 1);
    }
  }

  /** Mends what a writer left that was killed while pages left. */
  recover(): void {
    if (Atomics.load(this.#cells, GENERATION) % 2 !== 0) Atomics.add(this.#cells, GENERATION, 1);
  }
}

/** Of a word's bits (Warren, Hacker's Delight, 5-1). */
function onesOf(word: number): number {
  const pairs = word - ((word >>> 1) & 0x5555_5555);
  const fours = (pairs & 0x3333_3333) + ((pairs >>> 2) & 0x3333_3333);
  return Math.imul((fours + (fours >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24;
}
