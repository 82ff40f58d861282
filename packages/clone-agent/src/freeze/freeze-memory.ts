// Freezes the RAM of a stopped VM into a new snapshot's page map and layer. It owns the new layer's file until `finish`
// or `abandon`; it never stops or resumes the VM and writes nothing else. The agent calls `prepareFreeze` while the VM
// still runs, `run` in the pause, and one of `finish` and `abandon` after it.
//
// What a page of the new snapshot is:
//
//   the VM wrote it    → free in the guest, or all zero                       → zero
//   (private)          → not written since the newest snapshot                → what that one says
//                      → equal to the newest snapshot's                       → that one's layer
//                      → else                                                 → the new layer
//   it did not         → free in the guest                                    → zero
//                      → else                                                 → what its snapshot says (base)
//
// For a page that the VM did not write, base decides and not the newest snapshot: base is what its mapping shows. The
// newest snapshot has zero for a page that was free then; the guest may have taken it since without writing all of it.
// For the same reason a private page that was free then counts as written since, as all do where nobody can tell
// (`write-tracker.ts`).
//
// The pause only finds the private pages and the free ones, and copies what was written and is not free into memory of the
// agent; telling the copies apart and storing them (a page of a tmpfs file costs several times its copy) comes after it, as
// does all that has to be done for each page of the RAM.

import fs from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import { ZERO_PAGE } from '@snowfork/memserver/pages';
import { type PageCounts, SnowforkError } from '@snowfork/sdk/api';
import { type FreePages, findFreePages, INTROSPECTION_PAGES_MAX } from './free-pages.js';
import type { PageSource } from './guest-memory.js';
import {
  dropUnusedLayers,
  type JoinedStacks,
  joinStacks,
  type LayerFile,
  LayerReaders,
  type LayerStack,
  layerFailure,
} from './layer-stack.js';
import { AbsentPageError } from './layout-error.js';
import {
  PageReserve,
  PIECE_PAGES,
  RESERVE_PIECES_KEPT,
  type ReservePiece,
} from './page-reserve.js';
import {
  createTransferBuffer,
  joinRuns,
  PAGE_BYTES,
  type PageRuns,
  ProcessMemory,
  type TransferBuffer,
} from './process-memory.js';
import type { NoteLocation } from './vmcoreinfo.js';
import type { WriteTracker } from './write-tracker.js';

export interface FreezeMemoryOptions {
  /** QEMU's process. */
  readonly pid: number;
  /** The RAM's file, as /proc/PID/maps shows it. */
  readonly ramPath: string;
  /** What the file shows: the snapshot that the VM was cloned from. */
  readonly base: LayerStack;
  /** The newest snapshot frozen from this VM; `base` when there is none. */
  readonly last: LayerStack;
  readonly newLayer: LayerFile;
  /** Tells what QEMU wrote since `last`, which has this id; without it, all that is private counts as written. */
  readonly writes?: { readonly tracker: WriteTracker; readonly last: string } | undefined;
  /** Where the guest has its VMCOREINFO, if that is known already; see `run`. */
  readonly note?: NoteLocation | undefined;
}

export interface FrozenMemory extends LayerStack {
  readonly counts: PageCounts;
  /** Size of the new layer on the tmpfs; 0 when nothing was stored, and then there is no file. */
  readonly storedBytes: number;
  readonly free: Omit<FreePages, 'isFree'>;
  /** Of the pause. */
  readonly partsMs: FreezePartsMs;
}

export interface FreezePartsMs {
  readonly privatePages: number;
  readonly freePages: number;
  readonly copy: number;
}

/**
 * While the VM still runs: opens all that is needed, and reads what the pause will read, so that it is in the caches.
 *
 * @throws SnowforkError SF_VM_GONE, SF_QEMU_FAILED, SF_LAYERS_FULL; nothing is left behind then.
 */
export function prepareFreeze(options: FreezeMemoryOptions): MemoryFreeze {
  return new MemoryFreeze(options);
}

/** Keeps memory ready for a freeze of up to 32 MiB; for an agent that has nothing else to do. */
export function warmFreezeReserve(): void {
  reserve.prepare(RESERVE_PIECES_KEPT);
}

const reserve = new PageReserve();
// One search at a time uses these, as none of them waits.
const introspectionCache = createTransferBuffer(INTROSPECTION_PAGES_MAX);
const layerPages = Buffer.allocUnsafeSlow(PIECE_PAGES * PAGE_BYTES);
const zeroPage = Buffer.alloc(PAGE_BYTES);

