// Cgroups of both versions on a folder tree that looks like the kernel's: which place is chosen, what is
// written into which file, and what goes again. What the kernel makes of it: `test/vm/sandbox`.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Cgroups } from '../../packages/clone-agent/src/hypervisor/cgroups.js';

const LIMITS = { memoryBytes: 512 * 2 ** 20, cpus: 1.5, threads: 100, background: false };
const PID = 4242;

let root: string;
let record: string;

beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-cgroups-'));
  record = path.join(root, 'record');
});
afterEach(() => fs.rmSync(root, { recursive: true }));

const at = (...parts: string[]) => path.join(root, 'sys', ...parts);

function make(folder: string, files: Record<string, string> = {}): void {
  fs.mkdirSync(folder, { recursive: true });
  for (const [name, text] of Object.entries(files)) fs.writeFileSync(path.join(folder, name), text);
}

/** All that was written to the files of a folder. */
function written(folder: string): Record<string, string[]> {
  const files = fs.readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isFile());
  return Object.fromEntries(
    files.map(({ name }) => {
      const text = fs.readFileSync(path.join(folder, name), 'utf8');
      return [name, text.trim().split('\n')];
    }),
  );
}

/** The kernel's files go with their folder. */
function rmdirAsKernel(folder: string): void {
  for (const name of Object.keys(written(folder))) fs.rmSync(path.join(folder, name));
}

describe('version 1', () => {
  const mounts = [
    '31 30 0:27 / /sys/cpu rw,relatime - cgroup cgroup rw,cpu',
    '32 30 0:28 / /sys/memory rw,relatime - cgroup cgroup rw,memory',
    '33 30 0:29 / /sys/pids rw,relatime - cgroup cgroup rw,pids',
    '34 30 0:30 / /sys/unified rw,relatime - cgroup2 cgroup2 rw',
  ].join('\n');
  const own = '4:memory:/shop/till\n3:pids:/\n1:cpu:/\n0::/\n';
  const open = (change: { mounts?: string; own?: string } = {}) =>
    Cgroups.open({ agent: '8-15', record, sources: { mounts, own, root, ...change } });

  beforeEach(() => {
    make(at('unified'), { 'cgroup.controllers': 'hugetlb\n' });
    for (const place of ['cpu', 'pids', 'memory/shop/till']) make(at(place));
  });

  test('is used where version 2 has no such controllers, below the own cgroups', async () => {
    const cgroups = await open();
    expect(cgroups.facts).toEqual({
      version: 1,
      limited: ['memory', 'cpu', 'pids'],
      missing: '',
    });
    expect(await cgroups.add('7', PID, LIMITS)).toEqual([]);
    const process = [String(PID)];
    expect(written(at('memory/shop/till/snowfork/8-15/7'))).toEqual({
      'memory.limit_in_bytes': ['536870912'],
      'cgroup.procs': process,
    });
    expect(written(at('pids/snowfork/8-15/7'))).toEqual({
      'pids.max': ['100'],
      'cgroup.procs': process,
    });
    expect(written(at('cpu/snowfork/8-15/7'))).toEqual({
      'cpu.shares': ['1024'],
      'cpu.cfs_period_us': ['100000'],
      'cpu.cfs_quota_us': ['150000'],
      'cgroup.procs': process,
    });
    // Not as much for all VMs together as for one.
    for (const folder of ['cpu/snowfork', 'cpu/snowfork/8-15']) {
      expect(written(at(folder))['cpu.shares']).toEqual([String(1024 * os.availableParallelism())]);
    }
  });

  test('gives little time to what nobody waits for, until somebody does', async () => {
    const cgroups = await open();
    await cgroups.add('7', PID, { ...LIMITS, background: true });
    cgroups.foreground('7');
    expect(written(at('cpu/snowfork/8-15/7'))['cpu.shares']).toEqual(['36', '1024']);
    cgroups.foreground('8');
  });

  test('puts controllers that are mounted together into one folder', async () => {
    const together = mounts.replace('rw,cpu\n', 'rw,cpu,cpuacct,pids\n').replace(/33 .*\n/, '');
    const shared = own.replace('1:cpu:', '1:cpu,cpuacct,pids:').replace('3:pids:/\n', '');
    const cgroups = await open({ mounts: together, own: shared });
    expect(cgroups.facts.limited).toEqual(['memory', 'cpu', 'pids']);
    await cgroups.add('7', PID, LIMITS);
    const names = Object.keys(written(at('cpu/snowfork/8-15/7')));
    expect(names).toEqual(expect.arrayContaining(['pids.max', 'cpu.shares']));
    expect(written(at('cpu/snowfork/8-15/7'))['cgroup.procs']).toEqual([String(PID)]);
  });

  test('says which limits there are not, and sets the others', async () => {
    // A file where the folder should be: nobody may make one there.
    make(at('pids'), { snowfork: '' });
    const cgroups = await open();
    expect(cgroups.facts.limited).toEqual(['memory', 'cpu']);
    expect(cgroups.facts.missing).toMatch(/^no limit of pids: /);
    fs.mkdirSync(at('cpu/snowfork/8-15/7/cpu.cfs_quota_us'), { recursive: true });
    const problems = await cgroups.add('7', PID, LIMITS);
    expect(problems).toEqual([expect.stringContaining('cpu.cfs_quota_us')]);
    expect(written(at('cpu/snowfork/8-15/7'))['cgroup.procs']).toEqual([String(PID)]);
  });

  test('removes what a dead agent left, and at the end all that is its own', async () => {
    const elsewhere = at('memory/old/snowfork/8-15');
    make(path.join(elsewhere, '3'));
    make(at('memory/shop/till/snowfork/8-15/4'));
    make(at('memory/shop/till/snowfork/9-9'));
    fs.writeFileSync(record, `${elsewhere}\n`);
    const cgroups = await open();
    expect(fs.existsSync(path.dirname(elsewhere))).toBe(false);
    expect(fs.readdirSync(at('memory/shop/till/snowfork/8-15'))).toEqual([]);
    expect(fs.readFileSync(record, 'utf8').trim().split('\n')).toHaveLength(3);
    for (const folder of ['cpu/snowfork', 'cpu/snowfork/8-15']) rmdirAsKernel(at(folder));
    await cgroups.close();
    expect(fs.existsSync(record)).toBe(false);
    expect(fs.existsSync(at('cpu/snowfork'))).toBe(false);
    expect(fs.readdirSync(at('memory/shop/till/snowfork'))).toEqual(['9-9']);
  });

  test('keeps the cgroup of a QEMU that a dead agent left running elsewhere', async () => {
    const elsewhere = at('memory/old/snowfork/8-15');
    // As the kernel has it: not to be removed while somebody is in it.
    make(path.join(elsewhere, '3'), { 'cgroup.procs': String(PID) });
    fs.writeFileSync(record, `${elsewhere}\n`);
    const cgroups = await open();
    expect(fs.existsSync(path.join(elsewhere, '3'))).toBe(true);
    expect(fs.readFileSync(record, 'utf8')).toContain(`${elsewhere}\n`);
    fs.rmSync(path.join(elsewhere, '3', 'cgroup.procs'));
    await cgroups.remove('3');
    expect(fs.existsSync(path.join(elsewhere, '3'))).toBe(false);
  });
});

