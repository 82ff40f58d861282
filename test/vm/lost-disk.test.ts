// A clone that reads its disk on another host, which does not answer any more: it is lost with the reason,
// as it is for a page of its memory, and its guest is never told that the disk is broken. Real agents and
// VMs.

import path from 'node:path';
import { MEMORY_SERVER_SOCKET } from '@snowfork/memserver';
import type { Vm } from '@snowfork/sdk';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { LineClient } from '../../packages/clone-agent/src/hypervisor/line-client.js';
import { clonesOf, describeVms, endVms, sh } from '../fixtures/guests.js';
import { type ClusterHost, type ClusterHosts, joinHosts } from '../support/cluster-hosts.js';

const ORIGIN_TIMEOUT_MS = 3000;
const PEER = { peer: 'the memory server', errorCode: 'SF_INTERNAL', timeoutMs: 5000 } as const;

describeVms('a clone whose disk lies on another host', () => {
  let cluster: ClusterHosts;
  let alpha: ClusterHost;
  let beta: ClusterHost;
  let vm: Vm;

  beforeAll(async () => {
    cluster = await joinHosts(2, { originTimeoutMs: ORIGIN_TIMEOUT_MS });
    [alpha, beta] = cluster.hosts as [ClusterHost, ClusterHost];
    vm = await alpha.sf.launch('minimal');
  });

  afterAll(async () => {
    if (vm !== undefined) await endVms(alpha.sf, []);
    await cluster?.close();
  });

  /** A page of the disk, counted from its end: no guest has read it, and no page cache has it. */
  const read = (page: number) => {
    const skip = `$(( $(cat /sys/block/vda/size) / 8 - ${page} ))`;
    return `dd if=/dev/vda of=/dev/null bs=4096 count=1 skip=${skip} iflag=direct 2>&1`;
  };

  /** Of what the memory server of the other host has: what is asked of it is not answered. */
  const stopServing = async (snapshot: string) => {
    // The tmpfs is mounted for the agent of the host alone.
    const root = `/proc/${alpha.agent.pid}/root`;
    const socket = path.join(root, alpha.state, 'run', MEMORY_SERVER_SOCKET);
    const client = await LineClient.connect(socket, PEER);
    expect(await client.execute('drop', { snapshot })).toEqual({ isDropped: true });
    client.close();
  };

  it('is lost with the reason when that is not served any more, and others go on', async () => {
    const [far] = clonesOf(await vm.fork(1, { hosts: ['beta'] })) as [Vm];
    expect(await sh(far, read(1))).toMatch('1+0 records out');
    const { objects } = (await beta.sf.stats()).pager;
    const [image] = objects.find(({ object }) => object === 'disk0')!.snapshot.split('-');
    await stopServing(image!);
    await expect(sh(far, read(2))).rejects.toThrow();
    expect(await far.wait()).toEqual({
      how: 'lost',
      reason: `host alpha, which has the page of ${image}, does not answer`,
    });
    const [next] = clonesOf(await vm.fork(1, { hosts: ['beta'] })) as [Vm];
    expect(await sh(next, read(2))).toMatch('1+0 records out');
  });
});