export class MemoryFreeze {
  readonly #options: FreezeMemoryOptions;
  readonly #memory: ProcessMemory;
  readonly #stacks: JoinedStacks;
  readonly #readers: LayerReaders;
  readonly #layerFd: number;
  /** The new map, in the numbers of the joined stack. */
  readonly #entries: Uint16Array<ArrayBuffer>;
  readonly #newEntry: number;
  /** Private pages, as far as it is known. */
  #private: PageRuns;
  /** 1 for each page for which the newest snapshot can't decide. */
  readonly #isStale: Uint8Array;
  /** Whether what the VM writes from the pause on is told to the next freeze. */
  #isTracked = false;
  /** Copied and not yet told apart. */
  readonly #copies: ReservePiece[] = [];
  #state: 'prepared' | 'run' | 'ended' = 'prepared';
  #free: FreePages | undefined;
  #absent: readonly number[] = [];
  #partsMs: FreezePartsMs = { privatePages: 0, freePages: 0, copy: 0 };
  #zeroPages = 0;
  #referencedPages = 0;
  #storedPages = 0;

  constructor(options: FreezeMemoryOptions) {
    const memory = new ProcessMemory({ pid: options.pid, path: options.ramPath });
    this.#options = options;
    this.#memory = memory;
    try {
      this.#stacks = joinStacks(options.base, options.last, memory.mapping.pages);
      this.#readers = new LayerReaders(this.#stacks.layers);
      this.#newEntry = this.#stacks.layers.length + 1;
      this.#entries = options.base.map.entries.slice();
      this.#layerFd = createLayer(options.newLayer.path, memory.mapping.pages);
    } catch (error) {
      memory.close();
      throw error;
    }
    try {
      // In this order: what becomes private in between is told by the pause, as it was written since.
      this.#isStale = this.#lookAtWrites();
      this.#private = memory.privatePages();
      const { isFree } = this.#findFree(options.note);
      const copies = countCopies(this.#private, isFree, this.#isStale);
      reserve.prepare(Math.ceil((copies * 9) / 8 / PIECE_PAGES) + 1);
    } catch (error) {
      this.abandon();
      throw error;
    }
  }

  /** Pages of other hosts that the last search would have read, and that are not here. */
  get absentPages(): readonly number[] {
    return this.#absent;
  }

  /** Before the pause: some of the absent pages have come. */
  searchAgain(): void {
    this.#expect('prepared');
    this.#findFree(this.#options.note);
  }

  /**
   * In the pause. Synchronous: a switch to other work would be part of the pause.
   *
   * @param note Where the guest has its VMCOREINFO; without it no page counts as free.
   * @throws SnowforkError SF_VM_GONE, SF_QEMU_FAILED, SF_LAYERS_FULL; the new layer is gone then.
   */
  run(note: NoteLocation | undefined = this.#options.note): void {
    this.#expect('prepared');
    this.#state = 'run';
    try {
      const since = stopwatch();
      this.#private = this.#findPrivate();
      const privatePages = since();
      this.#free = this.#findFree(note);
      const freePages = since();
      this.#copyPages(this.#private, this.#free.isFree);
      this.#partsMs = { privatePages, freePages, copy: since() };
    } catch (error) {
      this.abandon();
      throw error;
    }
  }

  /**
   * After the pause: stores the copies; then the new layer's file is the caller's.
   *
   * @throws SnowforkError SF_LAYERS_FULL; the new layer is gone then, the VM was not touched.
   */
  async finish(): Promise<FrozenMemory> {
    this.#expect('run');
    try {
      for (let piece = this.#copies.at(-1); piece !== undefined; piece = this.#copies.at(-1)) {
        this.#settle(piece);
        this.#copies.pop();
        reserve.giveBack(piece);
        await setImmediate(); // others wait for the agent too
        this.#expect('run');
      }
    } catch (error) {
      this.abandon();
      throw error;
    }
    this.#end();
    if (this.#storedPages === 0) fs.rmSync(this.#options.newLayer.path, { force: true });
    const { isFree, ...free } = this.#free!;
    this.#referToUnwritten(isFree);
    zeroWhereFree(this.#entries, isFree);
    const layers = [...this.#stacks.layers, this.#options.newLayer];
    return {
      ...dropUnusedLayers(this.#entries, layers),
      counts: {
        totalPages: this.#entries.length,
        privatePages: this.#private.pages,
        freePages: free.freePages,
        zeroPages: this.#zeroPages,
        referencedPages: this.#referencedPages,
        storedPages: this.#storedPages,
      },
      storedBytes: this.#storedPages * PAGE_BYTES,
      free,
      partsMs: this.#partsMs,
    };
  }

  /** The snapshot `id`, made of what `finish` gave, is the VM's newest now. */
  confirm(id: string): void {
    if (this.#isTracked) this.#options.writes!.tracker.settle(id, this.#free!.isFree);
  }

  /** Ends the freeze without a snapshot, at any time but twice; the new layer's file is removed. */
  abandon(): void {
    if (this.#state === 'ended') return;
    this.#end();
    fs.rmSync(this.#options.newLayer.path, { force: true });
  }

  #expect(state: 'prepared' | 'run'): void {
    if (this.#state === state) return;
    throw new SnowforkError('SF_INTERNAL', `a freeze that is ${this.#state} was to be ${state}`);
  }

  #end(): void {
    this.#state = 'ended';
    for (const piece of this.#copies) reserve.giveBack(piece);
    this.#copies.length = 0;
    this.#memory.close();
    this.#readers.close();
    fs.closeSync(this.#layerFd);
  }

  #lookAtWrites(): Uint8Array {
    const { writes } = this.#options;
    const isStale = writes?.tracker.look(this.#memory, writes.last);
    if (isStale === undefined) return new Uint8Array(this.#entries.length).fill(1);
    return this.#stacks.isLastWhole ? isStale : isStale.fill(1);
  }

  #findPrivate(): PageRuns {
    const written = this.#options.writes?.tracker.take(this.#memory);
    this.#isTracked = written !== undefined;
    // What has become private since the first look was written since.
    if (written !== undefined) return joinRuns(this.#private, written);
    this.#isStale.fill(1);
    return this.#memory.privatePages();
  }

  #findFree(note: NoteLocation | undefined): FreePages {
    const { entries } = this.#options.base.map;
    const source = new FrozenPages(this.#private, this.#memory, this.#readers, entries);
    const free = findFreePages({ source, note, cache: introspectionCache });
    this.#absent = source.absent;
    return free;
  }

  #copyPages(runs: PageRuns, isFree: Uint8Array): void {
    const { starts, counts } = runs;
    let piece = this.#takePiece();
    for (let run = 0; run < runs.length; run++) {
      const end = starts[run]! + counts[run]!;
      for (let page = starts[run]!; page < end; page++) {
        if (isFree[page] === 1 || this.#isStale[page] === 0) continue;
        if (piece.length === PIECE_PAGES) {
          this.#memory.readPages(piece.pages, piece.length, piece.buffer);
          piece = this.#takePiece();
        }
        piece.pages[piece.length++] = page;
      }
    }
    this.#memory.readPages(piece.pages, piece.length, piece.buffer);
  }

  #referToUnwritten(isFree: Uint8Array): void {
    const { starts, counts, length } = this.#private;
    for (let run = 0; run < length; run++) {
      const end = starts[run]! + counts[run]!;
      for (let page = starts[run]!; page < end; page++) {
        if (isFree[page] === 1 || this.#isStale[page] === 1) continue;
        const entry = this.#stacks.lastEntry(page);
        this.#entries[page] = entry;
        if (entry === ZERO_PAGE) this.#zeroPages++;
        else this.#referencedPages++;
      }
    }
  }

  /** The piece is among the copies at once, so that it is given back whatever happens. */
  #takePiece(): ReservePiece {
    let piece = reserve.take();
    if (piece === undefined) {
      // The reserve is used up: what should come after the pause has to be done in it.
      piece = this.#copies.at(-1);
      if (piece === undefined) {
        throw new SnowforkError('SF_NO_ROOM', 'other freezes use all memory for copies: try again');
      }
      this.#settle(piece);
      this.#copies.pop();
      piece.length = 0;
    }
    this.#copies.push(piece);
    return piece;
  }

  /** Decides for each page of the piece, and stores those that are to be stored, run by run. */
  #settle(piece: ReservePiece): void {
    const { pages, length } = piece;
    this.#readLastPages(piece);
    let storeFrom = -1; // first of a run to be stored
    for (let i = 0; i < length; i++) {
      const page = pages[i]!;
      const entry = this.#decide(piece, i);
      this.#entries[page] = entry;
      if (storeFrom >= 0 && (entry !== this.#newEntry || pages[i - 1] !== page - 1)) {
        this.#store(piece, storeFrom, i);
        storeFrom = -1;
      }
      if (entry === this.#newEntry && storeFrom < 0) storeFrom = i;
    }
    if (storeFrom >= 0) this.#store(piece, storeFrom, length);
  }

  #decide(piece: ReservePiece, index: number): number {
    const { bytes, words } = piece.buffer;
    const from = index * PAGE_BYTES;
    const to = from + PAGE_BYTES;
    // One word tells most pages from zeros without a call.
    if (words[from / 4] === 0 && bytes.compare(zeroPage, 0, PAGE_BYTES, from, to) === 0) {
      this.#zeroPages++;
      return ZERO_PAGE;
    }
    const entry = this.#stacks.lastEntry(piece.pages[index]!);
    if (entry !== ZERO_PAGE && this.#readers.isReadable(entry)) {
      if (bytes.compare(layerPages, from, to, from, to) === 0) {
        this.#referencedPages++;
        return entry;
      }
    }
    this.#storedPages++;
    return this.#newEntry;
  }

  /** Puts what the newest snapshot has for the piece's pages into `layerPages`, one read a run. */
  #readLastPages({ pages, length }: ReservePiece): void {
    for (let i = 0; i < length; ) {
      const first = i;
      const entry = this.#stacks.lastEntry(pages[first]!);
      for (i++; i < length; i++) {
        if (pages[i] !== pages[i - 1]! + 1 || this.#stacks.lastEntry(pages[i]!) !== entry) break;
      }
      if (entry === ZERO_PAGE) continue;
      this.#readers.read(entry, pages[first]!, i - first, layerPages, first * PAGE_BYTES);
    }
  }

  #store({ pages, buffer }: ReservePiece, from: number, to: number): void {
    const end = to * PAGE_BYTES;
    let position = pages[from]! * PAGE_BYTES;
    try {
      for (let at = from * PAGE_BYTES; at < end; ) {
        const written = fs.writeSync(this.#layerFd, buffer.bytes, at, end - at, position);
        at += written;
        position += written;
      }
    } catch (error) {
      throw layerFailure(error);
    }
  }
}

/** Empty, and as long as the object, so that reading it never comes up short. */
function createLayer(path: string, pages: number): number {
  let fd: number | undefined;
  try {
    fd = fs.openSync(path, 'wx', 0o600);
    fs.ftruncateSync(fd, pages * PAGE_BYTES);
    return fd;
  } catch (error) {
    if (fd !== undefined) {
      fs.closeSync(fd);
      fs.rmSync(path, { force: true });
    }
    throw layerFailure(error);
  }
}

function countCopies(
  { starts, counts, length }: PageRuns,
  isFree: Uint8Array,
  isStale: Uint8Array,
): number {
  let copies = 0;
  for (let run = 0; run < length; run++) {
    const end = starts[run]! + counts[run]!;
    for (let page = starts[run]!; page < end; page++) {
      if (isFree[page] === 0 && isStale[page] === 1) copies++;
    }
  }
  return copies;
}

/** Milliseconds since it was asked last. */
function stopwatch(): () => number {
  let last = performance.now();
  return () => {
    const now = performance.now();
    const passed = now - last;
    last = now;
    return passed;
  };
}

function zeroWhereFree(entries: Uint16Array, isFree: Uint8Array): void {
  for (let page = 0; page < entries.length; page++) {
    if (isFree[page] === 1) entries[page] = ZERO_PAGE;
  }
}

/**
 * The RAM of the VM for the walk of its free lists. A page that the VM did not write is read from its
 * layer: through the mapping it would be a fault, and so a round trip to the pager, and the agent
 * would stand still for as long as a host that is gone does not answer.
 */
class FrozenPages implements PageSource {
  readonly pages: number;
  /** Asked for, and not on this host. */
  readonly absent: number[] = [];
  readonly #runs: PageRuns;
  readonly #memory: ProcessMemory;
  readonly #readers: LayerReaders;
  readonly #base: Uint16Array;

  constructor(runs: PageRuns, memory: ProcessMemory, readers: LayerReaders, base: Uint16Array) {
    this.pages = memory.mapping.pages;
    this.#runs = runs;
    this.#memory = memory;
    this.#readers = readers;
    this.#base = base;
  }

  readPage(page: number, target: TransferBuffer, offset: number): void {
    const entry = this.#base[page]!;
    if (this.#isPrivate(page)) {
      this.#memory.readRange(page, 1, target, offset);
    } else if (entry === ZERO_PAGE) {
      target.bytes.fill(0, offset, offset + PAGE_BYTES);
    } else if (!this.#readers.readIfHere(entry, page, target.bytes, offset)) {
      this.absent.push(page);
      throw new AbsentPageError(page);
    }
  }

  /** By bisection: the last run that begins at or before the page. */
  #isPrivate(page: number): boolean {
    const { starts, counts } = this.#runs;
    let low = 0;
    let high = this.#runs.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (starts[middle]! <= page) low = middle + 1;
      else high = middle;
    }
    return low > 0 && page < starts[low - 1]! + counts[low - 1]!;
  }
}
