// An object as a thread of the pager serves it. The page map, what is under way, what was pushed and
// the counters lie in memory that all threads share; the layers' descriptors are the process's. Made
// by the registry on the main thread, published to the others, used by all.

import {
  HeldPages,
  type Layer,
  type MappedFile,
  PAGE_BYTES,
  PagedObject,
} from '@snowfork/memserver/pages';
import { LIKELY_PAGES_MAX } from './first-touches.js';
import type { ReadArguments } from './fuse-wire.js';
import type { LayerHandle } from './layer-table.js';
import { newPushWindowsMemory, PushWindows, type PushWindowsMemory } from './push-windows.js';
import { newReaderCountsMemory, processOf, ReaderCounts, Source } from './reader-counts.js';
import { THREADS } from './thread-data.js';
import { TouchRecord } from './touch-record.js';

/** The object that a VM maps as its memory; the others are disks. */
const MEMORY_OBJECT = 'ram';

/** What the main thread sends to the others. */
export interface SharedObject {
  readonly nodeid: number;
  readonly snapshot: string;
  readonly name: string;
  readonly sizeBytes: number;
  readonly layers: readonly LayerHandle[];
  readonly entries: SharedArrayBuffer;
  /** One bit for each page that a READ waits for. */
  readonly underWay: SharedArrayBuffer;
  /** For pages of zeros, and for pages of layers. */
  readonly zeroWindows: PushWindowsMemory;
  readonly layerWindows: PushWindowsMemory;
  /** What clones touched first; of a disk, and where it can't be kept, there is none. */
  readonly touches: MappedFile | undefined;
  /** `Counter` for each thread. */
  readonly counters: SharedArrayBuffer;
  /** Of memory: which process got what. */
  readonly readers: SharedArrayBuffer | undefined;
}

export const Counter = {
  zeroPages: Source.zero,
  localPages: Source.local,
  /** Of a replica, however they came to it. */
  replicaPages: Source.replica,
  /** Of these, those that a READ had to wait for. */
  demandedPages: Source.demand,
  reads: 4,
  refusedReads: 5,
  storedPages: 6,
  replayedPages: 7,
  aheadPages: 8,
} as const;
const COUNTERS = 9;

/**
 * A program starts by touching a page here and one there; the fifth of 64 KiB is one of many. Fresh
 * memory is pushed at the first touch: zeros come from nowhere, and a guest fills what it takes.
 */
const LAYER_PATIENCE = 4;

export function newSharedObject(
  of: Pick<SharedObject, 'nodeid' | 'snapshot' | 'name' | 'sizeBytes' | 'layers' | 'touches'> & {
    entries: Uint16Array;
  },
): SharedObject {
  const pages = of.entries.length;
  const entries = new SharedArrayBuffer(pages * Uint16Array.BYTES_PER_ELEMENT);
  new Uint16Array(entries).set(of.entries);
  return {
    nodeid: of.nodeid,
    snapshot: of.snapshot,
    name: of.name,
    sizeBytes: of.sizeBytes,
    layers: of.layers,
    entries,
    underWay: new SharedArrayBuffer(Math.ceil(pages / 32) * Int32Array.BYTES_PER_ELEMENT),
    zeroWindows: newPushWindowsMemory(pages),
    layerWindows: newPushWindowsMemory(pages),
    touches: of.touches,
    counters: new SharedArrayBuffer(THREADS * COUNTERS * Float64Array.BYTES_PER_ELEMENT),
    readers: isMemory(of.name) ? newReaderCountsMemory() : undefined,
  };
}

/** True for the file that QEMU maps; disks are read past the kernel's cache (`Filesystem`). */
export function isMemory(objectName: string): boolean {
  return objectName === MEMORY_OBJECT;
}

export class ServedObject {
  readonly shared: SharedObject;
  readonly paged: PagedObject;
  readonly zeroWindows: PushWindows;
  readonly layerWindows: PushWindows;
  readonly isMemory: boolean;
  /** What clones of this snapshot and of older ones waited for first. */
  readonly touches: TouchRecord | undefined;
  readonly readers: ReaderCounts | undefined;
  /** This thread's own; nobody else writes it. */
  readonly counters: Float64Array;
  readonly #underWay: Int32Array;

