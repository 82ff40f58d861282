// Which pages of a stopped Linux guest are free: what a clone allocates from there it will overwrite, so nobody has to
// store or to fetch it. It owns the walk of the buddy allocator's free lists, found through VMCOREINFO; it trusts none of
// what it reads, ends within its budgets, and where anything does not add up it says that nothing is free, which is
// always correct and only slower. The freeze calls it once in each pause.
//
// The lists are walked rather than the array of struct pages, as the array grows with the RAM (64 bytes a page) and the
// number of free blocks does not. Only a block is taken whose struct page carries the buddy's mark, with the
// order of the list on which it was found. That makes it safe to read in the middle of a change: the allocator
// takes the mark off before it hands a block out, splits or joins it, and puts it on only where the whole block is
// free; so what a half-made change can show is a block too few, never one too many.
//
// Method: makedumpfile's `page_is_buddy` (by the array), and SnowFlock's first heuristic (EuroSys 2009, 4.3).

import { GuestMemory, type PageSource } from './guest-memory.js';
import { AbsentPageError, GuestLayoutError } from './layout-error.js';
import { PageTables } from './page-tables.js';
import { PAGE_BYTES, type TransferBuffer } from './process-memory.js';
import {
  LIST_HEAD_BYTES,
  type NoteLocation,
  parseVmcoreinfo,
  type Vmcoreinfo,
} from './vmcoreinfo.js';

/** Free blocks taken at most, the largest first. */
export const FREE_BLOCKS_MAX = 16_384;
/** Pages of the guest read at most: sizes the cache that the caller gives. */
export const INTROSPECTION_PAGES_MAX = 4096;

export interface FreePages {
  /** 1 for each free page of the RAM object, else 0. */
  readonly isFree: Uint8Array;
  readonly freePages: number;
  readonly freeBlocks: number;
  /** Pages of the guest that were read to find out. */
  readonly pagesRead: number;
  /** Lists that were left early: they were being changed, or what leads on is on another host. */
  readonly listsLeft: number;
  /** False when a budget ended the walk: there are more free pages. */
  readonly isComplete: boolean;
  /** Why nothing is free, if so. */
  readonly reason?: string;
}

const NODES_MAX = 64;
const ZONES_MAX = 8;
const SECTIONS_MAX = 8192; // 1 TiB in sections of 128 MiB
const SAMPLES_MAX = 16;
/** PAGE_POISON. Other fillings are nobody's to check, such as 0xcc where the kernel's init code was. */
const POISON = 0xaa;
const KERNEL_TEXT = 0xffff_ffff_8000_0000n;
const SECTION_IS_PRESENT = 0b11; // SECTION_MARKED_PRESENT | SECTION_HAS_MEM_MAP

/**
 * Never throws but what `source` throws. The guest must stand still for the answer to be worth anything;
 * on a running one it ends all the same, and what it read is in the caches then.
 */
export function findFreePages(options: {
  source: PageSource;
  note: NoteLocation | undefined;
  /** Scratch for the pages read. */
  cache: TransferBuffer;
  freeBlocksMax?: number;
}): FreePages {
  const memory = new GuestMemory(options.source, options.cache);
  const isFree = new Uint8Array(options.source.pages);
  try {
    if (options.note === undefined) throw new GuestLayoutError('the guest gave no VMCOREINFO');
    const { physicalAddress, sizeBytes } = options.note;
    const info = parseVmcoreinfo(memory.read(physicalAddress, sizeBytes));
    const tables = kernelTables(memory, info);
    const walk = new FreeListWalk({
      info,
      memory,
      isFree,
      pageArray: new PageArray(memory, tables, info),
      freeBlocksMax: options.freeBlocksMax ?? FREE_BLOCKS_MAX,
    });
    walk.walkZones(readZones(tables, info));
    const { freePages, freeBlocks, listsLeft, isComplete } = walk;
    const { pagesRead } = memory;
    return { isFree, freePages, freeBlocks, pagesRead, listsLeft, isComplete };
  } catch (error) {
    if (!(error instanceof GuestLayoutError)) throw error;
    return {
      isFree: new Uint8Array(options.source.pages),
      freePages: 0,
      freeBlocks: 0,
      pagesRead: memory.pagesRead,
      listsLeft: 0,
      isComplete: false,
      reason: error.message,
    };
  }
}

