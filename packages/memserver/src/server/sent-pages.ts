// What was sent on a flow of late, for lockstep: whether a page that a receiver asks for is still on
// its way to it. Bounded: the oldest are forgotten, and a page that is forgotten is sent
// as if for the first time. One in each flow; allocates nothing per page.

/** To the group: 0.6 s at 1 Gbit/s. */
export const SENT_PAGES_MAX = 16_384;
/** To one receiver: twice what it has under way. */
export const SENT_PAGES_OF_ONE_MAX = 1024;

/** What is known of a page that was sent. Valid until the next call. */
export interface SentPage {
  /** Of its last datagram. */
  sequence: number;
  sentMs: number;
  /** Bits of the pieces that went when it was last sent. */
  pieces: number;
  /** How often it was sent; what never came to one that was not there yet does not count. */
  times: number;
}

export class SentPages {
  readonly #slots = new Map<number, number>();
  readonly #keys: Float64Array;
  readonly #sequences: Uint32Array;
  readonly #sentMs: Float64Array;
  readonly #pieces: Uint8Array;
  readonly #times: Uint8Array;
  readonly #found: SentPage = { sequence: 0, sentMs: 0, pieces: 0, times: 0 };
  #next = 0;

  constructor(pagesMax: number) {
    this.#keys = new Float64Array(pagesMax).fill(-1);
    this.#sequences = new Uint32Array(pagesMax);
    this.#sentMs = new Float64Array(pagesMax);
    this.#pieces = new Uint8Array(pagesMax);
    this.#times = new Uint8Array(pagesMax);
  }

  get size(): number {
    return this.#slots.size;
  }

  find(key: number): SentPage | undefined {
    const slot = this.#slots.get(key);
    if (slot === undefined) return undefined;
    const found = this.#found;
    found.sequence = this.#sequences[slot]!;
    found.sentMs = this.#sentMs[slot]!;
    found.pieces = this.#pieces[slot]!;
    found.times = this.#times[slot]!;
    return found;
  }

  note(
    key: number,
    of: { sequence: number; sentMs: number; pieces: number; isRepair: boolean },
  ): void {
    const slot = this.#slots.get(key) ?? this.#newSlot(key);
    this.#sequences[slot] = of.sequence;
    this.#sentMs[slot] = of.sentMs;
    this.#pieces[slot] = of.pieces;
    this.#times[slot] = of.isRepair ? Math.min(this.#times[slot]! + 1, 255) : 1;
  }

  #newSlot(key: number): number {
    const slot = this.#next;
    this.#next = (slot + 1) % this.#keys.length;
    this.#slots.delete(this.#keys[slot]!);
    this.#keys[slot] = key;
    this.#slots.set(key, slot);
    return slot;
  }
}
