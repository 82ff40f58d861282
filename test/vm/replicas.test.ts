// A host that keeps fewer pages of others than its clones read: real agents and VMs. What left comes
// again, and is what it was; what is to need nobody stays. Which pages leave, `unit/replicas` tests.

import type { Vm } from '@snowfork/sdk';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { clonesOf, describeVms, endVms, MiB, sh } from '../fixtures/guests.js';
import {
  type ClusterHost,
  type ClusterHosts,
  joinHosts,
  processOf,
} from '../support/cluster-hosts.js';

const KEPT_MIB = 16;
const DATA_MIB = 40;
const PAGE_BYTES = 4096;
const HASH = 'md5sum < /dev/shm/data';

describeVms('a host with room for few pages of others', () => {
  let cluster: ClusterHosts;
  let alpha: ClusterHost;
  let beta: ClusterHost;
  let vm: Vm;
  let far: Vm;
  let hash: string;

  beforeAll(async () => {
    cluster = await joinHosts(2, { replicaBytesMax: KEPT_MIB * MiB });
    [alpha, beta] = cluster.hosts as [ClusterHost, ClusterHost];
    vm = await alpha.sf.launch('minimal');
    const data = `dd if=/dev/urandom of=/dev/shm/data bs=1M count=${DATA_MIB} 2>/dev/null`;
    hash = await sh(vm, `${data}; ${HASH}`);
    [far] = clonesOf(await vm.fork(1, { hosts: ['beta'] })) as [Vm];
  });

  afterAll(async () => {
    if (vm !== undefined) await endVms(alpha.sf, []);
    await cluster?.close();
  });

  const kept = async () => (await beta.sf.stats()).network!.replicas;
  const asked = async () => {
    const { received } = (await beta.sf.stats()).network!;
    return received.reduce((sum, { pages }) => sum + pages.demand + pages.prefetch, 0);
  };
  /** Its memory is an object of its own: it reads what lies in the replicas, not in its parent's cache. */
  const cloneOf = async (parent: Vm) =>
    clonesOf(await parent.fork(1, { hosts: ['beta'] }))[0] as Vm;

  it('reads more than that, twice, and reads what was there', async () => {
    expect(await sh(far, HASH)).toBe(hash);
    const first = await kept();
    expect(first.evicted).toBeGreaterThan(((DATA_MIB - KEPT_MIB) * MiB) / PAGE_BYTES);
    expect(first.pages).toBeLessThanOrEqual((KEPT_MIB * MiB) / PAGE_BYTES);
    const askedBefore = await asked();
    expect(await sh(await cloneOf(far), HASH)).toBe(hash);
    expect(await asked()).toBeGreaterThan(askedBefore + (KEPT_MIB * MiB) / PAGE_BYTES);
    expect((await kept()).evicted).toBeGreaterThan(first.evicted);
  });

  it('keeps all of a clone that is to need nobody', async () => {
    const clone = await cloneOf(far);
    expect((await clone.detach()).pages).toBeGreaterThan(0);
    // Others go on to read, for whom pages have to leave.
    expect(await sh(await cloneOf(far), HASH)).toBe(hash);
    process.kill(processOf(alpha, 'memserver/dist/main.js'), 'SIGSTOP');
    try {
      expect(await sh(await cloneOf(clone), HASH)).toBe(hash);
    } finally {
      process.kill(processOf(alpha, 'memserver/dist/main.js'), 'SIGCONT');
    }
  });
});
