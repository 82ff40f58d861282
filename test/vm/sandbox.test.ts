// What a guest that has taken over its QEMU would meet: a process with the user of one VM's QEMU reaches
// nothing of another VM, of the agent, or of the mount, by whatever path; and QEMU runs with limits, has
// no capabilities and no network. All is looked at from outside, on VMs that fork, nest and are frozen.

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ownUser } from '../../packages/clone-agent/src/hypervisor/confinement.js';
import { BLOCK_USERS } from '../../packages/clone-agent/src/hypervisor/vm-users.js';
import { eventually } from '../support/eventually.js';
import { hostApart, whyNoVms } from '../support/test-host.js';

const MiB = 1024 * 1024;
const EXTRA_BYTES = 192 * MiB;
const FIRST_USER = 1_950_000_000;
const why = whyNoVms();

/** Opens what it is told, as another user, and prints how that went. */
const TRESPASSER = `
import fs from 'node:fs';
const { user, paths, sockets, descriptors } = JSON.parse(process.argv[1]);
process.setgroups([]);
process.setgid(user);
process.setuid(user);
const found = {};
const code = (work) => { try { work(); return 'open'; } catch (error) { return error.code; } };
for (const file of [...paths, ...descriptors]) {
  found[file] = [code(() => fs.closeSync(fs.openSync(file, 'r'))),
    code(() => fs.closeSync(fs.openSync(file, 'r+')))];
}
for (const file of sockets) {
  found[file] = await new Promise((resolve) => {
    const socket = net.connect(file);
    socket.on('connect', () => resolve(['open'])).on('error', (error) => resolve([error.code]));
  });
}
console.log(JSON.stringify(found));
process.exit(0);
`;

interface Trespass {
  readonly user: number;
  readonly paths?: readonly string[];
  readonly sockets?: readonly string[];
  /** A folder that it is handed as descriptor 4, as QEMU is. */
  readonly mount?: string;
  readonly descriptors?: readonly string[];
}

function trespass({ mount, paths = [], sockets = [], descriptors = [], user }: Trespass) {
  const O_PATH = 0o10000000;
  const folder = mount === undefined ? undefined : fs.openSync(mount, O_PATH);
  const told = JSON.stringify({ user, paths, sockets, descriptors });
  const ran = spawnSync(process.execPath, ['--input-type=module', '-e', TRESPASSER, told], {
    stdio: ['ignore', 'pipe', 'pipe', 'ignore', folder ?? 'ignore'],
    cwd: '/',
  });
  if (folder !== undefined) fs.closeSync(folder);
  expect(ran.stderr.toString()).toBe('');
  return JSON.parse(ran.stdout.toString()) as Record<string, string[]>;
}

/** Fields of `/proc/PID/status`. */
function status(pid: number): Record<string, string[]> {
  const lines = fs.readFileSync(`/proc/${pid}/status`, 'latin1').trim().split('\n');
  return Object.fromEntries(
    lines.map((line) => {
      const [name, ...values] = line.split(/\s+/);
      return [name!.replace(':', ''), values.filter(Boolean)];
    }),
  );
}

/** The folders of a process in the hierarchies of these controllers, below the mount of each. */
function cgroup(pid: number, controller: string): { folder: string; version: 1 | 2 } {
  const lines = fs.readFileSync(`/proc/${pid}/cgroup`, 'latin1').trim().split('\n');
  const mounts = fs.readFileSync('/proc/self/mountinfo', 'latin1').split('\n');
  const own = lines.find((line) => line.split(':')[1]?.split(',').includes(controller));
  const options = (line: string) => line.split(' - ')[1]?.split(' ') ?? [];
  if (own !== undefined) {
    const mount = mounts.find((line) => options(line)[2]?.split(',').includes(controller))!;
    return { folder: path.join(mount.split(' ')[4]!, own.split(':')[2]!), version: 1 };
  }
  const mount = mounts.find((line) => options(line)[0] === 'cgroup2')!;
  const unified = lines.find((line) => line.startsWith('0::'))!;
  return { folder: path.join(mount.split(' ')[4]!, unified.slice(3)), version: 2 };
}

