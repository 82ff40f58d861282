// Opens the cluster's store for a host: starts its member of etcd where there is to be one, and
// connects. Called when the host comes into its cluster, and when the agent starts.

import type { Logger } from 'pino';
import type { ClusterFile } from './cluster-file.js';
import type { ClusterStore } from './cluster-store.js';
import { EtcdStore } from './etcd.js';
import { EtcdProcess } from './etcd-process.js';

/** @throws SnowforkError SF_CLUSTER_UNAVAILABLE. */
export async function openClusterStore(
  file: ClusterFile,
  { stateRoot, log }: { stateRoot: string; log: Logger },
): Promise<ClusterStore> {
  if (file.member !== undefined) await EtcdProcess.open(stateRoot, file);
  const { ca, certificate, privateKey, cluster, store } = file;
  const { endpoints } = store;
  return await EtcdStore.open({
    ...{ ca, certificate, privateKey, endpoints, log },
    cluster: cluster.id,
  });
}
