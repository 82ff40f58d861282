// What each family has in the cluster, by host, so that the limits of a family hold for all hosts
// together. One key for a family, which only ever changes by a transaction over what was last heard of
// it: of two hosts that ask for the last clone at once, one gets it. Part of the store (`etcd.ts`);
// what a family may have is `family-record.ts`' affair.
//
//   /snowfork/<cluster>/family/<id>    FamilyRecord

import { setTimeout as delay } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { SnowforkError } from '@snowfork/sdk/api';
import type { IOperation, Namespace } from 'etcd3';
import type { Holdings } from './cluster-store.js';
import type { EtcdLink } from './etcd-link.js';
import { type EtcdMirror, type Pair, readPair } from './etcd-mirror.js';
import { changeOver, type Seen } from './etcd-transaction.js';
import {
  type FamilyCounts,
  type FamilyRecord,
  type FamilyRequest,
  familyRecordSchema,
  isOver,
  NOTHING,
  sumOf,
  told,
  type Weighed,
  weigh,
} from './family-record.js';

const ATTEMPTS_MAX = 20;
/** Of several that ask at once, again and again, all get their turn. */
const PAUSE_MS_MAX = 20;
const KIND = 'family/';

export class EtcdFamilies {
  readonly #link: EtcdLink;
  readonly #mirror: EtcdMirror;
  readonly #here: () => string;
  /** Hosts that are there: what others had is nobody's any more. */
  readonly #present: () => ReadonlySet<string>;

  constructor(of: {
    link: EtcdLink;
    mirror: EtcdMirror;
    here: () => string;
    present: () => ReadonlySet<string>;
  }) {
    this.#link = of.link;
    this.#mirror = of.mirror;
    this.#here = of.here;
    this.#present = of.present;
  }

  /** By what was last heard. @throws SnowforkError SF_LIMIT: it asks too often. */
  weigh(request: FamilyRequest): { seen: Seen; weighed: Weighed } {
    const seen = this.#look(request.family);
    const at = { here: this.#here(), present: this.#present() };
    return { seen, weighed: weigh(recordOf(seen.pair), request, at) };
  }

  /** Takes what needs no room. @throws SnowforkError SF_LIMIT, SF_CLUSTER_UNAVAILABLE. */
  async take(request: FamilyRequest): Promise<void> {
    for (let attempt = 1; attempt <= ATTEMPTS_MAX; attempt++) {
      const { seen, weighed } = this.weigh(request);
      const isStale = weighed.refusal !== undefined && attempt === 1;
      // What was heard may be a moment old.
      if (!isStale && (await this.#put(seen, weighed.taken(0)))) {
        if (weighed.refusal !== undefined) throw weighed.refusal;
        return;
      }
      if (!isStale) await delay(Math.random() * PAUSE_MS_MAX);
      await this.#mirror.look();
    }
    throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', 'too many fork at once: try again');
  }

  heardOf(family: string): { here: FamilyCounts; elsewhere: FamilyCounts } {
    const here = this.#here();
    const present = this.#present();
    const { hosts } = recordOf(this.#look(family).pair);
    const others = Object.entries(hosts).filter(([host]) => host !== here && present.has(host));
    return { here: hosts[here] ?? NOTHING, elsewhere: sumOf(others.map(([, counts]) => counts)) };
  }

  /** What this host counts now; a family that another changes meanwhile gets its turn later. */
  async publish({ families, unsettled }: Pick<Holdings, 'families' | 'unsettled'>): Promise<void> {
    const known = this.#mirror.below(KIND).map(({ key }) => key.slice(KIND.length));
    const here = this.#here();
    const present = this.#present();
    // All is looked up before the first is told: what is taken meanwhile is not counted yet, and its
    // family has changed then.
    const changes = [...new Set([...known, ...families.keys()])].flatMap((family) => {
      const seen = this.#look(family);
      const counts = families.get(family) ?? NOTHING;
      const record = told(recordOf(seen.pair), { here, present, counts });
      const isTold = isOver(record)
        ? seen.pair === undefined
        : isDeepStrictEqual(recordOf(seen.pair), record);
      return unsettled.has(family) || isTold ? [] : [{ seen, record }];
    });
    for (const { seen, record } of changes) await this.#put(seen, record);
  }

  #look(family: string): Seen {
    const key = `${KIND}${family}`;
    return { key, pair: this.#mirror.get(key) };
  }

  /** `false` when it has changed since. */
  async #put(seen: Seen, record: FamilyRecord): Promise<boolean> {
    return await changeOver(this.#link, [seen], (space) => [familyChange(space, seen, record)]);
  }
}

export function familyChange(space: Namespace, { key }: Seen, record: FamilyRecord): IOperation {
  if (isOver(record)) return space.delete().key(key);
  return space.put(key).value(JSON.stringify(record));
}

function recordOf(pair: Pair | undefined): FamilyRecord {
  return readPair(familyRecordSchema, pair) ?? { hosts: {} };
}
