// All keys of a cluster as this host last heard of them. It watches etcd, and looks at everything now
// and then as well: the watch of a member that is cut off from the others is silent, and says nothing
// of that. Changes are told in the order in which etcd made them, all of one transaction at once.

import { setTimeout as delay } from 'node:timers/promises';
import type { IKeyValue, IWatchResponse, Watcher } from 'etcd3';
import type { Logger } from 'pino';
import type { z } from 'zod';
import type { EtcdLink } from './etcd-link.js';

const LOOK_MS = 2000;
const CANCEL_TIMEOUT_MS = 500;

export interface Pair {
  readonly key: string;
  readonly value: string;
  /** Of its last change. */
  readonly revision: bigint;
  /** `0`: none. */
  readonly lease: string;
}

export interface Change {
  readonly before?: Pair | undefined;
  readonly after?: Pair | undefined;
}

export class EtcdMirror {
  readonly #link: EtcdLink;
  readonly #log: Logger;
  readonly #changed: (changes: readonly Change[]) => void;
  readonly #pairs = new Map<string, Pair>();
  #revision = 0n;
  #watcher: Watcher | undefined;
  #looking: NodeJS.Timeout | undefined;
  #isClosed = false;

  /** @throws SnowforkError SF_CLUSTER_UNAVAILABLE */
  static async open(
    link: EtcdLink,
    of: { readonly log: Logger; changed(changes: readonly Change[]): void },
  ): Promise<EtcdMirror> {
    const mirror = new EtcdMirror(link, of.log, of.changed);
    await mirror.look();
    mirror.#watch();
    mirror.#lookLater();
    return mirror;
  }

  private constructor(link: EtcdLink, log: Logger, changed: (changes: readonly Change[]) => void) {
    this.#link = link;
    this.#log = log;
    this.#changed = changed;
  }

  get(key: string): Pair | undefined {
    return this.#pairs.get(key);
  }

  /** Sorted by key. */
  below(prefix: string): Pair[] {
    const found = [...this.#pairs.values()].filter(({ key }) => key.startsWith(prefix));
    return found.sort((a, b) => (a.key < b.key ? -1 : 1));
  }

  /** Reads everything as it is now. @throws SnowforkError SF_CLUSTER_UNAVAILABLE */
  async look(): Promise<void> {
    const { kvs, header } = await this.#link.call((space) => space.getAll().exec());
    const revision = BigInt(header.revision);
    // Heard more by the watch meanwhile. As much: a watch that was begun anew may have left some out.
    if (this.#isClosed || revision < this.#revision) return;
    const now = new Map(kvs.map((pair) => [pair.key.toString(), pairOf(pair)]));
    const gone = [...this.#pairs.keys()].filter((key) => !now.has(key));
    this.#revision = revision;
    this.#apply([
      ...gone.map((key) => [key, undefined] as const),
      ...[...now].filter(([key, { revision }]) => this.#pairs.get(key)?.revision !== revision),
    ]);
  }

  /** The link has another connection: the old one's watch may never be heard again. */
  async watchAnew(): Promise<void> {
    const watcher = this.#watcher;
    if (this.#isClosed || watcher === undefined) return;
    this.#watch();
    await cancel(watcher);
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#looking);
    if (this.#watcher !== undefined) await cancel(this.#watcher);
  }

  #watch(): void {
    const watcher = this.#link.watch(this.#revision + 1n);
    this.#watcher = watcher;
    watcher.on('data', (response) => this.#hear(response));
    // Cancelled by etcd, as when it has forgotten what came since.
    watcher.on('error', (error) => {
      if (this.#isClosed || this.#watcher !== watcher) return;
      this.#log.warn({ err: error }, 'the cluster store is watched anew');
      this.#watcher = undefined;
    });
  }

  #hear({ events }: IWatchResponse): void {
    const fresh = events.filter(({ kv }) => BigInt(kv.mod_revision) > this.#revision);
    if (this.#isClosed || fresh.length === 0) return;
    this.#revision = BigInt(fresh.at(-1)!.kv.mod_revision);
    this.#apply(
      fresh.map(({ type, kv }) => {
        return [kv.key.toString(), type === 'Delete' ? undefined : pairOf(kv)] as const;
      }),
    );
  }

  #apply(changed: readonly (readonly [string, Pair | undefined])[]): void {
    const changes: Change[] = changed.map(([key, after]) => {
      const before = this.#pairs.get(key);
      if (after === undefined) this.#pairs.delete(key);
      else this.#pairs.set(key, after);
      return { before, after };
    });
    if (changes.length > 0) this.#changed(changes);
  }

  #lookLater(): void {
    this.#looking = setTimeout(async () => {
      try {
        await this.look();
        if (!this.#isClosed && this.#watcher === undefined) this.#watch();
      } catch (error) {
        if (!this.#isClosed) this.#log.warn({ err: error }, 'the cluster store is not heard');
      }
      if (!this.#isClosed) this.#lookLater();
    }, LOOK_MS);
    this.#looking.unref();
  }
}

/** When etcd is silent, nobody says that the watch has ended. */
async function cancel(watcher: Watcher): Promise<void> {
  const cancelled = watcher.cancel().catch(() => {});
  await Promise.race([cancelled, delay(CANCEL_TIMEOUT_MS, undefined, { ref: false })]);
}

function pairOf({ key, value, mod_revision, lease }: IKeyValue): Pair {
  return {
    key: key.toString(),
    value: value.toString(),
    revision: BigInt(mod_revision),
    lease,
  };
}

/** Undefined also for what a newer host wrote that is not understood here. */
export function readPair<S extends z.ZodType>(
  schema: S,
  pair: Pair | undefined,
): z.output<S> | undefined {
  if (pair === undefined) return undefined;
  try {
    return schema.parse(JSON.parse(pair.value));
  } catch {
    return undefined;
  }
}