/** The free lists of one zone: a copy of its heads, and where the first of them is. */
interface Zone {
  readonly virtualAddress: bigint;
  readonly heads: Buffer;
}

class FreeListWalk {
  freePages = 0;
  freeBlocks = 0;
  listsLeft = 0;
  isComplete = true;
  #samples = 0;
  readonly #info: Vmcoreinfo;
  readonly #memory: GuestMemory;
  readonly #pageArray: PageArray;
  readonly #isFree: Uint8Array;
  readonly #freeBlocksMax: number;

  constructor(options: {
    info: Vmcoreinfo;
    memory: GuestMemory;
    pageArray: PageArray;
    isFree: Uint8Array;
    freeBlocksMax: number;
  }) {
    this.#info = options.info;
    this.#memory = options.memory;
    this.#pageArray = options.pageArray;
    this.#isFree = options.isFree;
    this.#freeBlocksMax = options.freeBlocksMax;
  }

  /** From the largest blocks down, so that a budget that ends the walk costs the smallest. */
  walkZones(zones: readonly Zone[]): void {
    const { orders, freeAreaBytes, freeListOffset, freeListTypes, listNextOffset } = this.#info;
    for (let order = orders - 1; order >= 0; order--) {
      for (const zone of zones) {
        for (let type = 0; type < freeListTypes && this.isComplete; type++) {
          const at = order * freeAreaBytes + freeListOffset + type * LIST_HEAD_BYTES;
          const head = BigInt.asUintN(64, zone.virtualAddress + BigInt(at));
          const first = zone.heads.readBigUInt64LE(at + listNextOffset);
          // A zone without memory never had its heads initialised: they are all zero.
          if (first !== head && first !== 0n) this.#walkAsFarAsIsHere(order, head, first);
        }
      }
    }
  }

  #walkAsFarAsIsHere(order: number, head: bigint, first: bigint): void {
    try {
      this.#walkList(order, head, first);
    } catch (error) {
      if (!(error instanceof AbsentPageError)) throw error;
      this.listsLeft++;
    }
  }

  /** Addresses are pairs of 32-bit words here: a BigInt for each block would be the slowest part. */
  #walkList(order: number, head: bigint, first: bigint): void {
    const { pageMapcountOffset, pagePrivateOffset, pageLruOffset, listNextOffset } = this.#info;
    const memory = this.#memory;
    const words = memory.words;
    const blockPages = 2 ** order;
    const headLow = Number(BigInt.asIntN(32, head));
    const headHigh = Number(BigInt.asIntN(32, head >> 32n));
    let low = Number(BigInt.asIntN(32, first));
    let high = Number(BigInt.asIntN(32, first >> 32n));
    for (let isFirst = true; low !== headLow || high !== headHigh; isFirst = false) {
      const frame = this.#pageArray.frameOfListEntry(low, high);
      const ramPage = this.#blockStart(frame, blockPages);
      const at = this.#freeBlocksMax === this.freeBlocks ? -1 : this.#pageArray.wordOf(frame);
      if (at < 0) {
        this.isComplete = false;
        return;
      }
      const isMarked = words[at + pageMapcountOffset / 4] === this.#info.buddyMapcount;
      const isOfOrder =
        words[at + pagePrivateOffset / 4] === order && words[at + pagePrivateOffset / 4 + 1] === 0;
      if (!isMarked || !isOfOrder) {
        this.listsLeft++;
        return;
      }
      if (isFirst && this.#samples < SAMPLES_MAX) {
        this.#samples++;
        checkPoison(memory, ramPage);
      }
      this.#isFree.fill(1, ramPage, ramPage + blockPages);
      this.freePages += blockPages;
      this.freeBlocks++;
      const next = at + (pageLruOffset + listNextOffset) / 4;
      low = words[next]!;
      high = words[next + 1]!;
    }
  }

  /**
   * The block's first page in the RAM object. Blocks are aligned and come largest first, so that two that
   * overlap, or a list that loops, show in the first page alone.
   */
  #blockStart(frame: number, blockPages: number): number {
    if (frame % blockPages !== 0) throw new GuestLayoutError('a free block is not aligned');
    const ramPage = this.#memory.ramPage(frame);
    const lastPage = this.#memory.ramPage(frame + blockPages - 1);
    if (ramPage < 0 || lastPage - ramPage !== blockPages - 1) {
      throw new GuestLayoutError('a free block lies outside of the RAM');
    }
    if (this.#isFree[ramPage] === 1) throw new GuestLayoutError('a block is free twice');
    return ramPage;
  }
}

