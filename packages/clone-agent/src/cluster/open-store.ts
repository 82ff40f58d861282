// Opens the cluster's store for a host: starts its member of etcd where there is to be one, and
// connects. Called when the host comes into its cluster, and when the agent starts.

import path from 'node:path';
import type { Logger } from 'pino';
import type { ClusterFile } from './cluster-file.js';
import type { ClusterStore } from './cluster-store.js';
import { EtcdStore } from './etcd.js';
import type { HostCertificate } from './etcd-link.js';
import { EtcdProcess } from './etcd-process.js';

/** @throws SnowforkError SF_CLUSTER_UNAVAILABLE. */
export async function openClusterStore(
  file: ClusterFile,
  { stateRoot, log }: { stateRoot: string; log: Logger },
): Promise<ClusterStore> {
  const { ca, certificate, privateKey, cluster, store, host, member: ports } = file;
  const { endpoints } = store;
  const access = { ca, certificate, privateKey };
  const { name, address } = host;
  const folder = path.join(stateRoot, 'etcd');
  const member =
    ports && (await EtcdProcess.open({ ...access, ...ports, ...{ folder, log, name, address } }));
  try {
    const ended = () => member?.leave();
    const renewed = (of: HostCertificate) => member?.useCertificate(of);
    const options = { endpoints, log, ended, renewed, cluster: cluster.id };
    return await EtcdStore.open({ ...access, ...options });
  } catch (error) {
    member?.leave();
    throw error;
  }
}
