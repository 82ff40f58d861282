// The simulator's layer: pages whose bytes follow from their numbers, some of them all zero, some
// not there. Every page that is delivered is compared with it.

import { PAGE_BYTES, type PageSource } from '@snowfork/memserver';
import type { Seeded } from './seeded.js';

export const LAYER = 3;

export class Origin implements PageSource {
  readonly pageCount: number;
  readonly #bytes: Buffer;
  /** 1: the page is not there, whoever asks. */
  readonly absent: Uint8Array;
  /** 1: not yet; it comes when it was wanted. */
  readonly awaited: Uint8Array;

  /** `noiseBytes`: so much of a page can't be packed; the rest is zero. */
  constructor(of: {
    pageCount: number;
    zeroShare: number;
    noiseBytes: (page: number) => number;
    seeded: Seeded;
  }) {
    this.pageCount = of.pageCount;
    this.#bytes = Buffer.alloc(of.pageCount * PAGE_BYTES);
    this.absent = new Uint8Array(of.pageCount);
    this.awaited = new Uint8Array(of.pageCount);
    const noise = of.seeded.bytes(PAGE_BYTES);
    for (let page = 0; page < of.pageCount; page++) {
      if (of.seeded.chance(of.zeroShare)) continue;
      noise.copy(this.#bytes, page * PAGE_BYTES, 0, of.noiseBytes(page));
      this.#bytes.writeUInt32LE(page, page * PAGE_BYTES);
      this.#bytes.writeUInt32LE(page ^ 0x5a5a5a5a, (page + 1) * PAGE_BYTES - 4);
    }
  }

  readPage(layer: number, page: number, target: Buffer, offset: number): boolean {
    if (layer !== LAYER || page >= this.pageCount || this.absent[page] === 1) return false;
    if (this.awaited[page] === 1) return false;
    this.#bytes.copy(target, offset, page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
    return true;
  }

  isAwaited(layer: number, page: number): boolean {
    return layer === LAYER && this.awaited[page] === 1;
  }

  isPage(page: number, bytes: Buffer, offset: number): boolean {
    const start = page * PAGE_BYTES;
    const end = start + PAGE_BYTES;
    return this.#bytes.compare(bytes, offset, offset + PAGE_BYTES, start, end) === 0;
  }
}
