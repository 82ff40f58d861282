// How many VMs a family may have on all hosts of a cluster together, as the store counts them: etcd
// with TLS. By loopback: needs no root.

import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import type { FamilyCounts } from '../../packages/clone-agent/src/cluster/cluster-store.js';
import type { EtcdStore } from '../../packages/clone-agent/src/cluster/etcd.js';
import { EtcdMembers } from '../support/etcd-members.js';
import { eventually } from '../support/eventually.js';

const MAX = 4;
let members: EtcdMembers;
let stores: EtcdStore[] = [];

beforeAll(async () => {
  members = await EtcdMembers.start(['one']);
}, 60_000);
afterEach(async () => {
  await Promise.all(stores.map((store) => store.close()));
  stores = [];
  members.forgetAll();
});
afterAll(() => members.close(), 60_000);

async function join(name: string): Promise<EtcdStore> {
  const store = await members.open(name, { hostTimeoutMs: 3000 });
  stores.push(store);
  const self = { id: `id of ${name}`, name, address: '127.0.0.1', port: 1 };
  const room = { roomBytes: 1, slots: 1, vms: 0 };
  await store.join({ ...self, version: '1', startedAt: 1 }, room);
  return store;
}

async function take(store: EtcdStore, here: string, counted: number, asked: number) {
  return await store.takeOfFamily({ family: 'vm1-alpha', here, counted, asked, max: MAX });
}

function counted(vms: number, unsettled: string[] = []): FamilyCounts {
  return { counts: new Map(vms === 0 ? [] : [['vm1-alpha', vms]]), unsettled: new Set(unsettled) };
}

test('of hosts that ask at once, none gets what another has got', async () => {
  const hosts = ['alpha', 'beta', 'gamma'];
  const joined = await Promise.all(hosts.map(join));
  const got = await Promise.all(joined.map((store, index) => take(store, hosts[index]!, 0, 3)));
  expect(got.reduce((sum, vms) => sum + vms, 0)).toBe(MAX);
});

test('what has ended on one host may be had by another', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  expect(await take(alpha, 'alpha', 1, 9)).toBe(3);
  expect(await take(beta, 'beta', 0, 1)).toBe(0);
  await alpha.publishFamilies(counted(2));
  expect(await take(beta, 'beta', 0, 9)).toBe(2);
  // Again and again, as agents do: of two that publish at once, one gets its turn later.
  await eventually(async () => {
    await alpha.publishFamilies(counted(0));
    await beta.publishFamilies(counted(0));
    expect(await take(alpha, 'alpha', 0, 9)).toBe(MAX);
  });
});

test('a host that is gone has none any more', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  expect(await take(alpha, 'alpha', 0, 9)).toBe(MAX);
  expect(await take(beta, 'beta', 0, 1)).toBe(0);
  stores = [beta];
  await alpha.close();
  await eventually(async () => expect(await take(beta, 'beta', 0, 9)).toBe(MAX));
});

test('what a family has taken stands while its ticket is being made', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  expect(await take(alpha, 'alpha', 0, 3)).toBe(3);
  await alpha.publishFamilies(counted(0, ['vm1-alpha']));
  expect(await take(beta, 'beta', 0, 9)).toBe(1);
});

test('what is taken while another family is told stands', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const other = (vms: number) => ({
    counts: new Map([['vm0-alpha', vms]]),
    unsettled: new Set(''),
  });
  await alpha.publishFamilies(other(1));
  expect(await take(alpha, 'alpha', 0, 1)).toBe(1);
  const told = alpha.publishFamilies(other(2));
  expect(await take(alpha, 'alpha', 1, 2)).toBe(2);
  await told;
  expect(await take(beta, 'beta', 0, 9)).toBe(1);
});
