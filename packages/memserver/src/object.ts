// A page-addressed object: its page map and the open layers below it. Says in which layer a run of
// pages lies and reads pages from the layers' files; opens, closes and caches nothing. Called by the
// pager for every page that a guest touches, so nothing here allocates per page.

import fs from 'node:fs';
import { ABSENT, type HeldPages } from './held-pages.js';
import { PAGE_BYTES, ZERO_PAGE } from './page-map.js';

/** Thrown when a layer does not hold what the page map says, and nothing else is. */
export class ObjectError extends Error {
  override readonly name = 'ObjectError';
}

/** An open layer. */
export interface Layer {
  readonly descriptor: number;
  /** Lies on a disk: reading a page that is not cached waits for it. */
  readonly onDisk: boolean;
  /** A replica of another host's layer: which of its pages are here. Without it all are. */
  readonly held?: HeldPages | undefined;
}

/** What a `LayerRead` returns instead of a number of bytes when it would have to wait. */
export const WOULD_BLOCK = -1;

/** Reads like `pread`; returns the number of bytes, or WOULD_BLOCK. */
export type LayerRead = (
  layer: Layer,
  buffer: Buffer,
  offset: number,
  lengthBytes: number,
  position: number,
) => number;

/** Waits for a disk when it must. */
export const readWaiting: LayerRead = (layer, buffer, offset, lengthBytes, position) =>
  fs.readSync(layer.descriptor, buffer, offset, lengthBytes, position);

export class PagedObject {
  /** Where each page is, as in `PageMap`. */
  readonly entries: Uint16Array;
  readonly layers: readonly Layer[];
  readonly sizeBytes: number;

  /** @throws ObjectError when map, layers and size do not fit each other. */
  constructor(of: { entries: Uint16Array; layers: readonly Layer[]; sizeBytes: number }) {
    if (of.entries.length !== Math.ceil(of.sizeBytes / PAGE_BYTES)) {
      throw new ObjectError(`a map of ${of.entries.length} pages for ${of.sizeBytes} bytes`);
    }
    this.entries = of.entries;
    this.layers = of.layers;
    this.sizeBytes = of.sizeBytes;
  }

  get pageCount(): number {
    return this.entries.length;
  }

  /** ZERO_PAGE, or k for the k-th layer, counted from 1. */
  layerOf(page: number): number {
    return this.entries[page] ?? ZERO_PAGE;
  }

  /**
   * How many pages from `firstPage` on, at most `count`, lie where `firstPage` lies. All runs of a
   * range: `for (let page = first; page < end; page += object.runLength(page, end - page)) …`
   */
  runLength(firstPage: number, count: number): number {
    const { entries } = this;
    const layer = entries[firstPage];
    const end = Math.min(firstPage + count, entries.length);
    let page = firstPage + 1;
    while (page < end && entries[page] === layer) page += 1;
    return page - firstPage;
  }

  /** Whether all of the pages are zero. */
  isZero(firstPage: number, count: number): boolean {
    return this.layerOf(firstPage) === ZERO_PAGE && this.runLength(firstPage, count) === count;
  }

  /** Whether all of the pages are on this host. */
  isHere(firstPage: number, count: number): boolean {
    const end = Math.min(firstPage + count, this.pageCount);
    for (let page = firstPage; page < end; ) {
      const run = this.runLength(page, end - page);
      const held = this.layers[this.layerOf(page) - 1]?.held;
      if (held !== undefined && !held.hasAll(page, run)) return false;
      page += run;
    }
    return true;
  }

  /**
   * Fills `buffer` with `count` pages, zeros after the object's end. `false` when `read` would have
   * had to wait, or when a page is not on this host: then the buffer's content means nothing.
   * @throws ObjectError when a layer ends before a page that it should hold.
   */
  readInto(
    buffer: Buffer,
    firstPage: number,
    count: number,
    read: LayerRead = readWaiting,
  ): boolean {
    const end = firstPage + count;
    let page = firstPage;
    while (page < end) {
      const run = page < this.pageCount ? this.runLength(page, end - page) : end - page;
      const offset = (page - firstPage) * PAGE_BYTES;
      const layer = this.layerOf(page);
      if (layer === ZERO_PAGE) buffer.fill(0, offset, offset + run * PAGE_BYTES);
      else if (!this.#readRun(layer, buffer, offset, page, run, read)) return false;
      page += run;
    }
    return true;
  }

  #readRun(
    layerIndex: number,
    buffer: Buffer,
    offset: number,
    page: number,
    run: number,
    read: LayerRead,
  ): boolean {
    const layer = this.layers[layerIndex - 1];
    if (layer === undefined) throw new ObjectError(`there is no layer ${layerIndex}`);
    const guard = layer.held?.guard(page, run);
    if (guard === ABSENT) return false;
    const start = page * PAGE_BYTES;
    const lengthBytes = Math.min(run * PAGE_BYTES, this.sizeBytes - start);
    let done = 0;
    while (done < lengthBytes) {
      const taken = read(layer, buffer, offset + done, lengthBytes - done, start + done);
      if (taken === WOULD_BLOCK) return false;
      if (taken <= 0) throw new ObjectError(`layer ${layerIndex} ends at byte ${start + done}`);
      done += taken;
    }
    // The last page of an object need not be whole.
    if (done < run * PAGE_BYTES) buffer.fill(0, offset + done, offset + run * PAGE_BYTES);
    return guard === undefined || layer.held!.isStill(guard);
  }
}
