// Whom a receiver asks: the memory server that has the snapshot, or a neighbour that fetches it as
// well. Only where multicast does not reach is a neighbour asked: where it does, all are served by
// one datagram. A neighbour that is silent or slow is given up, and tried again after a while: it gets a
// copy of what its origin is asked for, so that nobody waits for one that is still gone. One for each
// connection.

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
/** Until one that was given up is tried again, doubled each time. */
const STAY_AWAY_MS_MIN = 2000;
const STAY_AWAY_MS_MAX = 60_000;

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
  readonly #neighbour: Address | undefined;
  #isGivenUp = false;
  #stayAwayMs = STAY_AWAY_MS_MIN;
  #tryAtMs = 0;
  /** It was sent a copy since it was given up. */
  #isTried = false;
  #turnedMs = Number.POSITIVE_INFINITY;
  #lookAtMs = 0;

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
    return this.#hasNeighbour && !isUndecided && delivery === CHANNEL.unicast;
  }

  /** What comes from there is the neighbour's word, not the origin's. */
  isNeighbourAt({ host, port }: Address): boolean {
    return this.#neighbour?.port === port && this.#neighbour.host === host;
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

  /** Whether it is time to try one that was given up. */
  isTryDue({ isUndecided, delivery }: Asking, nowMs: number): boolean {
    const isWanted = this.#isGivenUp && !isUndecided && delivery === CHANNEL.unicast;
    return isWanted && nowMs >= this.#tryAtMs;
  }

  /** Who is to have a copy of a request that leaves now. */
  takeTried(asking: Asking, nowMs: number): Address | undefined {
    if (!this.isTryDue(asking, nowMs)) return undefined;
    this.#isTried = true;
    this.#stayAway(nowMs);
    return this.#neighbour;
  }

  /** Pages came from the neighbour. */
  neighbourAnswered(): void {
    if (!this.#isTried) return;
    this.#isTried = false;
    this.#isGivenUp = false;
    this.#turnedMs = Number.POSITIVE_INFINITY;
  }

  /** Returns whether it was asked until now. */
  giveUp(nowMs: number): boolean {
    const wasAsked = this.#hasNeighbour;
    this.#isTried = false;
    if (wasAsked) this.#stayAway(nowMs);
    this.#isGivenUp = true;
    return wasAsked;
  }

  get #hasNeighbour(): boolean {
    return this.#neighbour !== undefined && !this.#isGivenUp;
  }

  #stayAway(nowMs: number): void {
    this.#tryAtMs = nowMs + this.#stayAwayMs;
    this.#stayAwayMs = Math.min(this.#stayAwayMs * 2, STAY_AWAY_MS_MAX);
  }
}
