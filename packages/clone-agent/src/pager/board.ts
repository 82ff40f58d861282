// How the pager's threads hear of each other: shared memory that says who is at work, and a mailbox
// per thread. The main thread owns all descriptors and page maps and publishes objects to the
// others; it closes a layer only when no thread can be reading it any more. Serving threads never
// wait for anybody.
//
//   i32   0            1 … THREADS        THREADS + 1 … 2·THREADS
//        +------------+------------------+--------------------------+
//        | generation | 1: at work       | generation seen          |
//        +------------+------------------+--------------------------+

import { setTimeout as delay } from 'node:timers/promises';
import { type MessagePort, receiveMessageOnPort } from 'node:worker_threads';
import type { AskableLayers } from './early-asks.js';
import type { SharedObject } from './served-object.js';
import { MAIN_THREAD, THREADS } from './thread-data.js';

/** What the main thread tells the others. */
export type Bulletin =
  | { readonly kind: 'object'; readonly object: SharedObject }
  /** Of an object that was published: where its pages can be asked for. */
  | { readonly kind: 'askable'; readonly nodeid: number; readonly layers: AskableLayers }
  | { readonly kind: 'drop'; readonly nodes: readonly number[] }
  /** For the store thread: push these pages, in ascending order, as clones will ask for them. */
  | { readonly kind: 'replay'; readonly nodeid: number; readonly pages: readonly number[] }
  /** For the store thread: notifications to write, then to say `told` with the same `id`. */
  | { readonly kind: 'tell'; readonly id: number; readonly notifications: readonly Uint8Array[] };

const GENERATION = 0;
const AT_WORK = 1;
const SEEN = 1 + THREADS;
const QUIET_POLL_MS = 1;

export function newBoardMemory(): SharedArrayBuffer {
  return new SharedArrayBuffer((1 + 2 * THREADS) * Int32Array.BYTES_PER_ELEMENT);
}

/** The main thread's side. */
export class Board {
  readonly #cells: Int32Array;
  readonly #ports: readonly MessagePort[];

  constructor(memory: SharedArrayBuffer, ports: readonly MessagePort[]) {
    this.#cells = new Int32Array(memory);
    this.#ports = ports;
  }

  /** Every thread reads it before it serves its next request. */
  publish(bulletin: Bulletin): void {
    for (const port of this.#ports) port.postMessage(bulletin);
    Atomics.add(this.#cells, GENERATION, 1);
  }

  /**
   * Resolves when every other thread has read all bulletins published so far, or is not at work: then
   * none can still be using what they took away.
   */
  async quiet(): Promise<void> {
    const generation = Atomics.load(this.#cells, GENERATION);
    for (let thread = 0; thread < MAIN_THREAD; thread += 1) {
      while (!this.#isPast(thread, generation)) await delay(QUIET_POLL_MS);
    }
  }

  #isPast(thread: number, generation: number): boolean {
    if (Atomics.load(this.#cells, AT_WORK + thread) === 0) return true;
    return Atomics.load(this.#cells, SEEN + thread) - generation >= 0;
  }
}

/** A worker thread's side. */
export class Mailbox {
  readonly #cells: Int32Array;
  readonly #port: MessagePort;
  readonly #thread: number;
  readonly #receive: (bulletin: Bulletin) => void;
  #seen = 0;

  constructor(of: {
    memory: SharedArrayBuffer;
    port: MessagePort;
    thread: number;
    receive: (bulletin: Bulletin) => void;
  }) {
    this.#cells = new Int32Array(of.memory);
    this.#port = of.port;
    this.#thread = of.thread;
    this.#receive = of.receive;
  }

  /**
   * To be called before work on what objects hold, with `leave` after it. The order matters: at work
   * first, then the bulletins, so that `Board.quiet` either sees this thread or is seen by it.
   */
  enter(): void {
    Atomics.store(this.#cells, AT_WORK + this.#thread, 1);
    const generation = Atomics.load(this.#cells, GENERATION);
    if (generation === this.#seen) return;
    for (;;) {
      const received = receiveMessageOnPort(this.#port);
      if (received === undefined) break;
      this.#receive(received.message as Bulletin);
    }
    this.#seen = generation;
    Atomics.store(this.#cells, SEEN + this.#thread, generation);
  }

  leave(): void {
    Atomics.store(this.#cells, AT_WORK + this.#thread, 0);
  }
}
