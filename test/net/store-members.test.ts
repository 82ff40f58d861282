// Members of the cluster's store that come and go: real agents and etcd, each host a network namespace,
// no VMs. That forks go on, `vm/cluster` tests.

import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import {
  readClusterFile,
  writeClusterFile,
} from '../../packages/clone-agent/src/cluster/cluster-file.js';
import { type Member, NetCluster } from '../../packages/clone-agent/src/system/net-cluster.js';
import { whyNoNetHosts } from '../../packages/clone-agent/src/system/net-hosts.js';
import { agentLog, processOf, selfOf } from '../support/cluster-hosts.js';
import { patiently } from '../support/eventually.js';

/** As in `/proc/PID/cmdline`. */
const ETCD = 'etcd\0--name';

async function open(hosts: number): Promise<NetCluster> {
  const settings = { storeMember: true };
  return await NetCluster.join({ hosts, parentFolder: os.tmpdir(), settings });
}

async function membersOf({ sf }: Member): Promise<string[]> {
  return (await sf.hosts()).filter(({ storeMember }) => storeMember).map(({ name }) => name);
}

function endpointsOf({ state }: Member): string[] {
  return [...readClusterFile(state)!.store.endpoints].sort();
}

function hasEtcd(host: Member): boolean {
  try {
    return processOf(host, ETCD) > 0;
  } catch {
    return false;
  }
}

async function shutDown({ sf, agent }: Member): Promise<void> {
  const ended = once(agent, 'exit');
  await sf.shutDown();
  await ended;
}

async function storeCheck({ sf }: Member) {
  const { checks } = await sf.doctor();
  return checks.find(({ name }) => name === 'store')!;
}

