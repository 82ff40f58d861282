// Parts of the agent that a bench uses by themselves, loaded from where the build puts them: the
// package offers nothing but its program to others.

import path from 'node:path';
import { pathToFileURL } from 'node:url';
import type * as lineClient from '../../packages/clone-agent/src/hypervisor/line-client.js';
import type * as qmp from '../../packages/clone-agent/src/hypervisor/qmp.js';
import type * as image from '../../packages/clone-agent/src/image/index.js';
import type * as pager from '../../packages/clone-agent/src/pager/client.js';
import type * as mount from '../../packages/clone-agent/src/pager/mount.js';
import type * as netCluster from '../../packages/clone-agent/src/system/net-cluster.js';
import type * as netHosts from '../../packages/clone-agent/src/system/net-hosts.js';
import { projectFolder } from './bench-host.js';

const agentFolder = path.join(projectFolder, 'packages/clone-agent');
export const guestFolder = path.join(agentFolder, 'guest');
export const sdkFolder = path.join(projectFolder, 'packages/sdk');

export const { LineClient } = await part<typeof lineClient>('hypervisor/line-client.js');
export const { connectQmp } = await part<typeof qmp>('hypervisor/qmp.js');
export const { hashImage, parseImageFile, parseMemory, prepareImage } =
  await part<typeof image>('image/index.js');
export const { startPager } = await part<typeof pager>('pager/client.js');
export const { abortConnection, fuseConnection, mountFuse, openFuse, unmountFuse } =
  await part<typeof mount>('pager/mount.js');
export const { NetCluster } = await part<typeof netCluster>('system/net-cluster.js');
export const { NetHosts } = await part<typeof netHosts>('system/net-hosts.js');

export type { Qmp } from '../../packages/clone-agent/src/hypervisor/qmp.js';
export type { PreparedImage } from '../../packages/clone-agent/src/image/index.js';
export type {
  Member,
  NetCluster as Cluster,
} from '../../packages/clone-agent/src/system/net-cluster.js';
export type { NetHost, NetHosts as Net } from '../../packages/clone-agent/src/system/net-hosts.js';

async function part<T>(file: string): Promise<T> {
  return (await import(pathToFileURL(path.join(agentFolder, 'dist', file)).href)) as T;
}
