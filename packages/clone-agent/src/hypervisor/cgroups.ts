// The cgroups of this agent's QEMUs: one folder for each, with limits of memory, processors and
// threads. Version 2 where the controllers are there, version 1 else; what the host does not allow is
// left out and told. Knows neither QEMU nor VMs. Owned by `confinement.ts`.
//
//   v2   <the nearest cgroup that may have children>/snowfork/<agent>/<vm>
//   v1   <mount of the controller>/<the agent's own cgroup>/snowfork/<agent>/<vm>, for each controller
//
// So limits that somebody set for the agent hold for its VMs too.

import fs from 'node:fs';
import { appendFile, mkdir, readdir, rmdir } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

export const CONTROLLERS = ['memory', 'cpu', 'pids'] as const;
export type Controller = (typeof CONTROLLERS)[number];

const FOLDER = 'snowfork';
/** Where an agent goes that was alone in its cgroup, as version 2 has no processes in inner nodes. */
const AGENT_LEAF = 'snowfork-agent';
const QUOTA_PERIOD_US = 100_000;
/** A folder is busy for a moment after its last process was reaped. */
const REMOVE_ATTEMPTS_MAX = 20;
const REMOVE_DELAY_MS = 25;
/**
 * A QEMU of the background weighs as little as one of niceness 15; all VMs together as much as there
 * are processors, so that a single program beside them does not get as much as all of them.
 */
const WEIGHT = {
  1: { file: 'cpu.shares', normal: 1024, background: 36, max: 262_144 },
  2: { file: 'cpu.weight', normal: 100, background: 4, max: 10_000 },
} as const;

export interface CgroupLimits {
  readonly memoryBytes: number;
  readonly cpus: number;
  readonly threads: number;
  /** Nobody waits for it: little processor time while others want it, until `foreground`. */
  readonly background: boolean;
}

/** For `sf doctor`. */
export interface CgroupFacts {
  readonly version: 0 | 1 | 2;
  readonly limited: readonly Controller[];
  /** Why there are no more; empty when there are all. */
  readonly missing: string;
}

export interface CgroupSources {
  /** `/proc/self/mountinfo`. */
  readonly mounts: string;
  /** `/proc/self/cgroup`. */
  readonly own: string;
  /** Put before every path; for tests. */
  readonly root: string;
}

interface Base {
  readonly version: 1 | 2;
  readonly controllers: readonly Controller[];
  readonly folder: string;
}

export interface CgroupOptions {
  /** The name of this agent's folder: no other agent of the host has it. */
  readonly agent: string;
  /** A file that says, a line each, where the agents of this state folder made cgroups. */
  readonly record: string;
  readonly sources?: CgroupSources;
}

export class Cgroups {
  readonly facts: CgroupFacts;
  readonly #record: string;
  readonly #bases: readonly Base[];
  /** Where an agent before this one, of another cgroup, has left QEMUs running. */
  readonly #older: readonly string[];

  /** Removes also what agents of this state folder have left, but for cgroups of living processes. */
  static async open({ agent, record, sources = readSources() }: CgroupOptions): Promise<Cgroups> {
    const problems: string[] = [];
    const bases = (await openVersion2(agent, sources, problems)) ?? [];
    if (bases.length === 0) bases.push(...(await openVersion1(agent, sources, problems)));
    for (const base of bases) await setWeight(base);
    const ours = new Set(bases.map(({ folder }) => folder));
    for (const folder of ours) await sweep(folder);
    const older: string[] = [];
    for (const folder of readWords(record)) {
      if (!ours.has(folder) && !(await clear(folder))) older.push(folder);
    }
    fs.writeFileSync(record, [...ours, ...older, ''].join('\n'));
    return new Cgroups(record, bases, older, problems);
  }

  private constructor(
    record: string,
    bases: readonly Base[],
    older: readonly string[],
    problems: readonly string[],
  ) {
    this.#record = record;
    this.#bases = bases;
    this.#older = older;
    const limited = bases.flatMap(({ controllers }) => controllers);
    const absent = CONTROLLERS.filter((controller) => !limited.includes(controller));
    const reasons = problems.length > 0 ? `: ${problems.join('; ')}` : '';
    this.facts = {
      version: bases[0]?.version ?? 0,
      limited,
      missing: absent.length === 0 ? '' : `no limit of ${absent.join(', ')}${reasons}`,
    };
  }

