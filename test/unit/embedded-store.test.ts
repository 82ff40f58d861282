// The store of a host by itself: as etcd's where both can be asked, and a word of what is missing where
// there are no other hosts.

import { describe, expect, test } from 'vitest';
import { EmbeddedStore } from '../../packages/clone-agent/src/cluster/embedded-store.js';
import { describeStore, familyRequest, refusedBy } from '../support/store-behaviour.js';

describe('the embedded store', () => {
  describeStore(async () => new EmbeddedStore());
});

const noCluster = expect.objectContaining({
  code: 'SF_NO_CLUSTER',
  message: expect.stringContaining('sf cluster init'),
});

test('clones have no other hosts, and it is said how they get some', async () => {
  const store = new EmbeddedStore();
  const placing = { hosts: ['beta'] };
  const asked = { ticket: 't1', asked: 1, bytesEach: 1, hereSlots: 1, placing };
  await expect(store.reserve(asked)).rejects.toEqual(noCluster);
  expect(() => store.hosts()).toThrow(noCluster);
  await expect(store.setDraining()).rejects.toEqual(noCluster);
  await expect(store.remove()).rejects.toEqual(noCluster);
});

test('it keeps no more families than it must', async () => {
  const store = new EmbeddedStore();
  const limits = { familyForksBurst: 1 };
  const ask = (family: string, askedAt: number) =>
    store.takeOfFamily(familyRequest({ family, askedAt, limits }));
  await ask('first', 1000);
  for (let index = 0; index < 5000; index++) await ask(`vm${index}`, 2000 + index);
  expect(store.heardOf('first').here.vms).toBe(0);
  expect(store.heardOf('vm4999').here.vms).toBe(1);
  await expect(ask('vm4999', 7000)).rejects.toEqual(refusedBy('familyForksPerSecond'));
});