/**
 * The guest's struct pages, one array in its virtual memory (SPARSEMEM_VMEMMAP). The array's own pages
 * lie anywhere in RAM, usually mapped in pieces of 2 MiB: each piece is translated once.
 */
class PageArray {
  readonly #memory: GuestMemory;
  readonly #tables: PageTables;
  readonly #virtualAddress: bigint;
  readonly #baseLow: number;
  readonly #baseHigh: number;
  readonly #lruOffset: number;
  readonly #structBytes: number;
  readonly #frames: number;
  /** Per page of the array: one more than the byte of the cache where it is; 0: not read yet. */
  readonly #offsets: Int32Array;
  /** Per piece of 2 MiB: physical address, or 0: not known. */
  readonly #pieces: Float64Array;

  constructor(memory: GuestMemory, tables: PageTables, info: Vmcoreinfo) {
    const base = pageArrayAddress(memory, tables, info);
    this.#memory = memory;
    this.#tables = tables;
    this.#virtualAddress = base;
    this.#baseLow = Number(base & 0xffff_ffffn);
    this.#baseHigh = Number(base >> 32n);
    this.#lruOffset = info.pageLruOffset;
    this.#structBytes = info.pageStructBytes;
    this.#frames = memory.physicalPagesEnd;
    const arrayPages = Math.ceil((this.#frames * this.#structBytes) / PAGE_BYTES);
    this.#offsets = new Int32Array(arrayPages);
    this.#pieces = new Float64Array(Math.ceil(arrayPages / PIECE_PAGES));
  }

  /** The number of the page whose struct has its `lru` at that address (two words, signed). */
  frameOfListEntry(low: number, high: number): number {
    const distance = ((high >>> 0) - this.#baseHigh) * 2 ** 32 + ((low >>> 0) - this.#baseLow);
    const frame = (distance - this.#lruOffset) / this.#structBytes;
    if (frame >= 0 && frame < this.#frames && Number.isInteger(frame)) return frame;
    throw new GuestLayoutError('a free list leads out of the page array');
  }

  /** Index into the memory's words where the page's struct begins, or −1: the budget is used up. */
  wordOf(frame: number): number {
    const byte = frame * this.#structBytes;
    const arrayPage = Math.floor(byte / PAGE_BYTES);
    let offset = this.#offsets[arrayPage]! - 1;
    if (offset < 0) {
      offset = this.#memory.pageOffset(this.#ramPageOf(arrayPage));
      if (offset < 0) return -1;
      this.#offsets[arrayPage] = offset + 1;
    }
    return (offset + (byte % PAGE_BYTES)) / 4;
  }

  #ramPageOf(arrayPage: number): number {
    const piece = Math.floor(arrayPage / PIECE_PAGES);
    if (this.#pieces[piece] === 0) {
      const pieceAddress = this.#virtualAddress + BigInt(piece * PIECE_PAGES * PAGE_BYTES);
      const { physicalAddress, lengthBytes } = this.#tables.translate(pieceAddress);
      // −1: mapped by small pages, each to be translated on its own.
      this.#pieces[piece] = lengthBytes >= PIECE_PAGES * PAGE_BYTES ? physicalAddress : -1;
    }
    let physicalAddress = this.#pieces[piece]! + (arrayPage % PIECE_PAGES) * PAGE_BYTES;
    if (this.#pieces[piece] === -1) {
      const address = this.#virtualAddress + BigInt(arrayPage * PAGE_BYTES);
      physicalAddress = this.#tables.translate(address).physicalAddress;
    }
    const ramPage = this.#memory.ramPage(Math.floor(physicalAddress / PAGE_BYTES));
    if (ramPage < 0) throw new GuestLayoutError('the page array lies outside of the RAM');
    return ramPage;
  }
}

const PIECE_PAGES = 512;

/** Kernel text and data are where `phys_base` says; all else through the tables that lie there. */
function kernelTables(memory: GuestMemory, info: Vmcoreinfo): PageTables {
  const rootAddress = Number(info.pageTable - KERNEL_TEXT + info.physicalBase);
  const { pageTableLevels: levels, encryptionMask } = info;
  return new PageTables(memory, { rootAddress, levels, encryptionMask });
}

/**
 * Where the array of struct pages begins. Every present section says it (its map's address less what lies
 * before it, with flags in the low bits), and all must say the same.
 */
function pageArrayAddress(memory: GuestMemory, tables: PageTables, info: Vmcoreinfo): bigint {
  const sections = Math.ceil(memory.physicalPagesEnd / 2 ** info.sectionPagesLog2);
  if (sections > SECTIONS_MAX) throw new GuestLayoutError(`a RAM of ${sections} sections`);
  const perRoot = Math.floor(PAGE_BYTES / info.memSectionBytes);
  const isPointer = info.memSection >= KERNEL_TEXT;
  const roots = isPointer ? pointerAt(tables, info.memSection) : info.memSection;
  let found: bigint | undefined;
  for (let section = 0; section < sections; section += perRoot) {
    const root = section / perRoot;
    const pointer = root < info.memSectionRoots ? pointerAt(tables, roots + BigInt(root * 8)) : 0n;
    if (pointer === 0n) continue;
    const count = Math.min(perRoot, sections - section);
    const entries = tables.read(pointer, count * info.memSectionBytes);
    for (let i = 0; i < count; i++) {
      const map = entries.readBigUInt64LE(i * info.memSectionBytes + info.memSectionMapOffset);
      if ((Number(map & 0xfffn) & SECTION_IS_PRESENT) !== SECTION_IS_PRESENT) continue;
      const address = map & ~0xfffn;
      found ??= address;
      if (found !== address) throw new GuestLayoutError('the page array is in several parts');
    }
  }
  if (found === undefined) throw new GuestLayoutError('no memory section is present');
  return found;
}

function readZones(tables: PageTables, info: Vmcoreinfo): Zone[] {
  const zones: Zone[] = [];
  for (const node of nodeAddresses(tables, info)) {
    const countAddress = node + BigInt(info.nodeZoneCountOffset);
    const count = tables.read(countAddress, 4).readUInt32LE();
    if (count > ZONES_MAX) throw new GuestLayoutError(`a node of ${count} zones`);
    for (let i = 0; i < count; i++) {
      const offset = info.nodeZonesOffset + i * info.zoneBytes + info.zoneFreeAreaOffset;
      const virtualAddress = node + BigInt(offset);
      const heads = tables.read(virtualAddress, info.orders * info.freeAreaBytes);
      zones.push({ virtualAddress, heads });
    }
  }
  return zones;
}

function nodeAddresses(tables: PageTables, info: Vmcoreinfo): bigint[] {
  if ('only' in info.nodes) return [info.nodes.only];
  const { pointers, online, length } = info.nodes;
  const count = Math.min(length, NODES_MAX);
  const bits = tables.read(online, 8).readBigUInt64LE();
  const addresses: bigint[] = [];
  for (let node = 0; node < count; node++) {
    if (((bits >> BigInt(node)) & 1n) === 0n) continue;
    addresses.push(pointerAt(tables, pointers + BigInt(node * 8)));
  }
  return addresses;
}

function pointerAt(tables: PageTables, virtualAddress: bigint): bigint {
  return tables.read(virtualAddress, 8).readBigUInt64LE();
}

/**
 * A kernel that fills free pages with a pattern (`page_poison=1`) checks it when it hands them out, and would
 * cry corruption at zeros. It fills all of them, so a few samples tell.
 */
function checkPoison(memory: GuestMemory, ramPage: number): void {
  if (memory.pageOffset(ramPage) < 0) return; // the budget is used up: the walk ends with it
  const page = memory.page(ramPage);
  const isPoisoned =
    page[0] === POISON && page.compare(page, 1, PAGE_BYTES, 0, PAGE_BYTES - 1) === 0;
  if (isPoisoned) throw new GuestLayoutError('the guest poisons its free pages');
}