async function pidOf(vm: Vm): Promise<number> {
  return (await vm.info()).pid!;
}

async function userOf(vm: Vm): Promise<number> {
  return Number(status(await pidOf(vm)).Uid![0]);
}

async function folderOf(vm: Vm): Promise<string> {
  return fs.readlinkSync(`/proc/${await pidOf(vm)}/cwd`);
}

async function clonesOf(vm: Vm, count: number): Promise<Vm[]> {
  const { clones } = await vm.fork(count);
  return clones.map((clone) => {
    if (clone.status === 'rejected') throw clone.reason;
    return clone.value;
  });
}

describe.skipIf(why !== undefined)(`a QEMU${why === undefined ? '' : ` (skipped: ${why})`}`, () => {
  let apart: Awaited<ReturnType<typeof hostApart>>;
  let host: Host;
  let parent: Vm;
  let clones: Vm[];

  beforeAll(async () => {
    const settings = {
      warmPoolSize: 1,
      vmMemoryExtraBytes: EXTRA_BYTES,
      vmCpusExtra: 0.5,
      vmUserFirst: FIRST_USER,
    };
    apart = await hostApart(settings, 'minimal');
    host = apart.host;
    parent = await host.launch('minimal');
    clones = await clonesOf(parent, 2);
  });
  afterAll(async () => {
    await apart?.dispose();
  });

  test('has a user of its own, no rights, and a filter of system calls', async () => {
    const users: number[] = [];
    for (const vm of [parent, ...clones]) {
      const { Uid, Gid, Groups, NoNewPrivs, Seccomp, ...rest } = status(await pidOf(vm));
      const [user] = Uid!;
      expect(new Set([...Uid!, ...Gid!])).toEqual(new Set([user]));
      expect(Groups).toEqual([]);
      for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) {
        expect(BigInt(`0x${rest[set]![0]}`)).toBe(0n);
      }
      expect([NoNewPrivs, Seccomp]).toEqual([['1'], ['2']]);
      users.push(Number(user));
    }
    expect(new Set(users).size).toBe(users.length);
    const last = FIRST_USER + 256 * BLOCK_USERS;
    expect(users.every((user) => user >= FIRST_USER && user < last)).toBe(true);
  });

  test('has no network, dumps no core, and goes before the agent when memory runs out', async () => {
    const pid = await pidOf(clones[0]!);
    const names = ['net', 'ipc'].map((kind) => fs.readlinkSync(`/proc/${pid}/ns/${kind}`));
    const ours = ['net', 'ipc'].map((kind) => fs.readlinkSync(`/proc/self/ns/${kind}`));
    expect(names.filter((name) => ours.includes(name))).toEqual([]);
    const interfaces = fs.readFileSync(`/proc/${pid}/net/dev`, 'latin1').match(/^\s*\w+:/gm);
    expect(interfaces?.map((name) => name.trim())).toEqual(['lo:']);
    const limits = fs.readFileSync(`/proc/${pid}/limits`, 'latin1');
    expect(limits).toMatch(/^Max core file size\s+0\s+0\s/m);
    expect(limits).toMatch(/^Max open files\s+1024\s+1024\s/m);
    const { pid: agent } = await host.info();
    const score = (of: number) => Number(fs.readFileSync(`/proc/${of}/oom_score_adj`, 'latin1'));
    expect(score(pid)).toBeGreaterThan(score(agent));
  });

  test('has nothing open that it was not given', async () => {
    const pid = await pidOf(clones[0]!);
    const folder = await folderOf(clones[0]!);
    const kinds = fs
      .readdirSync(`/proc/${pid}/fd`)
      .map((fd) => fs.readlinkSync(`/proc/${pid}/fd/${fd}`))
      .filter((target) => !/^(socket:|anon_inode:|\/dev\/null$)/.test(target))
      .map((target) => path.relative(apart.state, target));
    const { snapshot } = await clones[0]!.info();
    const expected = ['mnt', `mnt/${snapshot}/ram`, expect.stringMatching(/^mnt\/\w+\/disk0$/)];
    expect(kinds).toHaveLength(expected.length);
    expect(kinds).toEqual(expect.arrayContaining(expected));
    expect(path.relative(apart.state, folder)).toMatch(/^run\/vms\/\d+$/);
  });

  test('reaches nothing of another, of the agent or of the mount', async () => {
    const [one, other] = clones as [Vm, Vm];
    const theirs = await folderOf(other);
    const pid = await pidOf(other);
    const { snapshot } = await parent.info();
    const layers = path.join(apart.state, 'run/layers');
    const files = [
      path.join(theirs, 'device'),
      path.join(apart.state, 'mnt', snapshot, 'ram'),
      path.join(apart.state, 'run/snapshots', snapshot, 'snapshot.json'),
      ...fs.readdirSync(layers).map((layer) => path.join(layers, layer)),
      `/proc/${pid}/mem`,
      `/proc/${pid}/environ`,
      `/proc/${pid}/fd/4`,
    ];
    const sockets = ['qmp.sock', 'port.sock', 'console.sock'].map((name) =>
      path.join(theirs, name),
    );
    sockets.push(path.join(apart.state, 'agent.sock'), path.join(apart.state, 'run/pager.sock'));
    const found = trespass({ user: await userOf(one), paths: files, sockets });
    expect(files.length).toBeGreaterThan(6);
    const opened = Object.entries(found).filter(
      ([, codes]) => !codes.every((code) => code === 'EACCES'),
    );
    expect(opened).toEqual([]);
    // The same files are there, for who may.
    for (const file of [...files.slice(0, 4), ...sockets]) expect(fs.existsSync(file)).toBe(true);
  });

  test('opens only its own memory, also through the mount that it was handed', async () => {
    const [one] = clones as [Vm];
    const inside = async (vm: Vm) => `/proc/self/fd/4/${(await vm.info()).snapshot}/ram`;
    const own = await inside(one);
    const foreign = await inside(parent);
    const mount = path.join(apart.state, 'mnt');
    const descriptors = [own, foreign, '/proc/self/fd/4/../run/pager.sock'];
    const found = trespass({ user: await userOf(one), mount, descriptors });
    expect(found).toEqual({
      [own]: ['open', 'open'],
      [foreign]: ['EACCES', 'EACCES'],
      '/proc/self/fd/4/../run/pager.sock': ['EACCES', 'EACCES'],
    });
  });

  test('may write its device state, and makes no file', async () => {
    const folder = await folderOf(parent);
    const user = await userOf(parent);
    expect(ownUser(folder)).toBe(user);
    const { uid, mode } = fs.statSync(folder);
    expect({ uid, mode: mode & 0o777 }).toEqual({ uid: 0, mode: 0o710 });
    const own = fs.readdirSync(folder).filter((name) => {
      const file = fs.statSync(path.join(folder, name));
      return file.isFile() && file.uid === user;
    });
    expect(own).toEqual(['device']);
    const made = spawnSync(
      'setpriv',
      [
        ...[`--reuid=${user}`, `--regid=${user}`, '--clear-groups', '--'],
        ...['sh', '-c', ': > new || : > ../new || : > /run/new'],
      ],
      { cwd: folder },
    );
    expect(made.status).not.toBe(0);
    expect(fs.existsSync(path.join(folder, 'new'))).toBe(false);
  });

  test('has limits of memory, processors and threads, where this host has cgroups', async () => {
    const { checks } = await host.doctor();
    expect(checks.find(({ name }) => name === 'sandbox')).toMatchObject({ status: 'ok' });
    const limits = checks.find(({ name }) => name === 'limits')!;
    const limited = /limit ([a-z, ]+) of/.exec(limits.message)?.[1]?.split(', ') ?? [];
    if (limits.status === 'ok') expect(limited).toEqual(['memory', 'cpu', 'pids']);
    const pid = await pidOf(clones[0]!);
    const { machine } = await clones[0]!.info();
    const read = (controller: string, names: Record<1 | 2, string>) => {
      const { folder, version } = cgroup(pid, controller);
      expect(folder).toMatch(/\/snowfork\/\d+-\d+\/\d+$/);
      return fs.readFileSync(path.join(folder, names[version]), 'latin1').trim();
    };
    for (const controller of limited) {
      if (controller === 'memory') {
        const bytes = read('memory', { 1: 'memory.limit_in_bytes', 2: 'memory.max' });
        expect(Number(bytes)).toBe(machine.memoryBytes + EXTRA_BYTES);
      } else if (controller === 'cpu') {
        const quota = read('cpu', { 1: 'cpu.cfs_quota_us', 2: 'cpu.max' });
        expect(quota.split(' ')[0]).toBe(String((machine.vcpus + 0.5) * 100_000));
        expect(read('cpu', { 1: 'cpu.shares', 2: 'cpu.weight' })).toMatch(/^(1024|100)$/);
      } else {
        expect(Number(read('pids', { 1: 'pids.max', 2: 'pids.max' }))).toBeGreaterThan(64);
      }
    }
  });

  test('forks, nests and is frozen like that, and leaves nothing when it ends', async () => {
    const [child] = await clonesOf(clones[1]!, 1);
    const { snapshot } = await child!.checkpoint();
    const checkpoint = snapshot.id;
    const { clones: later } = await host.createClones(checkpoint, 1);
    const grandchild = later[0]!;
    if (grandchild.status === 'rejected') throw grandchild.reason;
    expect((await grandchild.value.exec(['cat', '/proc/sys/kernel/ostype'])).stdout).toBe(
      'Linux\n',
    );
    const pid = await pidOf(grandchild.value);
    const folder = await folderOf(grandchild.value);
    const user = await userOf(grandchild.value);
    const cgroups = ['memory', 'cpu', 'pids'].map((name) => cgroup(pid, name).folder);
    const opener = path.join(apart.state, 'run/openers', String(user));
    expect(fs.readFileSync(opener, 'utf8')).toContain(`${checkpoint}/ram\n`);
    await grandchild.value.kill();
    await eventually(() => {
      expect([folder, opener, ...cgroups].filter((each) => fs.existsSync(each))).toEqual([]);
    });
  });
});

