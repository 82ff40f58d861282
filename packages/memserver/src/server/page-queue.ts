// Pages that wait to be sent, first in, first out, each once: a page that is asked for again while
// it waits is the same entry. Bounded. The server has two for each flow: demand and prefetch.

import { pageKey } from '../page-key.js';

/** 64 MiB of pages. */
export const QUEUE_PAGES_MAX = 16_384;

/**
 * `Asker` is the server's word for a receiver; the queue only tells whether it is always the same.
 */
export interface QueuedPage<Asker> {
  readonly layer: number;
  readonly page: number;
  /** Bits of the pieces to send. */
  pieces: number;
  readonly asker: Asker;
  /** More than one receiver asked. */
  isShared: boolean;
  /** All that asked lost it. */
  isRepair: boolean;
}

/** That one receiver has asked for. */
export type NewPage<Asker> = Omit<QueuedPage<Asker>, 'isShared'>;

export class PageQueue<Asker> {
  readonly #byKey = new Map<number, QueuedPage<Asker>>();
  /** Keys in order; those that are no longer in the map are passed over. */
  #order: number[] = [];
  #head = 0;

  get size(): number {
    return this.#byKey.size;
  }

  has(layer: number, page: number): boolean {
    return this.#byKey.has(pageKey(layer, page));
  }

  /** `merged`: it waits already. `full`: not taken. One of another queue is as it was there. */
  add(of: NewPage<Asker> | QueuedPage<Asker>): 'added' | 'merged' | 'full' {
    const key = pageKey(of.layer, of.page);
    const waiting = this.#byKey.get(key);
    if (waiting !== undefined) {
      waiting.pieces |= of.pieces;
      if (waiting.asker !== of.asker) waiting.isShared = true;
      waiting.isRepair &&= of.isRepair;
      return 'merged';
    }
    if (this.#byKey.size >= QUEUE_PAGES_MAX) return 'full';
    this.#byKey.set(key, { isShared: false, ...of });
    this.#order.push(key);
    if (this.#order.length > 2 * QUEUE_PAGES_MAX) this.#startOrder([...this.#byKey.keys()]);
    return 'added';
  }

  first(): QueuedPage<Asker> | undefined {
    while (this.#head < this.#order.length) {
      const first = this.#byKey.get(this.#order[this.#head]!);
      if (first !== undefined) return first;
      this.#head++;
    }
    this.#startOrder([]);
    return undefined;
  }

  remove(layer: number, page: number): QueuedPage<Asker> | undefined {
    const key = pageKey(layer, page);
    const removed = this.#byKey.get(key);
    this.#byKey.delete(key);
    return removed;
  }

  #startOrder(keys: number[]): void {
    this.#order = keys;
    this.#head = 0;
  }
}