  constructor(shared: SharedObject, thread: number) {
    this.shared = shared;
    this.isMemory = isMemory(shared.name);
    const entries = new Uint16Array(shared.entries);
    const layers = shared.layers.map(openedLayer);
    this.paged = new PagedObject({ entries, layers, sizeBytes: shared.sizeBytes });
    const bytes = COUNTERS * Float64Array.BYTES_PER_ELEMENT;
    this.counters = new Float64Array(shared.counters, thread * bytes, COUNTERS);
    this.#underWay = new Int32Array(shared.underWay);
    this.readers = shared.readers && new ReaderCounts(shared.readers);
    this.touches = shared.touches && new TouchRecord(shared.touches);
    this.zeroWindows = new PushWindows(shared.zeroWindows, entries.length);
    this.layerWindows = new PushWindows(shared.layerWindows, entries.length, LAYER_PATIENCE);
  }

  /** Whether the pages can be had without another host. */
  atHand(firstPage: number, count: number): boolean {
    return this.paged.isHere(firstPage, count);
  }

  /** The kernel forgot the file, and all that was pushed of it. */
  forgetPushes(): void {
    this.zeroWindows.forget();
    this.layerWindows.forget();
  }

  count(counter: number, by: number): void {
    this.counters[counter]! += by;
  }

  /** `thread`: the one that waited for them, as the READ names it. */
  countPages(source: Source, pages: number, thread: number): void {
    this.count(source, pages);
    const pid = this.readers && processOf(thread);
    if (pid !== undefined) this.readers?.count(pid, source, pages);
  }

  /** Of all threads together. */
  total(counter: number): number {
    const all = new Float64Array(this.shared.counters);
    let sum = 0;
    for (let thread = 0; thread < THREADS; thread += 1) sum += all[thread * COUNTERS + counter]!;
    return sum;
  }

  /**
   * What clones elsewhere are likely to touch, in that order: what was waited for here, and then what
   * was pushed beside it, which nobody had to ask for.
   */
  likelyTouches(): number[] {
    const pages = new Set(this.touches?.pages());
    for (const page of this.layerWindows.pushedPages()) {
      if (pages.size >= LIKELY_PAGES_MAX) break;
      if (!this.paged.isZero(page, 1)) pages.add(page);
    }
    return [...pages];
  }

  markUnderWay(firstPage: number, count: number): void {
    for (let page = firstPage; page < firstPage + count; page += 1) {
      Atomics.or(this.#underWay, page >>> 5, 1 << (page & 31));
    }
  }

  clearUnderWay(firstPage: number, count: number): void {
    for (let page = firstPage; page < firstPage + count; page += 1) {
      Atomics.and(this.#underWay, page >>> 5, ~(1 << (page & 31)));
    }
  }

  isUnderWay(page: number): boolean {
    return (Atomics.load(this.#underWay, page >>> 5) & (1 << (page & 31))) !== 0;
  }
}

function openedLayer({ held, ...layer }: LayerHandle): Layer {
  return held === undefined ? layer : { ...layer, held: HeldPages.at(held) };
}

/** Milliseconds that all threads of the process agree on, never 0, in 32 bits. */
export function clockMs(): number {
  return Math.floor(performance.timeOrigin + performance.now()) >>> 0 || 1;
}

/** How many pages a READ of so many bytes at `offset` covers. */
export function pagesCovered(offset: number, sizeBytes: number): number {
  return Math.ceil((offset + sizeBytes) / PAGE_BYTES) - Math.floor(offset / PAGE_BYTES);
}

/** The page that a READ wants, when it wants just one. */
export function onePageOf({ offset, sizeBytes }: ReadArguments): number | undefined {
  return sizeBytes === PAGE_BYTES && offset % PAGE_BYTES === 0 ? offset / PAGE_BYTES : undefined;
}
