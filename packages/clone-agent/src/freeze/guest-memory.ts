// A guest's physical memory, as its own structures address it. It owns the way from a physical address to a
// page of the RAM object, and a cache of the pages read in one freeze; it never writes, and never keeps a
// page from one freeze to the next. Used by the walks of page tables and free lists.

import { GuestLayoutError } from './layout-error.js';
import { PAGE_BYTES, type TransferBuffer } from './process-memory.js';

/** Where the bytes of a RAM page come from: a stopped process and its layers, or a buffer in tests. */
export interface PageSource {
  /** Pages of the RAM object. */
  readonly pages: number;
  /** Puts page `page` into `target`, from its byte `offset` on. */
  readPage(page: number, target: TransferBuffer, offset: number): void;
}

// QEMU's q35 machine: RAM that does not fit below the PCI hole goes on at 4 GiB (hw/i386/pc_q35.c).
const PCI_HOLE_END = 2 ** 32;
const LOW_MEMORY_BYTES_MAX = 0xb0000000;
const LOW_MEMORY_BYTES_SPLIT = 0x80000000;

export class GuestMemory {
  readonly #source: PageSource;
  readonly #cache: TransferBuffer;
  readonly #capacityBytes: number;
  readonly #offsets = new Map<number, number>();
  readonly #lowPages: number;
  #usedBytes = 0;

  /** The size of `cache` bounds how many distinct pages can be read. */
  constructor(source: PageSource, cache: TransferBuffer) {
    const isSplit = source.pages * PAGE_BYTES >= LOW_MEMORY_BYTES_MAX;
    this.#source = source;
    this.#cache = cache;
    this.#capacityBytes = Math.floor(cache.bytes.length / PAGE_BYTES) * PAGE_BYTES;
    this.#lowPages = isSplit ? LOW_MEMORY_BYTES_SPLIT / PAGE_BYTES : source.pages;
  }

  /** The cache's bytes as words, for loops that read fields by `pageOffset`. */
  get words(): Int32Array {
    return this.#cache.words;
  }

  /** Distinct pages read so far. */
  get pagesRead(): number {
    return this.#usedBytes / PAGE_BYTES;
  }

  /** One more than the number of the highest physical page that is RAM. */
  get physicalPagesEnd(): number {
    const highPages = this.#source.pages - this.#lowPages;
    return highPages === 0 ? this.#lowPages : PCI_HOLE_END / PAGE_BYTES + highPages;
  }

  /** The page of the RAM object that is physical page `physicalPage`, or −1 when that is not RAM. */
  ramPage(physicalPage: number): number {
    if (physicalPage < this.#lowPages) return physicalPage >= 0 ? physicalPage : -1;
    const page = physicalPage - PCI_HOLE_END / PAGE_BYTES + this.#lowPages;
    return page >= this.#lowPages && page < this.#source.pages ? page : -1;
  }

  /** Byte of the cache at which the RAM page's bytes begin, or −1: the cache is full. */
  pageOffset(ramPage: number): number {
    const known = this.#offsets.get(ramPage);
    if (known !== undefined) return known;
    if (this.#usedBytes === this.#capacityBytes) return -1;
    const offset = this.#usedBytes;
    this.#source.readPage(ramPage, this.#cache, offset);
    this.#usedBytes += PAGE_BYTES;
    this.#offsets.set(ramPage, offset);
    return offset;
  }

  /** A RAM page's bytes, in the cache itself. @throws GuestLayoutError when the cache is full. */
  page(ramPage: number): Buffer {
    const offset = this.pageOffset(ramPage);
    if (offset < 0) throw new GuestLayoutError('more pages to read than the budget allows');
    return this.#cache.bytes.subarray(offset, offset + PAGE_BYTES);
  }

  /** Bytes at a physical address. @throws GuestLayoutError when they are not all RAM. */
  read(physicalAddress: number, length: number): Buffer {
    const inPage = physicalAddress % PAGE_BYTES;
    if (inPage + length <= PAGE_BYTES) {
      return this.#pageAt(physicalAddress).subarray(inPage, inPage + length);
    }
    const bytes = Buffer.alloc(length);
    for (let done = 0; done < length; ) {
      const address = physicalAddress + done;
      const part = this.#pageAt(address).subarray(address % PAGE_BYTES);
      done += part.copy(bytes, done);
    }
    return bytes;
  }

  #pageAt(physicalAddress: number): Buffer {
    const ramPage = Number.isSafeInteger(physicalAddress)
      ? this.ramPage(Math.floor(physicalAddress / PAGE_BYTES))
      : -1;
    if (ramPage < 0) {
      throw new GuestLayoutError(`physical address 0x${physicalAddress.toString(16)} is not RAM`);
    }
    return this.page(ramPage);
  }
}
