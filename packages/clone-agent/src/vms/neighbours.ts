// What this host fetches it serves to hosts that fetch it too, where multicast does not reach them:
// has the memory server do so, for as long as a snapshot here needs it. Fetches and sends nothing
// itself; who asks whom is `NeighbourTrees`' affair. `RemoteClones` has one.

import fs from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { ServedLayers } from '../store/describe.js';
import { heldPath, type Origin } from '../store/origins.js';
import type { SnapshotStore } from '../store/snapshots.js';

/** So long those who ask are told that the host has nothing any more, and must not find it out. */
const TELL_GONE_MS = 60_000;

export interface NeighboursContext {
  readonly store: SnapshotStore;
  readonly log: Logger;
  serve(layers: ServedLayers): Promise<void>;
  drop(served: string): Promise<void>;
}

interface Service {
  readonly origin: Origin;
  /** A snapshot of this host that needs the origin. */
  readonly snapshot: string;
}

export class Neighbours {
  readonly #context: NeighboursContext;
  /** Of other hosts' snapshots, by key. */
  readonly #services = new Map<string, Service>();

  constructor(context: NeighboursContext) {
    this.#context = context;
  }

  /**
   * After a snapshot has come or gone: what this host fetches is served, and no more than that. Never
   * rejects; hosts that are not served ask the origin.
   */
  async update(): Promise<void> {
    const needed = new Map<string, Service>();
    for (const { file } of this.#context.store.all()) {
      for (const origin of file.origins ?? []) {
        needed.set(origin.key, { origin, snapshot: file.id });
      }
    }
    const { log } = this.#context;
    for (const service of needed.values()) {
      const { key, host, snapshot } = service.origin;
      const before = this.#services.get(key);
      if (before !== undefined && needsStill(this.#context.store, before)) continue;
      await this.#serve(service).catch((error: unknown) => {
        log.warn({ host, snapshot, err: error }, 'neighbours do not get it here');
      });
    }
    for (const [key, service] of this.#services) {
      if (needed.has(key)) continue;
      this.#services.delete(key);
      void this.#end(service.origin);
    }
  }

  async #serve({ origin, snapshot }: Service): Promise<void> {
    const { store } = this.#context;
    // Of a snapshot that is older than what this host has of it, some may never have come here.
    if (!origin.layers.every((layer) => fs.existsSync(store.layerPath(layer)))) return;
    const layers = origin.layers.map((layer) => {
      const path = store.layerPath(layer);
      return store.isReplica(layer) ? { path, held: heldPath(path) } : { path };
    });
    this.#services.set(origin.key, { origin, snapshot });
    const name = serviceName(origin);
    // What it was told before names a snapshot that may be gone.
    await this.#context.drop(name);
    await this.#context.serve({ snapshot: name, key: origin.key, layers, wants: { snapshot } });
  }

  async #end(origin: Origin): Promise<void> {
    const { key } = origin;
    const snapshot = serviceName(origin);
    try {
      await this.#context.serve({ snapshot, key, layers: [] });
      await delay(TELL_GONE_MS, undefined, { ref: false });
      if (!this.#services.has(key)) await this.#context.drop(snapshot);
    } catch (error) {
      this.#context.log.warn({ snapshot, err: error }, 'neighbours find out by themselves');
    }
  }
}

/** The memory server's word for it: the host may serve a snapshot of that name for itself. */
function serviceName({ host, snapshot }: Origin): string {
  return `${snapshot} of ${host}`;
}

function needsStill(store: SnapshotStore, { origin, snapshot }: Service): boolean {
  return store.find(snapshot)?.file.origins?.some(({ key }) => key === origin.key) === true;
}
