// Starts the pager's worker threads and keeps the memory that they share. One object for the main
// thread to speak to all of them; what they say comes back as events.

import { MessageChannel, Worker } from 'node:worker_threads';
import { Board, newBoardMemory } from './board.js';
import type { AskableLayers } from './early-asks.js';
import { latencyBuckets, newHistogramMemory } from './histogram.js';
import type { SharedObject } from './served-object.js';
import { droppedStores, newStoreQueueMemory, StoreRequests } from './stores.js';
import { SERVING_THREADS, STORE_THREAD, type ThreadData, type ThreadWord } from './thread-data.js';

/** The kernel waits for nobody here; a page whose READ is never answered would block it, though. */
const TELL_DEADLINE_MS = 2000;

export class Threads {
  readonly storesMemory = newStoreQueueMemory();
  readonly histogramMemory = newHistogramMemory();
  readonly #board: Board;
  readonly #wakeStores: StoreRequests;
  readonly #tellings = new Map<number, () => void>();
  #nextTelling = 1;

  constructor(of: {
    fuseDescriptor: number;
    runFolder: string;
    heard: (word: ThreadWord) => void;
    /** A thread has failed: the pager can't go on. */
    failed: (error: Error) => void;
  }) {
    const board = newBoardMemory();
    const start = (thread: number) => {
      const { port1, port2 } = new MessageChannel();
      const data: ThreadData = {
        fuseDescriptor: of.fuseDescriptor,
        runFolder: of.runFolder,
        thread,
        port: port2,
        board,
        stores: this.storesMemory,
        histogram: this.histogramMemory,
      };
      const file = thread === STORE_THREAD ? './store-worker.js' : './serving-thread.js';
      const options = { workerData: data, transferList: [port2] };
      const worker = new Worker(new URL(file, import.meta.url), options);
      worker.on('error', of.failed);
      worker.on('message', (word: ThreadWord) => {
        if (word.kind === 'told') this.#tellings.get(word.id)?.();
        else of.heard(word);
      });
      return port1;
    };
    const threads = Array.from({ length: SERVING_THREADS + 1 }, (_, thread) => thread);
    this.#board = new Board(board, threads.map(start));
    this.#wakeStores = new StoreRequests(this.storesMemory, STORE_THREAD);
  }

  publishObject(object: SharedObject): void {
    this.#board.publish({ kind: 'object', object });
  }

  publishAskable(nodeid: number, layers: AskableLayers): void {
    this.#board.publish({ kind: 'askable', nodeid, layers });
  }

  /** Has the store thread push pages before they are asked for; nobody waits for that. */
  replay(nodeid: number, pages: readonly number[]): void {
    this.#board.publish({ kind: 'replay', nodeid, pages });
    this.#wakeStores.wake();
  }

  /** Resolves when no thread uses these objects any more. */
  async dropObjects(nodes: readonly number[]): Promise<void> {
    this.#board.publish({ kind: 'drop', nodes });
    await this.#board.quiet();
  }

  /** Resolves when the store thread has written them, or can't for now and will later. */
  async tellKernel(notifications: readonly Uint8Array[]): Promise<void> {
    const id = this.#nextTelling++;
    const told = new Promise<void>((resolve) => {
      const deadline = setTimeout(resolve, TELL_DEADLINE_MS);
      this.#tellings.set(id, () => {
        clearTimeout(deadline);
        resolve();
      });
    });
    this.#board.publish({ kind: 'tell', id, notifications });
    this.#wakeStores.wake();
    await told;
    this.#tellings.delete(id);
  }

  async quiet(): Promise<void> {
    await this.#board.quiet();
  }

  latencyUsBuckets(): number[] {
    return latencyBuckets(this.histogramMemory);
  }

  droppedStores(): number {
    return droppedStores(this.storesMemory);
  }
}
