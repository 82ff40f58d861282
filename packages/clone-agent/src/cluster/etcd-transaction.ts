// A change in etcd that is made only if nothing that it was decided by has changed since it was heard
// of. Part of the store (`etcd.ts`).

import type { IOperation, Namespace } from 'etcd3';
import type { EtcdLink } from './etcd-link.js';
import type { Pair } from './etcd-mirror.js';

/** A key, as it was when it was looked at; undefined: there was none. */
export interface Seen {
  readonly key: string;
  readonly pair: Pair | undefined;
}

/**
 * `false`: something has changed, so nothing was done. Also what an attempt had done already to which
 * no answer came: who asks again decides by what is there then.
 * @throws SnowforkError SF_CLUSTER_UNAVAILABLE
 */
export async function changeOver(
  link: EtcdLink,
  seen: readonly [Seen, ...Seen[]],
  changes: (space: Namespace) => IOperation[],
): Promise<boolean> {
  const [first, ...rest] = seen;
  const { succeeded } = await link.call((space) => {
    let transaction = space.if(first.key, ...unchanged(first));
    for (const one of rest) transaction = transaction.and(one.key, ...unchanged(one));
    return transaction.then(...changes(space)).commit();
  });
  return succeeded;
}

function unchanged({ pair }: Seen): ['Version' | 'Mod', '==', string] {
  return pair === undefined ? ['Version', '==', '0'] : ['Mod', '==', String(pair.revision)];
}
