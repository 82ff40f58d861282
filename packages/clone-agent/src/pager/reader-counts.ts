// The pages that READs brought, by the process that waited for them: so it is known which clone's
// they were. In memory that all threads of the pager share. Bounded: a process that is gone makes room.

import fs from 'node:fs';

/** By where a page came from. A page of another host that was waited for counts as a replica's too. */
export const Source = { zero: 0, local: 1, replica: 2, demand: 3 } as const;
export type Source = (typeof Source)[keyof typeof Source];
const SOURCES = 4;
type Counts = readonly [zero: number, local: number, replica: number, demand: number];

const READERS_LOG2 = 10;
/** Clones of one snapshot that run at a time. */
const READERS_MAX = 1 << READERS_LOG2;
/** Places that a process may have. */
const PROBES = 16;
/** The process's id, and a count for each source. */
const CELLS_EACH = 1 + SOURCES;
const NOBODY = 0;
/** Being cleared for another one. */
const NOBODY_YET = -1;
/** Spreads ids that follow each other (Knuth, TAOCP 6.4). */
const GOLDEN = 0x9e3779b1;

export function newReaderCountsMemory(): SharedArrayBuffer {
  return new SharedArrayBuffer(READERS_MAX * CELLS_EACH * Int32Array.BYTES_PER_ELEMENT);
}

export class ReaderCounts {
  readonly #cells: Int32Array;
  readonly #isAlive: (pid: number) => boolean;

  constructor(
    memory: SharedArrayBuffer,
    isAlive: (pid: number) => boolean = (pid) => fs.existsSync(`/proc/${pid}`),
  ) {
    this.#cells = new Int32Array(memory);
    this.#isAlive = isAlive;
  }

  count(pid: number, source: Source, pages: number): void {
    const cell = this.#find(pid) ?? this.#takeOver(pid);
    if (cell !== undefined) Atomics.add(this.#cells, cell + 1 + source, pages);
  }

  /** By process. */
  all(): Map<number, Counts> {
    const found = new Map<number, Counts>();
    for (let cell = 0; cell < this.#cells.length; cell += CELLS_EACH) {
      const pid = this.#cells[cell]!;
      if (pid <= NOBODY) continue;
      const [zero, local, replica, demand] = found.get(pid) ?? [0, 0, 0, 0];
      const at = (source: Source) => this.#cells[cell + 1 + source]!;
      // Two places, when two threads of the pager took one over for it at once.
      found.set(pid, [
        zero + at(Source.zero),
        local + at(Source.local),
        replica + at(Source.replica),
        demand + at(Source.demand),
      ]);
    }
    return found;
  }

  #find(pid: number): number | undefined {
    for (let probe = 0; probe < PROBES; probe += 1) {
      const cell = placeOf(pid, probe);
      const known = Atomics.compareExchange(this.#cells, cell, NOBODY, pid);
      if (known === NOBODY || known === pid) return cell;
    }
    return undefined;
  }

  /** The place of one that is gone; undefined when all of them live. */
  #takeOver(pid: number): number | undefined {
    for (let probe = 0; probe < PROBES; probe += 1) {
      const cell = placeOf(pid, probe);
      const known = Atomics.load(this.#cells, cell);
      if (known === NOBODY_YET || this.#isAlive(known)) continue;
      if (Atomics.compareExchange(this.#cells, cell, known, NOBODY_YET) !== known) continue;
      this.#cells.fill(0, cell + 1, cell + CELLS_EACH);
      Atomics.store(this.#cells, cell, pid);
      return cell;
    }
    return undefined;
  }
}

function placeOf(pid: number, probe: number): number {
  const first = Math.imul(pid, GOLDEN) >>> (32 - READERS_LOG2);
  return ((first + probe) % READERS_MAX) * CELLS_EACH;
}

const KNOWN_THREADS_MAX = 4096;
/** What this thread of the pager knows of those that read: the kernel names threads. */
const processes = new Map<number, number>();

/** `thread`: as a READ names it. Undefined when it is gone, or has no name here. */
export function processOf(thread: number): number | undefined {
  const known = processes.get(thread);
  if (known !== undefined || thread === NOBODY) return known;
  const pid = readProcessOf(thread);
  if (pid === undefined) return undefined;
  // Ids come again one day.
  if (processes.size === KNOWN_THREADS_MAX) processes.clear();
  processes.set(thread, pid);
  return pid;
}

/**
 * The first of its threads is the one that the process is named for. `status` would say it too; but who
 * reads that may come to be the one that takes down the memory of a process that is being killed.
 */
function readProcessOf(thread: number): number | undefined {
  let threads: fs.Dir | undefined;
  try {
    threads = fs.opendirSync(`/proc/${thread}/task`);
    return Number(threads.readSync()?.name) || undefined;
  } catch {
    return undefined;
  } finally {
    threads?.closeSync();
  }
}
