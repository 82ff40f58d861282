// The queue from those who answer READs to the thread that pushes pages into the kernel's page cache.
// Bounded: what does not fit is dropped and counted, as a page that is not pushed is only asked for
// later. One ring per producer, so that no two ever write the same cell; nobody waits but the store
// thread.
//
//   i32   0         1 … for each producer
//        +---------+------+------+---------+-------------------------------------------------+
//        | signal  | head | tail | dropped | RING_JOBS × (node low, high, page, count, zeros) |
//        +---------+------+------+---------+-------------------------------------------------+

import { THREADS } from './thread-data.js';

export const RING_JOBS = 256;

const SIGNAL = 0;
const RINGS = 1;
const HEAD = 0;
const TAIL = 1;
const DROPPED = 2;
const JOBS = 3;
const JOB_CELLS = 5;
const RING_CELLS = JOBS + RING_JOBS * JOB_CELLS;
const U32 = 2 ** 32;

export function newStoreQueueMemory(): SharedArrayBuffer {
  const cells = RINGS + THREADS * RING_CELLS;
  return new SharedArrayBuffer(cells * Int32Array.BYTES_PER_ELEMENT);
}

/** Push the pages of a range: those of zeros, or those of layers. */
export interface StoreJob {
  nodeid: number;
  firstPage: number;
  count: number;
  zeros: boolean;
}

/** A producer's side. */
export class StoreRequests {
  readonly #cells: Int32Array;
  readonly #ring: number;

  constructor(memory: SharedArrayBuffer, thread: number) {
    this.#cells = new Int32Array(memory);
    this.#ring = RINGS + thread * RING_CELLS;
  }

  /** Never waits; `false` when the job was dropped. */
  offer(nodeid: number, firstPage: number, count: number, zeros: boolean): boolean {
    const cells = this.#cells;
    const head = Atomics.load(cells, this.#ring + HEAD);
    if ((head - Atomics.load(cells, this.#ring + TAIL)) >>> 0 >= RING_JOBS) {
      Atomics.add(cells, this.#ring + DROPPED, 1);
      return false;
    }
    const job = this.#ring + JOBS + ((head >>> 0) % RING_JOBS) * JOB_CELLS;
    cells[job] = nodeid % U32;
    cells[job + 1] = Math.floor(nodeid / U32);
    cells[job + 2] = firstPage;
    cells[job + 3] = count;
    cells[job + 4] = Number(zeros);
    Atomics.store(cells, this.#ring + HEAD, head + 1);
    this.wake();
    return true;
  }

  /** Makes the store thread look at its mailbox too. */
  wake(): void {
    Atomics.add(this.#cells, SIGNAL, 1);
    Atomics.notify(this.#cells, SIGNAL);
  }
}

/** The store thread's side. */
export class StoreJobs {
  readonly #cells: Int32Array;
  #signal = 0;

  constructor(memory: SharedArrayBuffer) {
    this.#cells = new Int32Array(memory);
  }

  /** Blocks until `wake` was called since the last time. */
  wait(): void {
    Atomics.wait(this.#cells, SIGNAL, this.#signal);
    this.#signal = Atomics.load(this.#cells, SIGNAL);
  }

  /** Fills `job` with the next one; `false` when there is none. */
  take(job: StoreJob): boolean {
    for (let thread = 0; thread < THREADS; thread += 1) {
      if (this.#takeFrom(RINGS + thread * RING_CELLS, job)) return true;
    }
    return false;
  }

  #takeFrom(ring: number, job: StoreJob): boolean {
    const cells = this.#cells;
    const tail = Atomics.load(cells, ring + TAIL);
    if (tail === Atomics.load(cells, ring + HEAD)) return false;
    const at = ring + JOBS + ((tail >>> 0) % RING_JOBS) * JOB_CELLS;
    job.nodeid = (cells[at]! >>> 0) + cells[at + 1]! * U32;
    job.firstPage = cells[at + 2]!;
    job.count = cells[at + 3]!;
    job.zeros = cells[at + 4] === 1;
    Atomics.store(cells, ring + TAIL, tail + 1);
    return true;
  }
}

/** Jobs dropped by all producers. */
export function droppedStores(memory: SharedArrayBuffer): number {
  const cells = new Int32Array(memory);
  let dropped = 0;
  for (let thread = 0; thread < THREADS; thread += 1) {
    dropped += Atomics.load(cells, RINGS + thread * RING_CELLS + DROPPED);
  }
  return dropped;
}
