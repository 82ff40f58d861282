// What one VM takes of the host, read from /proc. Costs a walk of its page tables: asked for, and
// once at a clone's exit; never on the path of a fork.

import fs from 'node:fs/promises';
import { PAGE_BYTES } from '@snowfork/memserver/pages';
import type { PagesBySource, VmStats } from '@snowfork/sdk/api';
import type { PagerStats, Readers } from '../pager/keeper.js';
import type { Snapshot } from '../store/snapshots.js';
import type { Vm } from './vm.js';

/** Clock ticks of /proc/PID/stat; USER_HZ is 100 on every Linux that Node runs on. */
const TICK_MS = 10;

/** Who read the memory of a snapshot, as the pager has counted it. */
export function readersOf({ objects }: Pick<PagerStats, 'objects'>, { file }: Snapshot): Readers {
  const ram = objects.find(({ snapshot, object }) => snapshot === file.id && object === 'ram');
  return ram?.readers ?? {};
}

/** `pid`: of a QEMU; `readers`: of its memory. */
export function pagesBySource(pid: number, readers: Readers): PagesBySource {
  const [zero, local, replica, demand] = readers[pid] ?? [0, 0, 0, 0];
  return { zero, local, replica: replica - demand, demand };
}

/** `readers`: of its memory, if that may take a while. @throws SnowforkError SF_VM_GONE. */
export async function readVmStats(vm: Vm, readers?: Readers): Promise<VmStats> {
  vm.assertAlive();
  const [smaps, stat] = await Promise.all([
    fs.readFile(`/proc/${vm.qemu.pid}/smaps`, 'latin1'),
    fs.readFile(`/proc/${vm.qemu.pid}/stat`, 'latin1'),
  ]);
  let pssBytes = 0;
  const ram = { Rss: 0, Pss: 0, Anonymous: 0 };
  for (const mapping of smaps.split(/\n(?=[0-9a-f]+-[0-9a-f]+ )/)) {
    const field = (name: string) =>
      Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(mapping)?.[1] ?? 0) * 1024;
    pssBytes += field('Pss');
    const end = mapping.indexOf('\n');
    if (!mapping.slice(0, end).endsWith(`/${vm.base.file.id}/ram`)) continue;
    ram.Rss += field('Rss');
    ram.Pss += field('Pss');
    ram.Anonymous += field('Anonymous');
  }
  const times = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const touchedPages = ram.Rss / PAGE_BYTES;
  const privatePages = ram.Anonymous / PAGE_BYTES;
  const brought = readers && pagesBySource(vm.qemu.pid, readers);
  const own = brought ? Object.values(brought).reduce((sum, pages) => sum + pages, 0) : 0;
  return {
    vm: vm.id,
    pssBytes,
    ramPssBytes: ram.Pss,
    touchedPages,
    privatePages,
    sharedPages: touchedPages - privatePages,
    freePages: vm.base.file.pages.freePages,
    ...(brought ? { pages: { ...brought, cache: Math.max(0, touchedPages - own) } } : {}),
    cpuMs: (Number(times[11]) + Number(times[12])) * TICK_MS,
  };
}
