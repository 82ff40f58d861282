// A host of a cluster that a test can kill, as a process: joins the store that the test tells it by
// its first message, and then reserves what the test asks for.

import { once } from 'node:events';
import pino from 'pino';
import type {
  HostIdentity,
  HostRoom,
  ReserveRequest,
} from '../../packages/clone-agent/src/cluster/cluster-store.js';
import { EtcdStore } from '../../packages/clone-agent/src/cluster/etcd.js';
import type { EtcdAccess } from '../../packages/clone-agent/src/cluster/etcd-link.js';

export interface StoreHostStart {
  readonly access: EtcdAccess;
  readonly self: HostIdentity;
  readonly room: HostRoom;
  readonly hostTimeoutMs: number;
}

const [{ access, self, room, hostTimeoutMs }] = (await once(process, 'message')) as [
  StoreHostStart,
];
const log = pino({ level: 'silent' });
const store = await EtcdStore.open({ ...access, log, hostTimeoutMs });
await store.join(self, room);
process.on('message', (request: ReserveRequest) => {
  void store.reserve(request).then((answer) => process.send!(answer));
});
process.on('disconnect', () => process.exit());
process.send!('joined');
