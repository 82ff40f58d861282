// What clones here have touched, of snapshots of other hosts: told to the host that lent the snapshot,
// once for each part of a ticket, so that hosts which run clones of it later fetch that first. Much of
// it was fetched before they asked, and some of that for nothing: the page table of one of them tells.
// Only a hint: what can't be told is not tried again. Never keeps a snapshot for longer than the
// telling takes. `remote-clones.ts` says when clones began and ended.

import type { Logger } from 'pino';
import type { CallPeer } from '../cluster/clone-methods.js';
import type { PageRuns } from '../freeze/process-memory.js';
import { packTouches } from '../store/descriptor.js';
import type { Origin } from '../store/origins.js';
import type { Snapshot, SnapshotStore } from '../store/snapshots.js';

/** By then most programs have touched what they begin with; a clone that ends earlier tells at once. */
const TOUCHED_AFTER_MS = 10_000;
const TELL_TIMEOUT_MS = 5000;

export interface TouchesHomeContext {
  readonly store: SnapshotStore;
  readonly log: Logger;
  readonly peering: {
    readonly call: CallPeer;
    faults(snapshot: string): Promise<readonly number[]>;
  };
  /** Pages that a clone of the snapshot has mapped which runs here; undefined when none does. */
  mappedOf(snapshot: Snapshot): PageRuns | undefined;
}

interface Part {
  readonly snapshot: Snapshot;
  readonly home: string;
  /** Home's name of the snapshot. */
  readonly homeName: string;
  readonly timer: NodeJS.Timeout;
  /** What the first clone that ended had mapped. */
  mapped: PageRuns | undefined;
}

export class TouchesHome {
  readonly #context: TouchesHomeContext;
  /** By ticket, or by the snapshot when it is for no ticket: those that have not been told. */
  readonly #parts = new Map<string, Part>();

  constructor(context: TouchesHomeContext) {
    this.#context = context;
  }

  /** Clones of the snapshot run here from now on. */
  began(
    name: string,
    of: { readonly snapshot: Snapshot; readonly origins: readonly Origin[]; readonly home: string },
  ): void {
    const { snapshot, origins, home } = of;
    const origin = origins.find(({ host }) => host === home);
    if (origin === undefined || this.#parts.has(name)) return;
    const timer = setTimeout(() => void this.tell(name), TOUCHED_AFTER_MS);
    timer.unref();
    const part = { snapshot, home, homeName: origin.snapshot, timer, mapped: undefined };
    this.#parts.set(name, part);
  }

  /** A clone of the snapshot is about to end, and its page table with it. */
  ending(snapshot: Snapshot): void {
    for (const part of this.#parts.values()) {
      if (part.snapshot === snapshot) part.mapped ??= this.#context.mappedOf(snapshot);
    }
  }

  /** They have touched what they will touch first. */
  async tell(name: string): Promise<void> {
    const part = this.#parts.get(name);
    if (part === undefined) return;
    this.#parts.delete(name);
    clearTimeout(part.timer);
    const { store, peering, log } = this.#context;
    const { snapshot, home, homeName } = part;
    const { id } = snapshot.file;
    const mapped = part.mapped ?? this.#context.mappedOf(snapshot);
    if (mapped === undefined) return;
    const holder = `first touches of ${id}`;
    snapshot.holders.add(holder);
    try {
      const isMapped = membership(mapped);
      const pages = (await peering.faults(id)).filter(isMapped);
      if (pages.length === 0) return;
      const signal = AbortSignal.timeout(TELL_TIMEOUT_MS);
      const told = { snapshot: homeName, pages: packTouches(pages) };
      await peering.call(home, 'touched', told, signal);
    } catch (error) {
      log.warn({ snapshot: id, home, err: error }, 'what was touched first is not told');
    } finally {
      snapshot.holders.delete(holder);
      store.collect(snapshot);
    }
  }
}

/** Whether a page is in one of the runs. */
function membership({ starts, counts, length }: PageRuns): (page: number) => boolean {
  return (page) => {
    let low = 0;
    for (let high = length; low < high; ) {
      const middle = (low + high) >>> 1;
      if (starts[middle]! <= page) low = middle + 1;
      else high = middle;
    }
    return low > 0 && page < starts[low - 1]! + counts[low - 1]!;
  };
}
