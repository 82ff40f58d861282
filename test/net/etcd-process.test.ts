// This host's member of etcd as a process: started, killed, left by one agent and found by the next. By
// loopback: needs no root.

import fs from 'node:fs';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { EtcdProcess } from '../../packages/clone-agent/src/cluster/etcd-process.js';
import { EtcdMembers } from '../support/etcd-members.js';
import { eventually } from '../support/eventually.js';
import { isRunning } from '../support/processes.js';

const MEMBER = 'alpha';
let members: EtcdMembers;
let member: EtcdProcess;

beforeAll(async () => {
  members = await EtcdMembers.start([MEMBER]);
  await members.stop(MEMBER);
});
afterEach(() => members.stop(MEMBER));
afterAll(() => members.close());

test('one that is killed is started again, and still knows everything', async () => {
  member = await members.start(MEMBER);
  const before = member.pid;
  const store = await members.open(MEMBER);
  await store.setDraining('beta', true);
  process.kill(before, 'SIGKILL');
  await eventually(() => expect(member.pid).not.toBe(before));
  const host = { id: '1', name: 'beta', address: '127.0.0.1', port: 1, version: '1', startedAt: 1 };
  await eventually(() => store.join(host, { roomBytes: 0, slots: 0, vms: 0 }));
  await eventually(() => expect(store.hosts()).toMatchObject([{ name: 'beta', draining: true }]));
  await store.close();
});

test('one that an agent has left goes on, and the next agent finds it', async () => {
  const left = await members.start(MEMBER);
  left.leave();
  expect(isRunning(left.pid)).toBe(true);
  member = await members.start(MEMBER);
  expect(member.pid).toBe(left.pid);
  await members.stop(MEMBER);
  expect(isRunning(left.pid)).toBe(false);
});

test('one that was stopped stays so', async () => {
  member = await members.start(MEMBER);
  await members.stop(MEMBER);
  expect(isRunning(member.pid)).toBe(false);
  expect(fs.existsSync(path.join(members.options(MEMBER).folder, 'process.json'))).toBe(false);
});

test('who has no certificate of the cluster is not answered', async () => {
  await members.start(MEMBER);
  const other = await EtcdMembers.start(['eve']);
  try {
    const { certificate, privateKey, ca } = await other.access(MEMBER);
    const { endpoints } = await members.access(MEMBER);
    await expect(
      members.open(MEMBER, { endpoints, certificate, privateKey }),
    ).rejects.toMatchObject({ code: 'SF_CLUSTER_UNAVAILABLE' });
    // Nor does a host of this cluster talk to a store of another.
    await expect(members.open(MEMBER, { ca })).rejects.toMatchObject({
      code: 'SF_CLUSTER_UNAVAILABLE',
    });
  } finally {
    await other.close();
  }
});

test('a port that somebody has is said', async () => {
  member = await members.start(MEMBER);
  const { folder, ...of } = members.options(MEMBER);
  await expect(
    EtcdProcess.open({ ...of, folder: path.join(folder, 'second') }),
  ).rejects.toMatchObject({
    code: 'SF_CLUSTER_UNAVAILABLE',
    message: expect.stringMatching(/can't listen at 127.0.0.1:\d+: .*EADDRINUSE/),
  });
});

test('where etcd is not installed, the package is named', async () => {
  const before = process.env.PATH;
  process.env.PATH = members.options(MEMBER).folder;
  try {
    await expect(members.start(MEMBER)).rejects.toMatchObject({
      code: 'SF_CLUSTER_UNAVAILABLE',
      message: expect.stringMatching(/apt-get install etcd-server/),
    });
  } finally {
    process.env.PATH = before;
  }
});
