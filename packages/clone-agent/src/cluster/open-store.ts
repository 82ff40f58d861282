// Opens the cluster's store for a host, with its member of etcd where it runs one, and keeps the
// connection to members that come and go. Called when the host comes into its cluster, and when the
// agent starts.

import { SnowforkError } from '@snowfork/sdk/api';
import type { ClusterStore } from './cluster-store.js';
import { EtcdStore } from './etcd.js';
import { StoreMembers, type StoreMembersContext } from './store-members.js';

export interface OpenStore {
  readonly store: ClusterStore;
  readonly members: StoreMembers;
}

/** @throws SnowforkError SF_CLUSTER_UNAVAILABLE: it says what to do. */
export async function openClusterStore(
  context: StoreMembersContext,
  hostTimeoutMs: number,
): Promise<OpenStore> {
  const { log, file } = context;
  const members = await StoreMembers.open(context);
  const { ca, certificate, privateKey, cluster, store: place } = file();
  try {
    const store = await EtcdStore.open({
      ...{ ca, certificate, privateKey, log, cluster: cluster.id, endpoints: place.endpoints },
      hostTimeoutMs,
    });
    members.onMoved((endpoints) => {
      store.useEndpoints(endpoints).catch((error: unknown) => {
        log.warn({ err: error }, 'the cluster store is not watched where it is now');
      });
    });
    return { store, members };
  } catch (cause) {
    members.close();
    throw notAnswered(place.endpoints, cause);
  }
}

function notAnswered(endpoints: readonly string[], cause: unknown): SnowforkError {
  const message =
    `no majority of the cluster store (etcd) answers at ${endpoints.join(', ')}, which is where this ` +
    'host has known its members: start their hosts, and let TCP to ports 7412 and 7413 through. If ' +
    'all of them were replaced while this host was away, write into `store.endpoints` of its ' +
    'cluster.json what another host has there';
  return new SnowforkError('SF_CLUSTER_UNAVAILABLE', message, { cause });
}