describe('version 2', () => {
  const mounts = '41 30 0:38 / /sys rw,relatime - cgroup2 cgroup2 rw\n';
  const controllers = { 'cgroup.controllers': 'cpuset cpu io memory pids\n' };
  const open = (own: string) =>
    Cgroups.open({ agent: '8-15', record, sources: { mounts, own: `0::${own}\n`, root } });
  const busy = { 'cgroup.procs': '1\n2\n' };

  beforeEach(() => make(at(), { ...controllers, 'cgroup.subtree_control': '' }));

  test('is a folder with all limits, and hands the controllers down to it', async () => {
    make(at('unit'), { ...controllers, 'cgroup.procs': '', 'cgroup.subtree_control': '' });
    const cgroups = await open('/unit');
    expect(cgroups.facts).toEqual({
      version: 2,
      limited: ['memory', 'cpu', 'pids'],
      missing: '',
    });
    for (const folder of ['unit', 'unit/snowfork', 'unit/snowfork/8-15']) {
      const { 'cgroup.subtree_control': control } = written(at(folder));
      expect(control?.filter(Boolean)).toEqual(['+memory', '+cpu', '+pids']);
    }
    expect(await cgroups.add('7', PID, { ...LIMITS, background: true })).toEqual([]);
    cgroups.foreground('7');
    expect(written(at('unit/snowfork/8-15/7'))).toEqual({
      'memory.max': ['536870912'],
      'cpu.weight': ['4', '100'],
      'cpu.max': ['150000 100000'],
      'pids.max': ['100'],
      'cgroup.procs': [String(PID)],
    });
  });

  test('leaves the agent a leaf of its own, where it is alone in its cgroup', async () => {
    make(at('unit'), {
      ...controllers,
      'cgroup.procs': `${process.pid}\n`,
      'cgroup.subtree_control': '',
    });
    await open('/unit');
    const leaf = written(at('unit/snowfork-agent'));
    expect(leaf).toEqual({ 'cgroup.procs': [String(process.pid)] });
    expect(fs.existsSync(at('unit/snowfork/8-15'))).toBe(true);
  });

  test('is made further up, where the own cgroup has other processes or no controllers', async () => {
    make(at('slice'), { ...controllers, 'cgroup.procs': '', 'cgroup.subtree_control': 'memory' });
    // What the kernel refuses to write to.
    make(at('slice/session/cgroup.subtree_control'));
    make(at('slice/session'), { ...controllers, ...busy });
    make(at('slice/session/inner'), { 'cgroup.controllers': '', ...busy });
    const cgroups = await open('/slice/session/inner');
    expect(cgroups.facts.version).toBe(2);
    expect(fs.existsSync(at('slice/snowfork/8-15'))).toBe(true);
    expect(fs.existsSync(at('slice/session/snowfork'))).toBe(false);
    expect(written(at('slice'))['cgroup.subtree_control']).toEqual(['memory+cpu', '+pids']);
  });

  test('is none where nothing may be written, and it is told why', async () => {
    fs.rmSync(at('cgroup.subtree_control'));
    make(at('cgroup.subtree_control'));
    const cgroups = await open('/');
    expect(cgroups.facts).toMatchObject({ version: 0, limited: [] });
    expect(cgroups.facts.missing).toMatch(/^no limit of memory, cpu, pids: .*EISDIR/);
    expect(await cgroups.add('7', PID, LIMITS)).toEqual([]);
    await cgroups.close();
  });
});

test('without any cgroups VMs have no limits, which is told', async () => {
  const cgroups = await Cgroups.open({
    agent: '8-15',
    record,
    sources: { mounts: '', own: '', root },
  });
  expect(cgroups.facts).toEqual({
    version: 0,
    limited: [],
    missing: 'no limit of memory, cpu, pids',
  });
});