  /**
   * Puts a process, which has one thread yet, under limits.
   * @returns what could not be done, in words
   */
  async add(name: string, pid: number, limits: CgroupLimits): Promise<string[]> {
    const problems = this.#bases.map(async ({ version, controllers, folder }) => {
      const own = path.join(folder, name);
      const failed: string[] = [];
      await mkdir(own, { recursive: true });
      for (const [file, value] of settings(version, controllers, limits)) {
        // One may be refused, such as a quota larger than that of a cgroup above: the rest counts.
        await write(own, file, value).catch((error) => failed.push(String(error)));
      }
      await write(own, 'cgroup.procs', String(pid));
      return failed;
    });
    const settled = await Promise.allSettled(problems);
    return settled.flatMap((each) =>
      each.status === 'fulfilled' ? each.value : [String(each.reason)],
    );
  }

  /** Somebody waits for it now. */
  foreground(name: string): void {
    for (const { version, controllers, folder } of this.#bases) {
      if (!controllers.includes('cpu')) continue;
      const { file, normal } = WEIGHT[version];
      try {
        fs.appendFileSync(path.join(folder, name, file), `${normal}\n`);
      } catch {
        // It has gone, or never was in a cgroup.
      }
    }
  }

  /** Its last process has gone. */
  async remove(name: string): Promise<void> {
    await Promise.all(this.#folders.map((folder) => removeFolder(path.join(folder, name))));
  }

  /** All QEMUs have gone. What cannot be removed is left to the next agent of this state folder. */
  async close(): Promise<void> {
    const left = await Promise.all(this.#folders.map((folder) => clear(folder)));
    if (left.every(Boolean)) fs.rmSync(this.#record, { force: true });
  }

  get #folders(): string[] {
    return [...this.#bases.map(({ folder }) => folder), ...this.#older];
  }
}

/** Removes the cgroups in `folder` that have no processes. */
async function sweep(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => []);
  for (const name of names) {
    if (/^\d+$/.test(name)) await rmdir(path.join(folder, name)).catch(() => {});
  }
}

/** Returns whether the folder is gone. */
async function clear(folder: string): Promise<boolean> {
  await sweep(folder);
  await rmdir(folder).catch(() => {});
  if (fs.existsSync(folder)) return false;
  // Shared with other agents: the last one's `rmdir` succeeds.
  await rmdir(path.dirname(folder)).catch(() => {});
  return true;
}

export function readSources(): CgroupSources {
  const read = (file: string) => fs.readFileSync(file, 'utf8');
  return { mounts: read('/proc/self/mountinfo'), own: read('/proc/self/cgroup'), root: '' };
}

/** The mounted hierarchy of a controller (v1) or of version 2, and the agent's own place in it. */
interface Hierarchy {
  readonly mountPoint: string;
  readonly own: string;
}

function findHierarchy(
  { mounts, own, root }: CgroupSources,
  controller: Controller | undefined,
): Hierarchy | undefined {
  const isOwn = (line: string) => {
    const [number, names] = line.split(':', 2);
    return controller === undefined ? number === '0' : names?.split(',').includes(controller);
  };
  const ownPath = own.split('\n').find(isOwn)?.split(':').slice(2).join(':');
  if (ownPath === undefined) return undefined;
  for (const line of mounts.split('\n')) {
    const [before = '', after = ''] = line.split(' - ');
    const [type, , options = ''] = after.split(' ');
    const isIt =
      controller === undefined
        ? type === 'cgroup2'
        : type === 'cgroup' && options.split(',').includes(controller);
    if (!isIt) continue;
    const [, , , mountRoot = '/', mountPoint = ''] = before.split(' ');
    const below = path.posix.relative(mountRoot, ownPath);
    // A mount of another part of the hierarchy: the agent's own place is not to be seen in it.
    const isBelow = below !== '..' && !below.startsWith('../');
    const folder = path.join(root, mountPoint);
    return { mountPoint: folder, own: isBelow ? path.join(folder, below) : folder };
  }
  return undefined;
}

async function openVersion1(
  agent: string,
  sources: CgroupSources,
  problems: string[],
): Promise<Base[]> {
  const bases: Base[] = [];
  for (const controller of CONTROLLERS) {
    const hierarchy = findHierarchy(sources, controller);
    if (hierarchy === undefined) continue;
    const folder = path.join(hierarchy.own, FOLDER, agent);
    try {
      await mkdir(folder, { recursive: true });
      const shared = bases.findIndex((base) => base.folder === folder);
      const controllers = [...(bases[shared]?.controllers ?? []), controller];
      const base: Base = { version: 1, controllers, folder };
      if (shared < 0) bases.push(base);
      else bases[shared] = base;
    } catch (error) {
      problems.push(String(error));
    }
  }
  return bases;
}

/** From the agent's own cgroup upwards, the first that can have children with limits. */
async function openVersion2(
  agent: string,
  sources: CgroupSources,
  problems: string[],
): Promise<Base[] | undefined> {
  const hierarchy = findHierarchy(sources, undefined);
  if (hierarchy === undefined) return undefined;
  const { mountPoint, own } = hierarchy;
  if (wanted(own === mountPoint ? own : mountPoint).length === 0) return undefined;
  for (let at = own; ; at = path.dirname(at)) {
    const folder = path.join(at, FOLDER, agent);
    try {
      const controllers = wanted(at);
      if (controllers.length > 0) {
        await leaveAlone(at, own);
        const enabled = await enable(at, controllers, problems);
        if (enabled.length > 0) {
          await mkdir(folder, { recursive: true });
          const middle = await enable(path.dirname(folder), enabled, problems);
          return [{ version: 2, controllers: await enable(folder, middle, problems), folder }];
        }
      }
    } catch (error) {
      problems.push(String(error));
    }
    if (at === mountPoint) return undefined;
  }
}

function wanted(folder: string): Controller[] {
  const there = readWords(path.join(folder, 'cgroup.controllers'));
  return CONTROLLERS.filter((controller) => there.includes(controller));
}

/** An agent that is alone in its cgroup, as in a systemd unit, makes room in it for children. */
async function leaveAlone(at: string, own: string): Promise<void> {
  const processes = readWords(path.join(at, 'cgroup.procs'));
  if (at !== own || processes.length !== 1 || processes[0] !== String(process.pid)) return;
  const leaf = path.join(at, AGENT_LEAF);
  await mkdir(leaf, { recursive: true });
  await write(leaf, 'cgroup.procs', String(process.pid));
}

/** Hands controllers on to the children of a cgroup. Returns those that it could. */
async function enable(
  folder: string,
  controllers: readonly Controller[],
  problems: string[],
): Promise<Controller[]> {
  const file = 'cgroup.subtree_control';
  for (const controller of controllers) {
    if (readWords(path.join(folder, file)).includes(controller)) continue;
    await write(folder, file, `+${controller}`).catch((error) => problems.push(String(error)));
  }
  const enabled = readWords(path.join(folder, file)).map((word) => word.replace('+', ''));
  return controllers.filter((controller) => enabled.includes(controller));
}

async function setWeight({ version, controllers, folder }: Base): Promise<void> {
  if (!controllers.includes('cpu')) return;
  const { file, normal, max } = WEIGHT[version];
  const weight = String(Math.min(max, normal * os.availableParallelism()));
  // The folder of all agents too.
  for (const each of [path.dirname(folder), folder])
    await write(each, file, weight).catch(() => {});
}

function settings(
  version: 1 | 2,
  controllers: readonly Controller[],
  { memoryBytes, cpus, threads, background }: CgroupLimits,
): (readonly [file: string, value: string])[] {
  const quotaUs = Math.round(cpus * QUOTA_PERIOD_US);
  const { file: weightFile, ...weights } = WEIGHT[version];
  const weight = String(background ? weights.background : weights.normal);
  const files: Record<Controller, readonly (readonly [file: string, value: string])[]> = {
    memory: [[version === 1 ? 'memory.limit_in_bytes' : 'memory.max', String(memoryBytes)]],
    cpu: [
      [weightFile, weight],
      ...(version === 1
        ? ([
            ['cpu.cfs_period_us', String(QUOTA_PERIOD_US)],
            ['cpu.cfs_quota_us', String(quotaUs)],
          ] as const)
        : ([['cpu.max', `${quotaUs} ${QUOTA_PERIOD_US}`]] as const)),
    ],
    pids: [['pids.max', String(threads)]],
  };
  return controllers.flatMap((controller) => files[controller]);
}

/** Appends: the kernel takes each write as one command, and so does a test that keeps them all. */
function write(folder: string, file: string, value: string): Promise<void> {
  return appendFile(path.join(folder, file), `${value}\n`);
}

function readWords(file: string): string[] {
  try {
    return fs.readFileSync(file, 'utf8').split(/\s+/).filter(Boolean);
  } catch {
    return [];
  }
}

async function removeFolder(folder: string): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await rmdir(folder);
      return;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'EBUSY' || attempt === REMOVE_ATTEMPTS_MAX) return;
      await delay(REMOVE_DELAY_MS);
    }
  }
}
