// A cluster of the bench's own: network namespaces of this machine, an agent in each, with the bench's
// images on the first one (`net-cluster.ts`).

import path from 'node:path';
import { type Cluster, NetCluster } from './agent-parts.js';
import { buildImages, endHost, startHost, stateFolder } from './bench-host.js';

export interface BenchClusterOptions {
  readonly hosts: number;
  readonly imageMib: number;
  readonly bitsPerSecond?: number;
  readonly settings?: object;
}

export async function joinCluster(options: BenchClusterOptions): Promise<Cluster> {
  const { imageMib, settings, ...network } = options;
  const { bitsPerSecond } = network;
  // As an owner would of a link that is slower than its interface.
  const link = bitsPerSecond === undefined ? {} : { linkBitsPerSecond: bitsPerSecond };
  const host = await startHost({ warmPoolSize: 0 });
  try {
    await buildImages(host, [imageMib]);
  } finally {
    await endHost(host);
  }
  return await NetCluster.join({
    ...network,
    imagesFrom: stateFolder,
    parentFolder: path.dirname(stateFolder),
    settings: { warmPoolSize: 1, ...link, ...settings },
  });
}