test.skipIf(why !== undefined)('an agent that ends leaves no cgroup', async () => {
  const { host, state, dispose } = await hostApart({ warmPoolSize: 0 }, 'minimal');
  try {
    const vm = await host.launch('minimal');
    const folders = fs.readFileSync(path.join(state, 'cgroups'), 'utf8').trim().split('\n');
    expect(folders.some((folder) => fs.existsSync(path.join(folder, '1')))).toBe(true);
    expect((await vm.info()).state).toBe('running');
    await host.shutDown();
    await eventually(() => {
      expect(folders.filter((folder) => fs.existsSync(folder))).toEqual([]);
      expect(fs.existsSync(path.join(state, 'cgroups'))).toBe(false);
    });
  } finally {
    await dispose();
  }
});

test.skipIf(why !== undefined)('VMs run as the agent where it is told so', async () => {
  const { host, dispose } = await hostApart({ warmPoolSize: 0, vmUserFirst: 0 }, 'minimal');
  try {
    const vm = await host.launch('minimal');
    const [clone] = await clonesOf(vm, 1);
    const { Uid, CapEff, NoNewPrivs } = status(await pidOf(clone!));
    expect({ Uid: Uid![0], NoNewPrivs }).toEqual({ Uid: '0', NoNewPrivs: ['1'] });
    expect(BigInt(`0x${CapEff![0]}`)).toBe(0n);
    const { checks } = await host.doctor();
    expect(checks.find(({ name }) => name === 'sandbox')).toMatchObject({
      status: 'warn',
      message: expect.stringContaining('vmUserFirst'),
    });
  } finally {
    await dispose();
  }
});
