// Pages that were asked for, are not here yet and will be: the server's layers are replicas, and its
// host fetches what its neighbours want. Keeps who asked for what, tells the host what is wanted,
// says what has come. Bounded; sends nothing. Only the server of a replica has one.

import { pageKey } from '../page-key.js';
import { URGENCY, type Urgency } from '../wire/datagrams.js';
import type { KnownReceiver } from './known-receivers.js';
import type { PageSource } from './page-loader.js';

export const WAITING_PAGES_MAX = 4096;
/** A host has two neighbours or so that ask it. */
export const ASKERS_MAX = 16;
/** What has come shows in memory that another process writes: it is looked at so often. */
const LOOK_MS = 1;
/** Whoever fetches pages may have been started anew. */
const WANTED_AGAIN_MS = 250;
/** Who still waits for it has asked again by then. */
const FORGOTTEN_MS = 2500;

/** A page that a neighbour of this host waits for, or will. */
export interface WantedPage {
  readonly layer: number;
  readonly page: number;
  readonly urgency: Urgency;
}

interface WaitingPage {
  readonly layer: number;
  readonly page: number;
  urgency: Urgency;
  readonly askers: Map<KnownReceiver, Urgency>;
  askedMs: number;
  toldMs: number;
}

export class WaitingPages {
  readonly #source: PageSource;
  readonly #wanted: (pages: readonly WantedPage[]) => void;
  readonly #byKey = new Map<number, WaitingPage>();
  /** Of which the host is to be told. */
  #untold: WaitingPage[] = [];
  #lookAtMs = Number.POSITIVE_INFINITY;

  constructor(of: { source: PageSource; wanted: (pages: readonly WantedPage[]) => void }) {
    this.#source = of.source;
    this.#wanted = of.wanted;
  }

  get size(): number {
    return this.#byKey.size;
  }

  /** When `advance` may have something to do. */
  get nextMs(): number {
    return this.#lookAtMs;
  }

  /** `undefined`: the page need not wait. */
  take(
    of: { layer: number; page: number; urgency: Urgency; asker: KnownReceiver },
    nowMs: number,
  ): 'added' | 'merged' | 'full' | undefined {
    const { layer, page, urgency, asker } = of;
    if (this.#source.isAwaited?.(layer, page) !== true) return undefined;
    const key = pageKey(layer, page);
    const before = this.#byKey.get(key);
    if (before !== undefined) return this.#join(before, { urgency, asker, nowMs });
    if (this.#byKey.size >= WAITING_PAGES_MAX) return 'full';
    const askers = new Map([[asker, urgency]]);
    const waiting = { layer, page, urgency, askers, askedMs: nowMs, toldMs: nowMs };
    this.#byKey.set(key, waiting);
    this.#untold.push(waiting);
    this.#lookAtMs = Math.min(this.#lookAtMs, nowMs + LOOK_MS);
    return 'added';
  }

  /** Tells what is wanted, and hands over what has come since, to each who asked. */
  advance(nowMs: number, came: (page: WantedPage, asker: KnownReceiver) => void): void {
    if (this.#untold.length > 0) {
      this.#wanted(this.#untold);
      this.#untold = [];
    }
    if (nowMs < this.#lookAtMs) return;
    for (const [key, { layer, page, askers, askedMs }] of this.#byKey) {
      const isHere = this.#source.isAwaited?.(layer, page) !== true;
      if (!isHere && nowMs - askedMs < FORGOTTEN_MS) continue;
      this.#byKey.delete(key);
      if (!isHere) continue;
      for (const [asker, urgency] of askers) came({ layer, page, urgency }, asker);
    }
    this.#lookAtMs = this.#byKey.size > 0 ? nowMs + LOOK_MS : Number.POSITIVE_INFINITY;
  }

  #join(
    waiting: WaitingPage,
    { urgency, asker, nowMs }: { urgency: Urgency; asker: KnownReceiver; nowMs: number },
  ): 'merged' | 'full' {
    const before = waiting.askers.get(asker);
    if (before === undefined && waiting.askers.size >= ASKERS_MAX) return 'full';
    const isInDemand = urgency === URGENCY.demand;
    if (before === undefined || isInDemand) waiting.askers.set(asker, urgency);
    const isUrgent = isInDemand && waiting.urgency !== URGENCY.demand;
    if (isUrgent) waiting.urgency = urgency;
    waiting.askedMs = nowMs;
    if (isUrgent || nowMs - waiting.toldMs >= WANTED_AGAIN_MS) {
      waiting.toldMs = nowMs;
      this.#untold.push(waiting);
    }
    return 'merged';
  }
}
