// Memory of the agent that a pause copies guest pages into. A fresh page costs a page fault, 1 to 10 µs, so the memory is
// touched before the pause, and some of it is kept from one freeze to the next. It owns how much there is;
// it never looks into a page. Used by `freeze-memory.ts`.

import { createTransferBuffer, PAGE_BYTES, type TransferBuffer } from './process-memory.js';

/** Pages of one piece: 1 MiB, what one system call copies. */
export const PIECE_PAGES = 256;
/** All freezes together take no more: 256 MiB. What does not fit is stored within the pause. */
export const RESERVE_PIECES_MAX = 256;
/** Kept for good: 32 MiB. What a freeze took beyond that is kept for the next one that comes soon. */
export const RESERVE_PIECES_KEPT = 32;
export const RESERVE_IDLE_MS = 60_000;

/** Copies of the pages listed in the first `length` entries of `pages`, without gaps. */
export interface ReservePiece {
  readonly buffer: TransferBuffer;
  readonly pages: Int32Array;
  length: number;
}

export class PageReserve {
  readonly #idle: ReservePiece[] = [];
  #pieces = 0;
  #trimTimer: NodeJS.Timeout | undefined;

  /** Pieces that nobody uses. */
  get idlePieces(): number {
    return this.#idle.length;
  }

  /** Has `pieces` pieces ready, as far as the bound allows. */
  prepare(pieces: number): void {
    while (this.#idle.length < pieces && this.#pieces < RESERVE_PIECES_MAX) {
      this.#idle.push(this.#create());
    }
  }

  /** Undefined when all are in use: the caller has to make do with those that it took. */
  take(): ReservePiece | undefined {
    const piece = this.#idle.pop();
    if (piece !== undefined) return piece;
    return this.#pieces < RESERVE_PIECES_MAX ? this.#create() : undefined;
  }

  /** What is not worth keeping is let go when no freeze has needed it for a while. */
  giveBack(piece: ReservePiece): void {
    piece.length = 0;
    this.#idle.push(piece);
    clearTimeout(this.#trimTimer);
    this.#trimTimer = setTimeout(() => this.#trim(), RESERVE_IDLE_MS).unref();
  }

  #trim(): void {
    const dropped = Math.max(0, this.#idle.length - RESERVE_PIECES_KEPT);
    this.#idle.length -= dropped;
    this.#pieces -= dropped;
  }

  #create(): ReservePiece {
    this.#pieces++;
    const buffer = createTransferBuffer(PIECE_PAGES);
    for (let at = 0; at < buffer.bytes.length; at += PAGE_BYTES) buffer.bytes[at] = 0;
    return { buffer, pages: new Int32Array(PIECE_PAGES), length: 0 };
  }
}
