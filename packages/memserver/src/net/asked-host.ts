// Whom a receiver asks: the memory server that has the snapshot, or a neighbour that fetches it as
// well. Only where multicast does not reach is a neighbour asked: where it does, all are served by
// one datagram. A neighbour that is silent or slow is given up for good. One for each connection.

import type { Address } from '../server/known-receivers.js';
import { CHANNEL, type Channel } from '../wire/datagrams.js';

/** A neighbour that says nothing at all for so long while pages are wanted is gone. */
const SILENT_MS_MAX = 1000;
/** It may have to fetch a page through hosts before it: longer than this is no help. */
const PATIENCE_MS_MAX = 4000;
/** Of the time after which a page is lost: the rest is for asking its origin. */
const SILENT_SHARE = 1 / 8;
const PATIENCE_SHARE = 1 / 2;
const LOOKS = 4;
/** After it was given up, what it was asked for before may still be answered by it. */
const LATE_MS = 1000;

/** What there is to know of the receiver. */
export interface Asking {
  readonly delivery: Channel;
  readonly isUndecided: boolean;
  /** `wantedMs` is Infinity when nothing is wanted. */
  readonly waiting: { readonly heardMs: number; readonly wantedMs: number };
}

export class AskedHost {
  readonly #origin: Address;
  readonly #silentMs: number;
  readonly #patienceMs: number;
  #neighbour: Address | undefined;
  #turnedMs = Number.POSITIVE_INFINITY;
  #lookAtMs = 0;
  #givenUpMs = Number.NEGATIVE_INFINITY;

  constructor(of: { origin: Address; neighbour?: Address | undefined; lostAfterMs: number }) {
    this.#origin = of.origin;
    this.#neighbour = of.neighbour;
    this.#silentMs = Math.min(SILENT_MS_MAX, of.lostAfterMs * SILENT_SHARE);
    this.#patienceMs = Math.min(PATIENCE_MS_MAX, of.lostAfterMs * PATIENCE_SHARE);
  }

  /** Where the next datagram goes. */
  address(asking: Asking): Address {
    return this.isNeighbour(asking) ? this.#neighbour! : this.#origin;
  }

  /** All that may be asked, and which of them is now: for other threads, which hear of it late. */
  get addresses(): readonly Address[] {
    return this.#neighbour === undefined ? [this.#origin] : [this.#origin, this.#neighbour];
  }

  addressIndex(asking: Asking): number {
    return this.isNeighbour(asking) ? 1 : 0;
  }

  isNeighbour({ isUndecided, delivery }: Asking): boolean {
    return this.#neighbour !== undefined && !isUndecided && delivery === CHANNEL.unicast;
  }

  /**
   * `true` when the neighbour was given up just now: what it was asked for is to be asked again.
   * Called at least whenever the receiver asks again.
   */
  look(asking: Asking, nowMs: number): boolean {
    if (!this.isNeighbour(asking)) {
      this.#turnedMs = Number.POSITIVE_INFINITY;
      return false;
    }
    if (this.#turnedMs === Number.POSITIVE_INFINITY) this.#turnedMs = nowMs;
    if (nowMs < this.#lookAtMs) return false;
    this.#lookAtMs = nowMs + this.#silentMs / LOOKS;
    const { heardMs, wantedMs } = asking.waiting;
    const sinceMs = Math.max(wantedMs, this.#turnedMs);
    const isSilent = nowMs - Math.max(sinceMs, heardMs) >= this.#silentMs;
    if (!isSilent && nowMs - sinceMs < this.#patienceMs) return false;
    this.giveUp(nowMs);
    return true;
  }

  /** What was heard now may be the neighbour's word, not the origin's. */
  mayBeNeighbour(asking: Asking, nowMs: number): boolean {
    return this.isNeighbour(asking) || nowMs - this.#givenUpMs < LATE_MS;
  }

  giveUp(nowMs: number): void {
    if (this.#neighbour === undefined) return;
    this.#neighbour = undefined;
    this.#givenUpMs = nowMs;
  }
}
