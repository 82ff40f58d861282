// `sf doctor`: every answer of every check, from facts that this machine does not have, and what the
// agent's own checks say. That the facts are read right is seen where the command runs (`cli.test.ts`).

import type { DoctorCheck, HostStats, ImageInfo } from '@snowfork/sdk/api';
import { describe, expect, test } from 'vitest';
import {
  checkAccelerator,
  checkImages,
  checkLayers,
  checkLimits,
  checkRoom,
  checkSandbox,
  checkWrites,
} from '../../packages/clone-agent/src/doctor.js';
import { type HostFacts, readCgroups, readFacts } from '../../packages/sdk/src/cli/doctor/facts.js';
import { judgeHost } from '../../packages/sdk/src/cli/doctor/judge.js';
import { machine } from '../support/fake-service.js';

const MiB = 1024 * 1024;

const good: HostFacts = {
  nodeVersion: '20.20.2',
  platform: 'linux',
  architecture: 'x64',
  kernelRelease: '6.12.9-cloud-amd64',
  seccomp: true,
  user: { id: 0, mayMount: true, inNamespace: false, refusal: undefined },
  fuse: 'ok',
  qemuNamed: undefined,
  programs: {
    'qemu-system-x86_64': '/usr/bin/qemu-system-x86_64',
    mount: '/usr/bin/mount',
    umount: '/usr/bin/umount',
    mmdebstrap: '/usr/bin/mmdebstrap',
    mksquashfs: '/usr/bin/mksquashfs',
    depmod: '/usr/sbin/depmod',
  },
  memory: { totalBytes: 24_576 * MiB, availableBytes: 20_480 * MiB },
  cgroups: { version: 2, controllers: ['cpu', 'memory', 'pids'] },
  receiveBufferBytesMax: 4 * MiB,
  interfaces: [{ name: 'eth0', isLoopback: false, isUp: true, multicast: 'ok' }],
};

const refusal = { reason: 'unshare failed', mend: '`sysctl -w x=1`' };

function judged(name: string, facts: Partial<HostFacts>): DoctorCheck {
  return judgeHost({ ...good, ...facts }).find((check) => check.name === name)!;
}

