// Clones on four hosts that multicast does not reach, with real agents and real VMs: the third host
// gets its pages of one of the others that fetch them, and goes on when that one ends.

import fs from 'node:fs';
import path from 'node:path';
import type { Vm } from '@snowfork/sdk';
import type { ReceivedStats } from '@snowfork/sdk/api';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import type { Origin } from '../../packages/clone-agent/src/store/origins.js';
import { clonesOf, describeVms, endVms, MiB, sh } from '../fixtures/guests.js';
import {
  type ClusterHost,
  type ClusterHosts,
  joinHosts,
  processOf,
} from '../support/cluster-hosts.js';
import { eventually } from '../support/eventually.js';

/** So long that no agent is lost for being started again. */
const HOST_TIMEOUT_MS = 30_000;
const DATA_MIB = 12;
const MAKE_DATA = `dd if=/dev/urandom of=/dev/shm/data bs=1M count=${DATA_MIB} 2>/dev/null`;
const HASH = 'md5sum < /dev/shm/data';
const MEMORY_SERVER = 'memserver/dist/main.js';
/** A neighbour that is silent for a second is given up, also for a busy machine's sake. */
const TRIES = { retry: 2 };

describeVms('a cluster of four hosts that multicast does not reach', () => {
  let cluster: ClusterHosts;
  let vm: Vm;
  let hash: string;

  beforeAll(async () => {
    // Or a clone may have all that it needs before a test does anything to its neighbour.
    cluster = await joinHosts(4, { replayFirstTouches: false, hostTimeoutMs: HOST_TIMEOUT_MS });
    for (const { net } of cluster.hosts) await net.blockMulticast();
    vm = await cluster.hosts[0]!.sf.launch('minimal');
    hash = await sh(vm, `${MAKE_DATA}; ${HASH}`);
  });

  afterEach(async () => {
    if (vm !== undefined) await endVms(cluster.hosts[0]!.sf, [vm]);
  });

  afterAll(async () => {
    await cluster?.close();
  });

  const hostNamed = (name: string) => cluster.hosts.find((host) => host.name === name)!;
  const forkOver = async (hosts: readonly ClusterHost[]) =>
    clonesOf(await vm.fork(hosts.length, { hosts: hosts.map(({ name }) => name) }));

  /** What a host has received of the clones' memory. */
  async function memoryOf({ sf }: ClusterHost, clone: Vm): Promise<ReceivedStats | undefined> {
    const { received } = (await sf.stats()).network!;
    return received.find(({ snapshot }) => snapshot === clone.initialInfo.snapshot);
  }

  /** Where a host was told to get the clone's memory. */
  function originOf({ agent, state }: ClusterHost, { initialInfo }: Vm): Origin {
    const folder = path.join(`/proc/${agent.pid}/root`, state, 'run/snapshots');
    const file = path.join(folder, initialInfo.snapshot, 'snapshot.json');
    const { origins } = JSON.parse(fs.readFileSync(file, 'utf8')) as { origins: Origin[] };
    return origins.find(({ snapshot }) => snapshot === initialInfo.snapshot)!;
  }

  /** The clone on the host that is to get pages of another one, and that one. */
  function pair(clones: readonly Vm[]) {
    for (const clone of clones) {
      const child = hostNamed(clone.initialInfo.host!);
      const { host, snapshot, neighbour } = originOf(child, clone);
      if (neighbour === undefined) continue;
      return { clone, child, parent: hostNamed(neighbour.host), served: `${snapshot} of ${host}` };
    }
    throw new Error('nobody has a neighbour');
  }

  it('serves one of them from another that fetches the same', TRIES, async () => {
    const clones = await forkOver(cluster.hosts.slice(1));
    const hashes = await Promise.all(clones.map((clone) => sh(clone, HASH)));
    expect(hashes).toEqual([hash, hash, hash]);
    const { child, parent, served } = pair(clones);
    expect([child.name, parent.name]).not.toContain('alpha');
    const { network } = await parent.sf.stats();
    expect(network!.served.snapshots[served]!.sent.unicast.bytes).toBeGreaterThan(MiB);
  });

  it('goes on without it', async () => {
    const clones = await forkOver(cluster.hosts.slice(1));
    const { clone, parent } = pair(clones);
    await parent.net.cutOff();
    expect(await sh(clone, HASH)).toBe(hash);
    await parent.net.heal();
    await parent.net.blockMulticast();
  });

  it('is served on when agent and memory server of its neighbour are killed', TRIES, async () => {
    const clones = await forkOver(cluster.hosts.slice(1));
    const { clone, child, parent, served } = pair(clones);
    parent.agent.kill('SIGKILL');
    await cluster.startAgain(parent);
    const killed = processOf(parent, MEMORY_SERVER);
    process.kill(killed, 'SIGKILL');
    await eventually(() => expect(processOf(parent, MEMORY_SERVER)).not.toBe(killed));
    expect(await sh(clone, HASH)).toBe(hash);
    expect(await memoryOf(child, clone)).toMatchObject({ neighbour: parent.name });
    const { network } = await parent.sf.stats();
    expect(network!.served.snapshots).toHaveProperty([served]);
  });

  it('is told by one that needs the snapshot no more', TRIES, async () => {
    const clones = await forkOver(cluster.hosts.slice(1));
    const { clone, child, parent } = pair(clones);
    await clones.find(({ initialInfo }) => initialInfo.host === parent.name)!.kill();
    await eventually(async () => {
      expect(await memoryOf(parent, clone)).toBeUndefined();
    });
    expect(await sh(clone, HASH)).toBe(hash);
    const received = await memoryOf(child, clone);
    expect(received).not.toHaveProperty('neighbour');
    expect(received!.pagesLost.absent).toBeGreaterThan(0);
  });
});
