// The cluster as the API shows it. Called by the routes; what is done is `cluster.ts`' affair.

import type {
  ClusterHost,
  ClusterInfo,
  ClusterInitRequest,
  ClusterJoinRequest,
  JoinToken,
} from '@snowfork/sdk/api';
import type { ClusterService } from '../api/service.js';
import { hostOfPath } from './api-tunnel.js';
import type { Cluster } from './cluster.js';
import { PEER_PORT_DEFAULT } from './cluster-file.js';
import type { HostRecord } from './cluster-store.js';
import { TOKEN_LIFETIME_MS } from './token.js';

export function clusterService(cluster: Cluster): ClusterService {
  const info = (): ClusterInfo => {
    const { cluster: of, host } = cluster.file;
    return { name: of.name, id: of.id, host: host.name };
  };
  return {
    info,
    init: async ({ name, ...self }: ClusterInitRequest) => {
      await cluster.init({ name, host: selfOf(self) });
      return info();
    },
    join: async ({ at, token, ...self }: ClusterJoinRequest) => {
      await cluster.join({ at, token, host: selfOf(self) });
      return info();
    },
    newToken: (ttlMs = TOKEN_LIFETIME_MS): JoinToken => {
      return { ...cluster.newToken(ttlMs), expiresAt: Date.now() + ttlMs };
    },
    hosts: () => cluster.hosts().map((host) => present(host, cluster.hasStoreMember(host.name))),
    removeHost: (name) => cluster.remove(name),
    drainHost: (name, signal) => cluster.drain(name, signal),
    otherHost: (path) => {
      const host = hostOfPath(path);
      return cluster.name === undefined || host === cluster.name ? undefined : host;
    },
    openApi: (host) => cluster.openApi(host),
  };
}

function selfOf({ host, address, port }: Omit<ClusterInitRequest, 'name'>): {
  name: string;
  address: string;
  port: number;
} {
  return { name: host, address, port: port ?? PEER_PORT_DEFAULT };
}

function present(host: HostRecord, storeMember: boolean): ClusterHost {
  const { name, address, port, version, startedAt, draining, room } = host;
  const state = draining ? 'draining' : 'up';
  return { name, address, port, version, startedAt, state, ...room, storeMember };
}
