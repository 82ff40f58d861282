// A receiver and its caller, as a pager would be: faults on pages one after another or several at
// once, keeps what comes, asked for or not, and checks every byte of it. Part of the simulator
// (`world.ts`).

import assert from 'node:assert/strict';
import {
  ASSEMBLIES_MAX,
  DEMANDS_MAX,
  type LostReason,
  type PageReceiver,
  type PageSink,
  type Reason,
  WINDOW_PAGES_MAX,
} from '@snowfork/memserver';
import type { Host } from './network.js';
import { LAYER, type Origin } from './origin.js';

export interface Pull {
  readonly pages: readonly number[];
  /** Faults under way at a time. */
  readonly atOnce: number;
  /** Another thread says that it has asked for them, which never arrives. */
  readonly isAsked?: boolean;
}

export class Puller implements PageSink {
  /** Set right after both are made. */
  receiver!: PageReceiver;
  host!: Host;
  readonly held: Uint8Array;
  readonly latenciesMs: number[] = [];
  readonly lost = new Map<number, LostReason>();
  /** When a page came last. */
  lastMs = 0;
  heldPages = 0;
  /** Takes no datagrams and does nothing. */
  isHung = false;
  readonly #origin: Origin;
  readonly #clock: () => number;
  readonly #faults = new Map<number, number>();
  #pull: Pull = { pages: [], atOnce: 0 };
  #next = 0;

  constructor(origin: Origin, clock: () => number) {
    this.#origin = origin;
    this.#clock = clock;
    this.held = new Uint8Array(origin.pageCount);
  }

  /** Faults on these pages, in this order. */
  pull(pull: Pull): void {
    this.#pull = pull;
    this.#next = 0;
    this.fault();
  }

  get hasStarted(): boolean {
    return this.#pull.pages.length > 0;
  }

  /** All faults are settled. */
  get isDone(): boolean {
    return this.#faults.size === 0 && this.#next >= this.#pull.pages.length;
  }

  get hasAll(): boolean {
    return this.heldPages === this.held.length;
  }

  /** Goes on faulting, as far as it may; outside of the receiver's calls. */
  fault(): void {
    const { pages, atOnce, isAsked } = this.#pull;
    while (this.#faults.size < atOnce && this.#next < pages.length) {
      const page = pages[this.#next++]!;
      if (this.held[page] === 1) continue;
      assert(this.receiver.demand(LAYER, page, isAsked), 'a demand was refused');
      this.#faults.set(page, this.#clock());
    }
  }

  isHeld(layer: number, page: number): boolean {
    return layer === LAYER && this.held[page] === 1;
  }

  onPage(layer: number, page: number, bytes: Buffer, offset: number, reason: Reason): void {
    assert.equal(layer, LAYER);
    assert(this.#origin.isPage(page, bytes, offset), `page ${page} has other bytes`);
    this.#came(page, reason);
  }

  onZeroPage(layer: number, page: number, reason: Reason): void {
    assert.equal(layer, LAYER);
    assert(this.#origin.isPage(page, ZEROS, 0), `page ${page} is not zero`);
    this.#came(page, reason);
  }

  onLost(_layer: number, page: number, lost: LostReason, reason: Reason): void {
    this.lost.set(page, lost);
    if (reason === 'demand') assert(this.#faults.delete(page), `page ${page} was not in demand`);
  }

  onMembership(isMember: boolean): void {
    this.host.isMember = isMember;
  }

  /** What must hold whenever the receiver is at rest. */
  check(): void {
    const { demand, prefetch, assemblies } = this.receiver.outstanding;
    assert(demand <= DEMANDS_MAX && prefetch <= WINDOW_PAGES_MAX && assemblies <= ASSEMBLIES_MAX);
    assert.equal(demand, this.#faults.size, 'the receiver waits for what nobody waits for');
  }

  #came(page: number, reason: Reason): void {
    assert.equal(this.held[page], 0, `page ${page} came twice`);
    this.held[page] = 1;
    this.heldPages++;
    this.lastMs = this.#clock();
    const sinceMs = this.#faults.get(page);
    assert.equal(sinceMs !== undefined, reason === 'demand');
    if (sinceMs === undefined) return;
    this.#faults.delete(page);
    this.latenciesMs.push(this.lastMs - sinceMs);
  }
}

const ZEROS = Buffer.alloc(4096);
