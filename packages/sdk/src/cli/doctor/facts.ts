// Reads what a host has, as plain facts: /proc, /sys, PATH, a few opens. It judges nothing
// (`judge.ts`), changes nothing and needs no agent and no rights. Called by `sf doctor`.

import { accessSync, closeSync, constants, openSync, readFileSync, statSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { FUSE_DEVICE, mayMount, whyNoNamespaces } from '../../host/user-namespace.js';
import { type InterfaceFacts, readInterfaces } from './multicast.js';

/** Programs that Snowfork calls; those for images are needed where images are built. */
export const PROGRAMS = {
  qemu: ['qemu-system-x86_64'],
  mounts: ['mount', 'umount'],
  images: ['mmdebstrap', 'mksquashfs', 'depmod'],
} as const;
/** Where administrators' programs are, which an ordinary user's PATH may lack. */
const ADMIN_FOLDERS = ['/usr/sbin', '/sbin'];

export interface CgroupFacts {
  /** 0: none is mounted. */
  readonly version: 0 | 1 | 2;
  readonly controllers: readonly string[];
}

export interface HostFacts {
  readonly nodeVersion: string;
  readonly platform: string;
  readonly architecture: string;
  /** As `uname -r`. */
  readonly kernelRelease: string;
  /** Whether the kernel has seccomp filters. */
  readonly seccomp: boolean;
  readonly user: {
    readonly id: number;
    /** CAP_SYS_ADMIN, in whichever user namespace this is. */
    readonly mayMount: boolean;
    /** This is not the host's own user namespace. */
    readonly inNamespace: boolean;
    /** Why this user gets no user namespace; undefined: it does, or needs none. */
    readonly refusal: { readonly reason: string; readonly mend: string } | undefined;
  };
  /** `ok`, or the error's code. */
  readonly fuse: string;
  /** What SNOWFORK_QEMU names, if it is set: that and no other is used. */
  readonly qemuNamed: string | undefined;
  /** Where each program is; undefined: not found. */
  readonly programs: Readonly<Record<string, string | undefined>>;
  readonly memory: { readonly totalBytes: number; readonly availableBytes: number };
  readonly cgroups: CgroupFacts;
  readonly receiveBufferBytesMax: number;
  readonly interfaces: readonly InterfaceFacts[];
}

export async function readFacts(environment: NodeJS.ProcessEnv): Promise<HostFacts> {
  const status = read('/proc/self/status');
  const mounts = process.platform === 'linux' && mayMount();
  return {
    nodeVersion: process.versions.node,
    platform: process.platform,
    architecture: process.arch,
    kernelRelease: read('/proc/sys/kernel/osrelease').trim(),
    seccomp: /^Seccomp:/m.test(status),
    user: {
      id: process.getuid?.() ?? -1,
      mayMount: mounts,
      inNamespace: !isWholeRange(read('/proc/self/uid_map')),
      refusal: mounts ? undefined : await whyNoNamespaces(),
    },
    fuse: tryToOpen(FUSE_DEVICE),
    qemuNamed: environment.SNOWFORK_QEMU || undefined,
    programs: findPrograms(environment),
    memory: readMemory(),
    cgroups: readCgroups(read('/proc/self/mountinfo'), (file) => read(file)),
    receiveBufferBytesMax: Number(read('/proc/sys/net/core/rmem_max')),
    interfaces: await readInterfaces(),
  };
}

/** Controllers that limits can be set with: those of v2 where memory is among them, else of v1. */
export function readCgroups(mountInfo: string, readFile: (file: string) => string): CgroupFacts {
  const v1 = new Set<string>();
  let v2: string[] = [];
  for (const line of mountInfo.split('\n')) {
    const [before, after] = line.split(' - ');
    const [type, , options = ''] = after?.split(' ') ?? [];
    if (type === 'cgroup') for (const option of options.split(',')) v1.add(option);
    if (type !== 'cgroup2') continue;
    v2 = readFile(`${before?.split(' ')[4]}/cgroup.controllers`)
      .split(/\s+/)
      .filter(Boolean);
  }
  const named = [...v1].filter((name) => name !== 'rw' && name !== 'ro' && !name.includes('='));
  // A v2 beside v1 (systemd's "unified") has what v1 has left, often nothing of use.
  const isV2 = v2.includes('memory') || (v2.length > 0 && named.length === 0);
  if (isV2) return { version: 2, controllers: v2 };
  return { version: named.length > 0 ? 1 : 0, controllers: named };
}

function readMemory(): HostFacts['memory'] {
  const text = read('/proc/meminfo');
  const bytesOf = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(text)?.[1] ?? 0) * 1024;
  return { totalBytes: bytesOf('MemTotal'), availableBytes: bytesOf('MemAvailable') };
}

function findPrograms(environment: NodeJS.ProcessEnv): Record<string, string | undefined> {
  const folders = (environment.PATH ?? '').split(delimiter).filter(Boolean);
  const places = [...folders, ...ADMIN_FOLDERS];
  const find = (name: string) => places.map((folder) => join(folder, name)).find(isExecutable);
  const names: readonly string[] = Object.values(PROGRAMS).flat();
  const found = Object.fromEntries(names.map((name) => [name, find(name)]));
  const named = environment.SNOWFORK_QEMU;
  if (named) found[PROGRAMS.qemu[0]] = isExecutable(named) ? named : undefined;
  return found;
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return statSync(file).isFile();
  } catch {
    return false;
  }
}

function isWholeRange(map: string): boolean {
  return /^\s*0\s+0\s+4294967295\s*$/.test(map);
}

function tryToOpen(device: string): string {
  try {
    closeSync(openSync(device, 'r+'));
    return 'ok';
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

/** Nothing for what cannot be read: whoever judges says what that means. */
function read(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
