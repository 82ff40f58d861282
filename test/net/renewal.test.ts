// A cluster whose certificates live for seconds: real agents and etcd, each host a network namespace,
// no VMs. Nothing is started anew, and new connections are let in after the first ones have run out.

import os from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { lifeOf } from '../../packages/clone-agent/src/cluster/authority.js';
import { readClusterFile } from '../../packages/clone-agent/src/cluster/cluster-file.js';
import { type Member, NetCluster } from '../../packages/clone-agent/src/system/net-cluster.js';
import { whyNoNetHosts } from '../../packages/clone-agent/src/system/net-hosts.js';
import { processOf } from '../support/cluster-hosts.js';
import { eventually } from '../support/eventually.js';

const LIFETIME_MS = 45_000;
/** As in `/proc/PID/cmdline`. */
const ETCD = 'etcd\0--name';

describe.skipIf(whyNoNetHosts() !== undefined)('hosts whose certificates run out', () => {
  let cluster: NetCluster;
  let alpha: Member;
  let beta: Member;

  beforeAll(async () => {
    const settings = { certificateLifetimeMs: LIFETIME_MS };
    cluster = await NetCluster.join({ hosts: 2, parentFolder: os.tmpdir(), settings });
    [alpha, beta] = cluster.hosts as [Member, Member];
  });

  afterAll(async () => {
    await cluster?.close();
  });

  const certificates = () => [alpha, beta].map(({ state }) => readClusterFile(state)!.certificate);

  it('goes on with others, on all connections that are made then', async () => {
    const first = certificates();
    const endMs = Math.max(...first.map((certificate) => lifeOf(certificate).endsMs));
    await delay(endMs + 1000 - Date.now());
    const then = certificates();
    for (const [index, certificate] of then.entries()) {
      expect(certificate).not.toBe(first[index]);
      expect(lifeOf(certificate).endsMs).toBeGreaterThan(Date.now());
    }
    // Each of these is a connection of its own, agent to agent.
    await expect(alpha.sf.vm('vm1-beta')).rejects.toMatchObject({ code: 'SF_VM_NOT_FOUND' });
    await expect(beta.sf.vm('vm1-alpha')).rejects.toMatchObject({ code: 'SF_VM_NOT_FOUND' });
    // All connections to etcd end with it, and those that come are new.
    const etcd = processOf(alpha, ETCD);
    process.kill(etcd, 'SIGKILL');
    await eventually(() => expect(processOf(alpha, ETCD)).not.toBe(etcd));
    await eventually(async () => {
      for (const { sf } of [alpha, beta]) {
        const { checks } = await sf.doctor();
        const states = checks.filter(({ name }) => name === 'store' || name.startsWith('host '));
        expect(states.map(({ status }) => status)).toEqual(['ok', 'ok']);
        expect((await sf.hosts()).map(({ name }) => name)).toEqual(['alpha', 'beta']);
      }
    });
  });
});
