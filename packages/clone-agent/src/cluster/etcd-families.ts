// How many VMs each family has in the cluster, by host, so that a limit of a family holds for all hosts
// together. One key for a family, which only ever changes by a transaction over what was last heard of
// it: of two hosts that ask for the last VM at once, one gets it. Part of the store (`etcd.ts`).
//
//   /snowfork/<cluster>/family/<id>    { "<host>": VMs of tickets that the host has made }

import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';
import type { FamilyCounts, FamilyRequest } from './cluster-store.js';
import type { EtcdLink } from './etcd-link.js';
import type { EtcdMirror, Pair } from './etcd-mirror.js';

const ATTEMPTS_MAX = 20;
/** Of several that ask at once, again and again, all get their turn. */
const PAUSE_MS_MAX = 20;
const KIND = 'family/';

const countsSchema = z.record(z.string(), z.number().int().nonnegative());
type Counts = z.infer<typeof countsSchema>;

export class EtcdFamilies {
  readonly #link: EtcdLink;
  readonly #mirror: EtcdMirror;
  /** Hosts that are there: what others had is nobody's any more. */
  readonly #hosts: () => ReadonlySet<string>;

  constructor(of: { link: EtcdLink; mirror: EtcdMirror; hosts: () => ReadonlySet<string> }) {
    this.#link = of.link;
    this.#mirror = of.mirror;
    this.#hosts = of.hosts;
  }

  /** @returns how many more the family may have; they count from now on. */
  async take({ family, here, counted, asked, max }: FamilyRequest): Promise<number> {
    for (let attempt = 1; attempt <= ATTEMPTS_MAX; attempt++) {
      const before = this.#mirror.get(`${KIND}${family}`);
      const others = this.#others(before, here);
      const elsewhere = Object.values(others).reduce((sum, vms) => sum + vms, 0);
      const granted = Math.max(0, Math.min(asked, max - counted - elsewhere));
      if (granted < asked && attempt === 1) {
        // What was heard may be a moment old.
        await this.#mirror.look();
        continue;
      }
      if (granted === 0) return 0;
      const counts = { ...others, [here]: counted + granted };
      if (await this.#put(family, counts, before)) return granted;
      await delay(Math.random() * PAUSE_MS_MAX);
      await this.#mirror.look();
    }
    throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', 'too many fork at once: try again');
  }

  /** What this host counts now; a family that another changes meanwhile gets its turn later. */
  async publish(here: string, { counts, unsettled }: FamilyCounts): Promise<void> {
    const known = this.#mirror.below(KIND).map(({ key }) => key.slice(KIND.length));
    const families = [...new Set([...known, ...counts.keys()])];
    // All is looked up before the first is told: what is taken meanwhile is not counted yet, and its
    // family has changed then.
    const changes = families.flatMap((family) => {
      const before = this.#mirror.get(`${KIND}${family}`);
      const vms = counts.get(family) ?? 0;
      if (unsettled.has(family) || (readCounts(before)[here] ?? 0) === vms) return [];
      const others = this.#others(before, here);
      return [{ family, before, counts: vms === 0 ? others : { ...others, [here]: vms } }];
    });
    for (const change of changes) await this.#put(change.family, change.counts, change.before);
  }

  #others(pair: Pair | undefined, here: string): Counts {
    const hosts = this.#hosts();
    const others = Object.entries(readCounts(pair));
    return Object.fromEntries(others.filter(([host]) => host !== here && hosts.has(host)));
  }

  /** `false` when it has changed since. */
  async #put(family: string, counts: Counts, before: Pair | undefined): Promise<boolean> {
    const key = `${KIND}${family}`;
    const isEmpty = Object.keys(counts).length === 0;
    const { succeeded } = await this.#link.call((space) => {
      const transaction =
        before === undefined
          ? space.if(key, 'Version', '==', 0)
          : space.if(key, 'Mod', '==', String(before.revision));
      const change = isEmpty
        ? space.delete().key(key)
        : space.put(key).value(JSON.stringify(counts));
      return transaction.then(change).commit();
    });
    return succeeded;
  }
}

function readCounts(pair: Pair | undefined): Counts {
  if (pair === undefined) return {};
  try {
    return countsSchema.parse(JSON.parse(pair.value));
  } catch {
    return {};
  }
}