describe('the host', () => {
  test('that has everything passes every check', () => {
    expect(judgeHost(good).filter(({ status }) => status !== 'ok')).toEqual([]);
  });

  test('has checks of different names, and a mend for each that is not ok', () => {
    const bad = judgeHost({
      ...good,
      nodeVersion: '18.19.0',
      platform: 'darwin',
      kernelRelease: '5.10.0-1',
      seccomp: false,
      user: { id: 1000, mayMount: false, inNamespace: false, refusal },
      fuse: 'ENOENT',
      programs: {},
      memory: { totalBytes: MiB, availableBytes: MiB },
      cgroups: { version: 0, controllers: [] },
      receiveBufferBytesMax: 212_992,
      interfaces: [],
    });
    expect(bad.filter(({ status, mend }) => status === 'ok' || !mend)).toEqual([]);
    expect(new Set(bad.map(({ name }) => name)).size).toBe(bad.length);
  });

  test.each<[string, Partial<HostFacts>]>([
    ['system', { architecture: 'arm64' }],
    ['node', { nodeVersion: '18.20.4' }],
    ['user', { user: { id: 1000, mayMount: false, inNamespace: false, refusal } }],
    ['fuse', { fuse: 'EACCES' }],
    ['qemu', { programs: { ...good.programs, 'qemu-system-x86_64': undefined } }],
    ['qemu', { programs: { ...good.programs, umount: undefined } }],
    ['memory', { memory: { totalBytes: 1024 * MiB, availableBytes: 512 * MiB } }],
  ])('without %s forks no VM', (name, facts) => {
    expect(judged(name, facts).status).toBe('fail');
  });

  test.each<[string, Partial<HostFacts>]>([
    ['kernel', { seccomp: false }],
    ['user', { user: { id: 0, mayMount: true, inNamespace: true, refusal: undefined } }],
    ['user', { user: { id: 1000, mayMount: false, inNamespace: false, refusal: undefined } }],
    ['image tools', { programs: { ...good.programs, mksquashfs: undefined } }],
    ['memory', { memory: { totalBytes: 2048 * MiB, availableBytes: 1024 * MiB } }],
    ['cgroups', { cgroups: { version: 1, controllers: ['cpu', 'pids'] } }],
    ['receive buffer', { receiveBufferBytesMax: 212_992 }],
    ['multicast', { interfaces: [{ ...good.interfaces[0]!, isLoopback: true }] }],
  ])('with a poor %s is warned of, and forks all the same', (name, facts) => {
    expect(judged(name, facts).status).toBe('warn');
  });

  test('is told what an older kernel lacks, and nothing of what it has', () => {
    expect(judged('kernel', { kernelRelease: '6.1.0-40-amd64' }).message).toMatch(/PAGEMAP_SCAN/);
    const newer = judged('kernel', { kernelRelease: '6.8.12' }).message;
    expect(newer).not.toContain('PAGEMAP_SCAN');
    expect(judged('kernel', { kernelRelease: '7.0.0' }).status).toBe('ok');
  });

  test('is told what forbids a namespace, and how that is mended', () => {
    const user = { id: 1000, mayMount: false, inNamespace: false, refusal };
    expect(judged('user', { user })).toMatchObject({
      message: expect.stringContaining(refusal.reason),
      mend: refusal.mend,
    });
  });

  test('is told what is missing without root', () => {
    const user = { id: 1000, mayMount: false, inNamespace: false, refusal: undefined };
    const { message, mend } = judged('user', { user });
    expect(message).toMatch(/user of its own for each VM.*cgroups.*FUSE.*priority.*images/);
    expect(mend).toContain('root');
  });

  test('is told which QEMU was named in vain', () => {
    const programs = { ...good.programs, 'qemu-system-x86_64': undefined };
    const check = judged('qemu', { programs, qemuNamed: '/nowhere/qemu' });
    expect(check).toMatchObject({
      status: 'fail',
      message: expect.stringContaining('/nowhere/qemu'),
      mend: expect.not.stringContaining('apt-get'),
    });
  });

  test('is told the Debian packages of what is missing', () => {
    const programs = { ...good.programs, mksquashfs: undefined, depmod: undefined };
    expect(judged('image tools', { programs }).mend).toContain('squashfs-tools kmod');
  });

  test('is seen as it is', async () => {
    const facts = await readFacts(process.env);
    expect(facts).toMatchObject({
      nodeVersion: process.versions.node,
      platform: process.platform,
      user: { id: process.getuid?.() },
    });
    expect(facts.memory.totalBytes).toBeGreaterThan(facts.memory.availableBytes);
    expect(facts.receiveBufferBytesMax).toBeGreaterThan(0);
    const loopback = facts.interfaces.find(({ isLoopback }) => isLoopback);
    expect(loopback?.name).toBe('lo');
  });

  test('names the QEMU that SNOWFORK_QEMU names, when it can be run', async () => {
    const qemu = async (path: string) =>
      (await readFacts({ ...process.env, SNOWFORK_QEMU: path })).programs['qemu-system-x86_64'];
    expect(await qemu('/bin/sh')).toBe('/bin/sh');
    expect(await qemu('/nowhere/qemu')).toBeUndefined();
  });
});

describe('cgroups', () => {
  const v1 = '33 31 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n';
  const named = '40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n';
  const v2 = '41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n';

  test.each([
    ['v2 alone', v2, 'cpu memory pids\n', { version: 2, controllers: ['cpu', 'memory', 'pids'] }],
    ['v1 alone', v1, '', { version: 1, controllers: ['memory'] }],
    [
      'v1 with a v2 that has the rest',
      v1 + named + v2,
      'hugetlb\n',
      { version: 1, controllers: ['memory'] },
    ],
    ['v2 with little in it', v2, 'hugetlb\n', { version: 2, controllers: ['hugetlb'] }],
    ['neither', '', '', { version: 0, controllers: [] }],
  ])('%s', (_name, mounts, controllers, expected) => {
    const asked: string[] = [];
    const found = readCgroups(mounts, (file) => {
      asked.push(file);
      return controllers;
    });
    expect(found).toEqual(expected);
    expect(asked.every((file) => file === '/sys/fs/cgroup/unified/cgroup.controllers')).toBe(true);
  });
});

