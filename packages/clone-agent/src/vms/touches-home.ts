// What clones here waited for, of snapshots of other hosts: told to the host that lent the snapshot,
// once for each part of a ticket, so that hosts which run clones of it later fetch that first. Only a
// hint: what can't be told is not tried again. Never keeps a snapshot for longer than the telling
// takes. `remote-clones.ts` says when clones began and ended.

import type { Logger } from 'pino';
import type { CallPeer } from '../cluster/clone-methods.js';
import type { Descriptor } from '../store/descriptor.js';
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
}

interface Part {
  readonly snapshot: Snapshot;
  readonly home: string;
  /** Home's name of the snapshot. */
  readonly homeName: string;
  /** What home knew. */
  readonly known: ReadonlySet<number>;
  readonly timer: NodeJS.Timeout;
}

export class TouchesHome {
  readonly #context: TouchesHomeContext;
  /** By ticket, or by the snapshot when it is for no ticket: those that have not been told. */
  readonly #parts = new Map<string, Part>();

  constructor(context: TouchesHomeContext) {
    this.#context = context;
  }

  /** Clones of the snapshot run here from now on. */
  began(name: string, of: { snapshot: Snapshot; descriptor: Descriptor; home: string }): void {
    const { snapshot, descriptor, home } = of;
    const origin = descriptor.origins.find(({ host }) => host === home);
    if (origin === undefined || this.#parts.has(name)) return;
    const timer = setTimeout(() => void this.tell(name), TOUCHED_AFTER_MS);
    timer.unref();
    const known = new Set(descriptor.faults);
    this.#parts.set(name, { snapshot, home, homeName: origin.snapshot, known, timer });
  }

  /** They have touched what they will touch first. */
  async tell(name: string): Promise<void> {
    const part = this.#parts.get(name);
    if (part === undefined) return;
    this.#parts.delete(name);
    clearTimeout(part.timer);
    const { store, peering, log } = this.#context;
    const { snapshot, home, homeName, known } = part;
    const { id } = snapshot.file;
    const holder = `first touches of ${id}`;
    snapshot.holders.add(holder);
    try {
      const pages = (await peering.faults(id)).filter((page) => !known.has(page));
      if (pages.length === 0) return;
      const signal = AbortSignal.timeout(TELL_TIMEOUT_MS);
      await peering.call(home, 'touched', { snapshot: homeName, pages }, signal);
    } catch (error) {
      log.warn({ snapshot: id, home, err: error }, 'what was touched first is not told');
    } finally {
      snapshot.holders.delete(holder);
      store.collect(snapshot);
    }
  }
}
