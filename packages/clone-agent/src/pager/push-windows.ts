// Which pages to push into the kernel's page cache when one beside them is touched, so that a guest
// that goes through memory does not pay a round trip per page. Decides; pushes nothing
// (`store-worker.ts`). Pages of zeros and pages of layers have windows of their own. Lies in memory
// that all threads share; two threads that decide at once may both push a window, which costs time and
// no more.
//
// A touch where nothing around was pushed pushes 64 KiB, so that a stray one costs 16 pages of cache;
// with `patience` only after so many touches of the same 64 KiB. A touch beside what was pushed pushes
// twice as much, up to a window of 2 MiB. Such a stream is overtaken: one window is pushed ahead of the
// one it works in. What was pushed is not asked for, so windows would be entered unseen; their first
// and last pages are left out for that.
//
//   pages   0   1            510  511 512             1022 1023
//         +---+------------------+---+---+------------------+---+
//         | ? | pushed           | ? | ? | pushed ahead     | ? |   ?: a READ tells where the stream is
//         +---+------------------+---+---+------------------+---+
//
// A guest that clears a huge page (2 MiB) does so from its end to its beginning, and the next huge
// page after it: the window's size and both its ends serve that too.

/** 64 KiB, as much as the kernel maps around a fault. */
export const BLOCK_PAGES = 16;
/** A window is 2^5 blocks. */
const LEVEL_MAX = 6;
const WINDOW_BLOCKS = 1 << (LEVEL_MAX - 1);
export const WINDOW_PAGES = WINDOW_BLOCKS * BLOCK_PAGES;
/** Pages that are asked for so long after they were pushed were reclaimed by the kernel. */
const PUSH_AGAIN_MS = 1000;

export interface PushWindowsMemory {
  /** When each block was pushed, u32 ms of `clockMs`; 0 is never. */
  readonly pushedAt: SharedArrayBuffer;
  /** 1 + log2 of the blocks that were pushed with it. */
  readonly levels: SharedArrayBuffer;
  /** Touches that pushed nothing. */
  readonly strays: SharedArrayBuffer;
}

export function newPushWindowsMemory(pageCount: number): PushWindowsMemory {
  const blocks = Math.ceil(pageCount / BLOCK_PAGES);
  return {
    pushedAt: new SharedArrayBuffer(blocks * Uint32Array.BYTES_PER_ELEMENT),
    levels: new SharedArrayBuffer(blocks),
    strays: new SharedArrayBuffer(blocks),
  };
}

/** Never pushed, so that entering the window is seen. */
export function isMarker(page: number): boolean {
  const place = page % WINDOW_PAGES;
  return place === 0 || place === WINDOW_PAGES - 1;
}

export class PushWindows {
  readonly #pushedAt: Uint32Array;
  readonly #levels: Uint8Array;
  readonly #strays: Uint8Array;
  readonly #blocks: number;
  readonly #pageCount: number;
  readonly #patience: number;
  /** The range to push, after `touch` said so. */
  firstPage = 0;
  count = 0;

  /** @param patience touches of a block that push nothing, unless it lies beside what was pushed */
  constructor(memory: PushWindowsMemory, pageCount: number, patience = 0) {
    this.#pushedAt = new Uint32Array(memory.pushedAt);
    this.#levels = new Uint8Array(memory.levels);
    this.#strays = new Uint8Array(memory.strays);
    this.#blocks = this.#levels.length;
    this.#pageCount = pageCount;
    this.#patience = patience;
  }

  /** A page was asked for: whether something is to be pushed, and what. */
  touch(page: number, nowMs: number): boolean {
    const block = Math.floor(page / BLOCK_PAGES);
    this.count = 0;
    if (!this.#isPushed(block, nowMs)) {
      if (this.#isStray(block)) return false;
      this.#claimAround(block, nowMs);
    } else if (!isMarker(page)) return false;
    if (this.#levels[block] === LEVEL_MAX) this.#claimAhead(block, nowMs);
    return this.count > 0;
  }

  /** Pages that were pushed, in that order, block by block. */
  *pushedPages(): Generator<number> {
    const pushed: number[] = [];
    for (let block = 0; block < this.#blocks; block += 1) {
      if (this.#pushedAt[block] !== 0) pushed.push(block);
    }
    pushed.sort((a, b) => this.#pushedAt[a]! - this.#pushedAt[b]!);
    for (const block of pushed) {
      const end = Math.min((block + 1) * BLOCK_PAGES, this.#pageCount);
      for (let page = block * BLOCK_PAGES; page < end; page += 1) yield page;
    }
  }

  /** The kernel forgot the file, and so all that was pushed. */
  forget(): void {
    this.#pushedAt.fill(0);
    this.#levels.fill(0);
    this.#strays.fill(0);
  }

  #isStray(block: number): boolean {
    if (this.#strays[block]! >= this.#patience || this.#levelFor(block) > 1) return false;
    this.#strays[block]! += 1;
    return true;
  }

  #isPushed(block: number, nowMs: number): boolean {
    const at = this.#pushedAt[block] ?? 0;
    return at !== 0 && (nowMs - at) >>> 0 < PUSH_AGAIN_MS;
  }

  #claimAround(block: number, nowMs: number): void {
    const level = this.#levelFor(block);
    const blocks = 1 << (level - 1);
    const start = block - (block % blocks);
    const limit = Math.min(start + blocks, this.#blocks);
    let first = block;
    while (first > start && !this.#isPushed(first - 1, nowMs)) first -= 1;
    let end = block + 1;
    while (end < limit && !this.#isPushed(end, nowMs)) end += 1;
    this.#claim(first, end, level, nowMs);
  }

  /** The window after this one, seen the way the stream goes. */
  #claimAhead(block: number, nowMs: number): void {
    const start = block - (block % WINDOW_BLOCKS);
    const end = start + WINDOW_BLOCKS;
    const below = this.#isPushed(start - 1, nowMs);
    const above = this.#isPushed(end, nowMs);
    if (below && !above && end < this.#blocks) {
      this.#claim(end, Math.min(end + WINDOW_BLOCKS, this.#blocks), LEVEL_MAX, nowMs);
    } else if (above && !below && start > 0) {
      this.#claim(start - WINDOW_BLOCKS, start, LEVEL_MAX, nowMs);
    }
  }

  /** Adds blocks to the range; those of a window and of the next one touch. */
  #claim(first: number, end: number, level: number, nowMs: number): void {
    this.#pushedAt.fill(nowMs, first, end);
    this.#levels.fill(level, first, end);
    const firstPage = first * BLOCK_PAGES;
    const endPage = Math.min(end * BLOCK_PAGES, this.#pageCount);
    const claimedEnd = this.firstPage + this.count;
    const from = this.count === 0 ? firstPage : Math.min(this.firstPage, firstPage);
    const to = this.count === 0 ? endPage : Math.max(claimedEnd, endPage);
    this.firstPage = from;
    this.count = to - from;
  }

  #levelFor(block: number): number {
    const levels = this.#levels;
    if (levels[block] !== 0) return levels[block]!;
    const start = block - (block % WINDOW_BLOCKS);
    const end = start + WINDOW_BLOCKS;
    for (const edge of [start - WINDOW_BLOCKS, start - 1, end, end + WINDOW_BLOCKS - 1]) {
      if (levels[edge] === LEVEL_MAX) return LEVEL_MAX;
    }
    const neighbour = Math.max(levels[block - 1] ?? 0, levels[block + 1] ?? 0);
    return Math.min(neighbour + 1, LEVEL_MAX);
  }
}
