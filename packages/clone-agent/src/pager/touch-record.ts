// Which pages of a snapshot's memory its clones waited for first, in that order, so that it can be
// pushed to those that come later. Kept with the snapshot, in `<object>.touched` beside its page map: a
// pager that dies, or an agent that ends, loses nothing of an image's. All threads of the pager map
// the file and add to it. Only a hint: without the file nothing is recorded.
//
//   u32       from byte 4: u32 each
//  +---------+-------------------------+
//  | entries | pages                   |
//  +---------+-------------------------+

import fs from 'node:fs';
import {
  type MappedFile,
  mapFile,
  mappedBytes,
  PAGE_BYTES,
  unmapFile,
} from '@snowfork/memserver/pages';

/**
 * A clone's first touches are nearly the same each time (Ustiugov et al., REAP, ASPLOS 2021: 97 % of
 * them). 256 MiB: a server that goes through all its data has no fewer.
 */
export const TOUCHES_MAX = 65_536;
/** Of these, so many may come from older snapshots: there is always room for new ones. */
const TOUCHES_INHERITED_MAX = 49_152;

const CELL_BYTES = Uint32Array.BYTES_PER_ELEMENT;
const FILE_BYTES = (1 + TOUCHES_MAX) * CELL_BYTES;

export function touchRecordPath(mapPath: string): string {
  return mapPath.replace(/(\.map)?$/, '.touched');
}

/**
 * Maps the record, which begins with what was there of it. @throws Error of the system: there is none
 * then.
 */
export function openTouchRecord(path: string, sizeBytes: number): MappedFile {
  const pages = Math.ceil(sizeBytes / PAGE_BYTES);
  const known = [...new Set(readRecord(path))].filter((page) => page < pages);
  const cells = new Uint32Array(1 + TOUCHES_MAX);
  cells[0] = known.length;
  cells.set(known, 1);
  // A file of its own: one that was linked from another agent's folder is that one's to write. Written,
  // not only made long: the tmpfs may be full one day, and a fault in it must not fail.
  fs.writeFileSync(`${path}.new`, cells, { mode: 0o600 });
  fs.renameSync(`${path}.new`, path);
  return mapFile(path);
}

export function closeTouchRecord(file: MappedFile): void {
  unmapFile(file);
}

/** A thread's side of the record; one alone inherits and confirms. */
export class TouchRecord {
  readonly #cells: Uint32Array;
  /** The first ones, of older snapshots' clones: none of this one has shown that it wants them. */
  #inherited = 0;

  constructor(file: MappedFile) {
    this.#cells = new Uint32Array(mappedBytes(file));
  }

  get size(): number {
    return Math.min(Atomics.load(this.#cells, 0), TOUCHES_MAX);
  }

  /** In the order in which they were first waited for, older snapshots' first. */
  pages(): Uint32Array {
    return this.#cells.slice(1, 1 + this.size);
  }

  /** Somebody waited for this page, and no clone had touched it before. */
  add(page: number): void {
    if (this.size === TOUCHES_MAX) return;
    const index = Atomics.add(this.#cells, 0, 1);
    if (index < TOUCHES_MAX) this.#cells[1 + index] = page;
  }

  /** Begins with what clones of older snapshots touched; the oldest is left out first. */
  inherit(pages: readonly number[]): void {
    for (const page of pages.slice(-TOUCHES_INHERITED_MAX)) this.add(page);
    this.#inherited = this.size;
  }

  /**
   * What clones of this snapshot have touched, of what was pushed as well. The first time it is instead of
   * what was inherited, which so does not grow from snapshot to snapshot by what is wanted no more.
   */
  confirm(pages: readonly number[]): void {
    const known = this.pages();
    const own = known.subarray(this.#inherited);
    const all = this.#inherited > 0 ? [...pages, ...own] : [...known, ...pages];
    this.#inherited = 0;
    Atomics.store(this.#cells, 0, 0);
    for (const page of new Set(all)) this.add(page);
  }
}

/** Empty for a file that is none, or was cut short. */
function readRecord(path: string): Uint32Array {
  const content = fs.existsSync(path) ? fs.readFileSync(path) : Buffer.alloc(0);
  if (content.length !== FILE_BYTES) return new Uint32Array();
  const cells = new Uint32Array(content.buffer, content.byteOffset, 1 + TOUCHES_MAX);
  return cells.slice(1, 1 + Math.min(cells[0]!, TOUCHES_MAX));
}
