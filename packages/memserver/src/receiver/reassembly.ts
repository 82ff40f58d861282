// Puts pages together from their pieces. Bounded in bytes and in time: the page begun first goes
// when there are too many. Knows nothing of who wants a page; called by the receiver for each
// piece, and keeps the memory of pages that are done for others.

import { PAGE_BYTES } from '../page-map.js';
import { type Piece, pieceBytes } from '../wire/datagrams.js';
import { allPieces } from '../wire/geometry.js';

/** 2 MiB for each receiver. */
export const ASSEMBLIES_MAX = 512;
/** Pieces that came so long ago are not waited for. */
export const ASSEMBLY_MS_MAX = 2000;

interface Assembly {
  readonly bytes: Buffer;
  /** Bits of those that came. */
  pieces: number;
  pieceCount: number;
  startedMs: number;
}

const NOTHING_CAME = { pieces: 0, pieceCount: 0 } as const;

export class Reassembly {
  /** `evicted`: for newer ones; `expired`: too old. */
  evicted = 0;
  expired = 0;
  /** In the order in which they were begun. */
  readonly #assemblies = new Map<number, Assembly>();
  /** Done with; at most ASSEMBLIES_MAX, with those above. */
  readonly #spare: Assembly[] = [];

  get size(): number {
    return this.#assemblies.size;
  }

  /** The page, until the next call, when this was its last piece. */
  put(key: number, piece: Piece, nowMs: number): Buffer | 'more' | 'duplicate' {
    let assembly = this.#assemblies.get(key);
    if (assembly !== undefined && assembly.pieceCount !== piece.pieceCount) {
      this.drop(key); // the server cuts otherwise now: what is here does not fit
      assembly = undefined;
    }
    assembly ??= this.#begin(key, piece.pieceCount, nowMs);
    const bit = 1 << piece.piece;
    if ((assembly.pieces & bit) !== 0) return 'duplicate';
    piece.data.copy(assembly.bytes, piece.piece * pieceBytes(piece.pieceCount));
    assembly.pieces |= bit;
    if (assembly.pieces !== allPieces(piece.pieceCount)) return 'more';
    this.drop(key);
    return assembly.bytes;
  }

  /** Bits of the pieces that lack, and of how many; both 0 when nothing came yet. */
  missing(key: number): { readonly pieces: number; readonly pieceCount: number } {
    const assembly = this.#assemblies.get(key);
    if (assembly === undefined) return NOTHING_CAME;
    const { pieceCount } = assembly;
    return { pieces: allPieces(pieceCount) & ~assembly.pieces, pieceCount };
  }

  drop(key: number): void {
    const assembly = this.#assemblies.get(key);
    if (assembly === undefined) return;
    this.#assemblies.delete(key);
    this.#spare.push(assembly);
  }

  /** Forgets what is too old; but not what is `wanted`: that is asked for piece by piece. */
  expire(nowMs: number, isWanted: (key: number) => boolean): void {
    for (const [key, { startedMs }] of this.#assemblies) {
      if (nowMs - startedMs < ASSEMBLY_MS_MAX) return;
      if (isWanted(key)) continue;
      this.drop(key);
      this.expired++;
    }
  }

  #begin(key: number, pieceCount: number, nowMs: number): Assembly {
    if (this.#assemblies.size === ASSEMBLIES_MAX) {
      const [oldest] = this.#assemblies.keys();
      this.drop(oldest!);
      this.evicted++;
    }
    const assembly = this.#spare.pop() ?? newAssembly();
    assembly.pieces = 0;
    assembly.pieceCount = pieceCount;
    assembly.startedMs = nowMs;
    this.#assemblies.set(key, assembly);
    return assembly;
  }
}

function newAssembly(): Assembly {
  const bytes = Buffer.allocUnsafeSlow(PAGE_BYTES);
  return { bytes, pieces: 0, pieceCount: 0, startedMs: 0 };
}