describe('the agent', () => {
  const memory = (fields: Partial<HostStats['memory']>): HostStats['memory'] => ({
    totalBytes: 8192 * MiB,
    availableBytes: 6144 * MiB,
    promisedBytes: 0,
    roomBytes: 5000 * MiB,
    layersBytes: 0,
    layersBytesMax: 4096 * MiB,
    ...fields,
  });
  const image = (name: string, memoryBytes = machine.memoryBytes): ImageInfo => ({
    name,
    snapshot: 's1',
    builtAt: 1,
    kernel: '6.1',
    machine: { ...machine, memoryBytes },
    storedBytes: 1,
  });

  test('says why there is no KVM', () => {
    const qemu = { path: '/usr/bin/qemu', version: '7.2.22', readsAhead: false };
    const reason = 'KVM runs no boot sector: /dev/kvm: ENOENT';
    const check = checkAccelerator({ ...qemu, accelerator: 'tcg', reason });
    expect(check).toMatchObject({ status: 'warn', message: expect.stringContaining(reason) });
    expect(checkAccelerator({ ...qemu, accelerator: 'kvm', reason: 'it ran' }).status).toBe('ok');
    const denied = 'KVM runs no boot sector: /dev/kvm: EACCES';
    const { mend } = checkAccelerator({ ...qemu, accelerator: 'tcg', reason: denied });
    expect(mend).toContain('usermod -aG kvm');
  });

  test('says why forks copy more than they need to', () => {
    expect(checkWrites(undefined).status).toBe('ok');
    const message = expect.stringContaining('userfaultfd: Operation not permitted');
    const check = checkWrites('userfaultfd: Operation not permitted');
    expect(check).toMatchObject({ status: 'warn', message, mend: expect.stringContaining('6.7') });
  });

  test('says what keeps QEMUs apart, and what is missing', () => {
    const cgroups = { version: 2, limited: ['memory', 'cpu', 'pids'], missing: '' } as const;
    const users = { first: 1000, count: 10 };
    const whole = { users, sharesNetwork: undefined, keepsCapabilities: undefined, cgroups };
    expect(checkSandbox(whole)).toMatchObject({
      status: 'ok',
      message: expect.stringContaining('1000 to 1009'),
    });
    for (const poor of [
      { ...whole, users: 'why not' },
      { ...whole, sharesNetwork: 'why not' },
      { ...whole, keepsCapabilities: 'why not' },
    ]) {
      const check = checkSandbox(poor);
      expect(check).toMatchObject({
        status: 'warn',
        message: expect.stringContaining('why not'),
        mend: expect.stringContaining('root'),
      });
    }
    expect(checkLimits(whole)).toMatchObject({
      status: 'ok',
      message: 'cgroups v2 limit memory, cpu, pids of each VM',
    });
    const missing = 'no limit of pids: EACCES';
    for (const limited of [['memory', 'cpu'], []] as const) {
      const check = checkLimits({ ...whole, cgroups: { version: 1, limited, missing } });
      expect(check).toMatchObject({ status: 'warn', message: expect.stringContaining(missing) });
    }
  });

  test.each([
    ['ok', 1024],
    ['warn', 100],
    ['fail', 4],
  ])('says %s with so much left for layers', (status, freeMiB) => {
    const layersBytes = (4096 - freeMiB) * MiB;
    expect(checkLayers(memory({ layersBytes })).status).toBe(status);
  });

  test.each([
    ['ok', 5000],
    ['warn', 3 * 368],
    ['fail', 368],
  ])('says %s with so much room', (status, roomMiB) => {
    const images = [image('large', 8192 * MiB), image('small')];
    const check = checkRoom(memory({ roomBytes: roomMiB * MiB }), images);
    expect(check.status).toBe(status);
    expect(check.message).toContain('of small');
  });

  test('says of images which do not run here, and why', () => {
    const images = [image('old'), image('new')];
    const incompatible = ({ name }: ImageInfo) => (name === 'old' ? ['made by QEMU 7.0'] : []);
    expect(checkImages({ images, incompatible })).toMatchObject({
      status: 'warn',
      message: 'do not run here: old: made by QEMU 7.0',
      mend: '`sf image build old --force`',
    });
    expect(checkImages({ images: [], incompatible }).status).toBe('warn');
    expect(checkImages({ images: [image('new')], incompatible }).status).toBe('ok');
  });
});
