// `sf doctor` of hosts in a cluster: real agents and etcd, each host a network namespace, no VMs. What
// it says of facts that are hard to bring about, `unit/cluster-doctor` tests.

import os from 'node:os';
import type { DoctorCheck } from '@snowfork/sdk';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Member, NetCluster } from '../../packages/clone-agent/src/system/net-cluster.js';
import { whyNoNetHosts } from '../../packages/clone-agent/src/system/net-hosts.js';
import { eventually } from '../support/eventually.js';

const CLUSTER_CHECKS = ['certificate', 'store', 'clocks', 'page delivery', 'socket buffers'];

describe.skipIf(whyNoNetHosts() !== undefined)('the doctor of a cluster', () => {
  let cluster: NetCluster;
  let alpha: Member;
  let beta: Member;

  beforeAll(async () => {
    cluster = await NetCluster.join({ hosts: 2, parentFolder: os.tmpdir() });
    [alpha, beta] = cluster.hosts as [Member, Member];
  });

  afterAll(async () => {
    await cluster?.close();
  });

  const checksOf = async ({ sf }: Member): Promise<Record<string, DoctorCheck>> => {
    const { checks } = await sf.doctor();
    return Object.fromEntries(checks.map((check) => [check.name, check]));
  };

  it('has no fault to find, on either host', async () => {
    for (const [host, other] of [
      [alpha, 'beta'],
      [beta, 'alpha'],
    ] as const) {
      const names = [...CLUSTER_CHECKS, `host ${other}`];
      const checks = await eventually(async () => {
        const said = await checksOf(host);
        expect(names.map((name) => [name, said[name]?.status])).toEqual(
          names.map((name) => [name, 'ok']),
        );
        return said;
      });
      const { version } = await host.sf.info();
      expect(checks[`host ${other}`]!.message).toContain(`version ${version}`);
      expect(checks.certificate!.message).toMatch(/good for 7\d\d days/);
    }
  });

  it('says which host does not answer, and that the store has no majority', async () => {
    await alpha.net.cutOff();
    try {
      await eventually(async () => {
        const checks = await checksOf(beta);
        expect(checks['host alpha']).toMatchObject({
          status: 'warn',
          message: expect.stringMatching(/did not answer|can't be reached/),
          mend: expect.stringContaining('`sf up` on alpha'),
        });
        expect(checks.store).toMatchObject({
          status: 'fail',
          message: expect.stringContaining('etcd'),
          mend: expect.stringContaining('7412'),
        });
      });
    } finally {
      await alpha.net.heal();
    }
    await eventually(async () => {
      const checks = await checksOf(beta);
      expect([checks.store?.status, checks['host alpha']?.status]).toEqual(['ok', 'ok']);
    });
  });
});