describe.skipIf(whyNoNetHosts() !== undefined)('the store of four hosts with etcd', () => {
  let cluster: NetCluster;
  let alpha: Member;

  beforeAll(async () => {
    cluster = await open(4);
    alpha = cluster.hosts[0]!;
  });

  afterEach(async () => {
    for (const { net } of cluster.hosts) await net.heal();
    await threeMembers();
  });

  afterAll(async () => {
    await cluster?.close();
  });

  const hostOf = (name: string) => cluster.hosts.find((host) => host.name === name)!;

  /** As all hosts that are there see it. */
  async function threeMembers(): Promise<{ members: Member[]; other: Member }> {
    let names: string[] = [];
    await patiently(async () => {
      names = await membersOf(alpha);
      expect(names).toHaveLength(3);
      const endpoints = names.map((name) => `https://${hostOf(name).net.address}:7412`).sort();
      for (const host of cluster.hosts) {
        expect(await membersOf(host)).toEqual(names);
        expect(endpointsOf(host)).toEqual(endpoints);
        expect(hasEtcd(host)).toBe(names.includes(host.name));
      }
    });
    const other = cluster.hosts.find(({ name }) => !names.includes(name))!;
    return { members: names.map(hostOf), other };
  }

  /** What was not answered in time may be done all the same. */
  async function takeOut({ name }: Member): Promise<void> {
    let isRepeat = false;
    await patiently(async () => {
      const refusal = await alpha.sf.removeHost(name).catch((error: { code?: string }) => error);
      const isDone = refusal === undefined || (isRepeat && refusal.code === 'SF_HOST_NOT_FOUND');
      isRepeat = true;
      if (!isDone) throw refusal;
    });
  }

  it('gets three members, and all hosts know where they are', async () => {
    const { members, other } = await threeMembers();
    expect(members[0]).toBe(alpha);
    await patiently(async () =>
      expect(await storeCheck(other)).toMatchObject({
        status: 'ok',
        message: expect.stringMatching(/3 members.*alpha/),
      }),
    );
  });

  it('goes on without any one of them, and without two not, until one is back', async () => {
    const { members, other } = await threeMembers();
    const [first, second] = members as [Member, Member];
    for (const gone of members) {
      await gone.net.cutOff();
      await patiently(async () =>
        expect(await storeCheck(other)).toMatchObject({
          status: 'warn',
          message: expect.stringContaining(`${gone.name} does not answer`),
          mend: expect.stringContaining(`sf host rm ${gone.name}`),
        }),
      );
      await gone.net.heal();
      await patiently(async () => expect((await storeCheck(other)).status).toBe('ok'));
    }
    await first.net.cutOff();
    await second.net.cutOff();
    await patiently(async () =>
      expect(await storeCheck(other)).toMatchObject({
        status: 'fail',
        message: expect.stringContaining(`${first.name}, ${second.name} do not answer`),
      }),
    );
    await first.net.heal();
    await patiently(async () => expect((await storeCheck(other)).status).toBe('warn'));
  });

  it('takes no host out that it could not go on without, and another comes for one that went', async () => {
    const { members, other } = await threeMembers();
    const [, second, third] = members as [Member, Member, Member];
    await second.net.cutOff();
    await patiently(async () => {
      await expect(other.sf.removeHost(third.name)).rejects.toMatchObject({
        code: 'SF_CLUSTER_UNAVAILABLE',
        message: expect.stringMatching(
          new RegExp(`${third.name} can't be spared.*${second.name} does not answer`),
        ),
      });
    });
    expect(await membersOf(alpha)).toContain(third.name);
    // One that is not heard of any more.
    await patiently(async () => {
      expect((await alpha.sf.hosts()).map(({ name }) => name)).not.toContain(second.name);
    });
    await takeOut(second);
    await patiently(async () => expect(await membersOf(alpha)).toContain(other.name));
    // It comes back, and finds that it has no member any more, and none is wanted.
    await second.net.heal();
    const now = await threeMembers();
    expect(now.other).toBe(second);
    expect(fs.existsSync(path.join(second.state, 'etcd'))).toBe(false);
  });

  it('lets a host join anew under its name, without the first host where another has the key', async () => {
    const { members, other } = await threeMembers();
    const gone = members[2]!;
    await takeOut(gone);
    await patiently(async () => expect(await membersOf(alpha)).toContain(other.name));
    await patiently(() => expect(hasEtcd(gone)).toBe(false));
    await shutDown(gone);
    fs.rmSync(path.join(gone.state, 'cluster.json'));
    await cluster.startAgain(gone);
    await shutDown(other);
    const { caKey } = readClusterFile(alpha.state)!;
    writeClusterFile(other.state, { ...readClusterFile(other.state)!, caKey });
    await cluster.startAgain(other);
    await alpha.net.cutOff();
    const { token, address } = await patiently(() => other.sf.newToken());
    await patiently(() => gone.sf.joinCluster({ at: address, token, ...selfOf(gone) }));
    await alpha.net.heal();
    expect((await threeMembers()).other).toBe(gone);
  });

  it('has a member come anew that has lost what it knew', async () => {
    const { members } = await threeMembers();
    const gone = members[1]!;
    gone.agent.kill('SIGKILL');
    process.kill(processOf(gone, ETCD), 'SIGKILL');
    fs.rmSync(path.join(gone.state, 'etcd'), { recursive: true });
    await cluster.startAgain(gone);
    await patiently(() => expect(agentLog(gone)).toContain('has lost what it had'));
    await threeMembers();
  });

  it('has a host join anew with a new member, though nobody had taken out the old one', async () => {
    const { members, other } = await threeMembers();
    const gone = members[1]!;
    await shutDown(gone);
    process.kill(processOf(gone, ETCD), 'SIGKILL');
    for (const name of ['cluster.json', 'etcd']) {
      fs.rmSync(path.join(gone.state, name), { recursive: true });
    }
    await cluster.startAgain(gone);
    const { token, address } = await patiently(() => alpha.sf.newToken());
    await patiently(() => gone.sf.joinCluster({ at: address, token, ...selfOf(gone) }));
    const now = await threeMembers();
    expect([gone, other]).toContain(now.other);
  });
});

describe.skipIf(whyNoNetHosts() !== undefined)('the store of two hosts with etcd', () => {
  let cluster: NetCluster;
  let alpha: Member;
  let beta: Member;

  beforeAll(async () => {
    cluster = await open(2);
    [alpha, beta] = cluster.hosts as [Member, Member];
  });

  afterAll(async () => {
    await cluster?.close();
  });

  it('keeps its one member, which can not be taken out', async () => {
    await patiently(async () => expect(await membersOf(beta)).toEqual(['alpha']));
    await patiently(async () =>
      expect(beta.sf.removeHost('alpha')).rejects.toMatchObject({
        code: 'SF_BAD_REQUEST',
        message: expect.stringContaining('apt-get install etcd-server'),
      }),
    );
    expect(hasEtcd(beta)).toBe(false);
    expect(await membersOf(alpha)).toEqual(['alpha']);
  });
});
