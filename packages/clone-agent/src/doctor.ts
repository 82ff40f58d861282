// What the agent knows of its host that can keep a VM from being forked: QEMU, accelerator, mounts,
// room. One check each, with the mend. It looks and changes nothing. Called by the agent for
// `GET /v1/doctor`; what can be seen without an agent, `sf doctor` sees for itself.

import fs from 'node:fs';
import type { DoctorCheck, DoctorReport, HostStats, ImageInfo } from '@snowfork/sdk/api';
import type { Cluster } from './cluster/cluster.js';
import { judgeCluster, notThere, readClusterFacts } from './cluster/examine.js';
import { whyNotTracked } from './freeze/write-tracker.js';
import type { ConfinementFacts } from './hypervisor/confinement.js';
import type { QemuFacts } from './hypervisor/hypervisor.js';
import { fuseConnection } from './pager/mount.js';
import type { StateFolder } from './store/state-folder.js';
import { commitBytes } from './vms/room.js';

const MiB = 1024 * 1024;
/** With less than this on the tmpfs a freeze is likely to fail; with less than the other it does. */
const LAYERS_FREE_BYTES_LOW = 256 * MiB;
const LAYERS_FREE_BYTES_NONE = 8 * MiB;
/** Room for fewer VMs than this is worth a word. */
const VMS_FEW = 4;
/** `f_type` of a tmpfs. */
const TMPFS_MAGIC = 0x01021994;
const TRACKING_IS_OFF = 'the setting `trackWrites` is false';

export interface AgentFacts {
  readonly version: string;
  readonly state: StateFolder;
  readonly qemu: QemuFacts;
  readonly confinement: ConfinementFacts;
  /** The setting. */
  readonly trackWrites: boolean;
  readonly images: readonly ImageInfo[];
  /** Why VMs of an image do not run here; empty when they do. */
  readonly incompatible: (image: ImageInfo) => readonly string[];
  /** Fails when the pager does not answer. */
  readonly stats: () => Promise<HostStats>;
  readonly cluster: Cluster;
}

export async function examineAgent(facts: AgentFacts): Promise<DoctorReport> {
  const checks = [
    ok('agent', `${facts.version}, process ${process.pid}, state in ${facts.state.root}`),
    ok('qemu', `${facts.qemu.version}, ${facts.qemu.path}`),
    checkAccelerator(facts.qemu),
    checkReadAhead(facts.qemu),
    checkWrites(facts.trackWrites ? await whyNotTracked() : TRACKING_IS_OFF),
    checkSandbox(facts.confinement),
    checkLimits(facts.confinement),
    await checkMounts(facts.state),
    ...(await checkStats(facts)),
    checkImages(facts),
    ...(await checkCluster(facts)),
  ];
  return { checks };
}

/** KVM is never missed silently: everything works without it, at a tenth of the speed. */
export function checkAccelerator({ accelerator, reason }: QemuFacts): DoctorCheck {
  if (accelerator === 'kvm') return ok('accelerator', `KVM: ${reason}`);
  const message = `software emulation (TCG): ${reason}`;
  if (reason.includes('/dev/kvm: EACCES')) {
    const mend = 'all works, slower; for KVM `usermod -aG kvm USER` as root, and log in anew';
    return { name: 'accelerator', status: 'warn', message, mend };
  }
  return {
    name: 'accelerator',
    status: 'warn',
    message,
    mend:
      'all works, slower; for KVM use a machine with /dev/kvm that boots a kernel (bare metal, or ' +
      'nested virtualisation switched on), and see the setting `accelerator`',
  };
}

function checkReadAhead({ readsAhead }: QemuFacts): DoctorCheck {
  if (!readsAhead) return ok('read-ahead', 'QEMU cannot ask for huge pages: a fault is one page');
  return {
    name: 'read-ahead',
    status: 'warn',
    message: 'no seccomp filter could be set: a first touch may read 2 MiB ahead, and fill memory',
    mend: 'run the agent as root, on a kernel with seccomp and with glibc',
  };
}

/** `missing`: why the kernel can't tell what a VM writes. */
export function checkWrites(missing: string | undefined): DoctorCheck {
  if (missing === undefined)
    return ok('writes', 'a fork copies what was written since the last one');
  return {
    name: 'writes',
    status: 'warn',
    message: `a fork copies all that its VM ever wrote, as its writes can't be tracked: ${missing}`,
    mend:
      'all works, with longer pauses of VMs with much memory of their own; else Linux 6.7 or later, ' +
      'Perl, and an agent that may use ptrace',
  };
}

export function checkSandbox(facts: ConfinementFacts): DoctorCheck {
  const { users, sharesNetwork, keepsCapabilities } = facts;
  const missing = [
    ...(typeof users === 'string' ? [`VMs run as the agent's user (${users})`] : []),
    ...(sharesNetwork === undefined ? [] : [`VMs have the host's network (${sharesNetwork})`]),
    ...(keepsCapabilities === undefined ? [] : [`VMs keep capabilities (${keepsCapabilities})`]),
  ];
  if (typeof users === 'object' && missing.length === 0) {
    const last = users.first + users.count - 1;
    return ok('sandbox', `each VM is a user of its own, of ${users.first} to ${last}`);
  }
  return {
    name: 'sandbox',
    status: 'warn',
    message: missing.join('; '),
    mend: 'run the agent as root, with util-linux (`setpriv`, `unshare`); see docs/sandbox.md',
  };
}

export function checkLimits({ cgroups }: ConfinementFacts): DoctorCheck {
  const { version, limited, missing } = cgroups;
  const message = `cgroups v${version} limit ${limited.join(', ')} of each VM`;
  if (missing === '') return ok('limits', message);
  return {
    name: 'limits',
    status: 'warn',
    message: limited.length === 0 ? missing : `${message}; ${missing}`,
    mend: 'run the agent as root, or in a unit of systemd with `Delegate=yes`',
  };
}

async function checkMounts({ mount, run }: StateFolder): Promise<DoctorCheck> {
  const isServed = (await fuseConnection(mount)) !== undefined;
  // Never looked into itself: that would wait for the pager.
  const isTmpfs = fs.statfsSync(run).type === TMPFS_MAGIC;
  if (isServed && isTmpfs) return ok('mounts', `FUSE on ${mount}, tmpfs on ${run}`);
  return {
    name: 'mounts',
    status: 'fail',
    message: `${isServed ? run : mount} is not mounted any more: somebody unmounted it`,
    mend: 'start the agent anew: `sf down`, then `sf up`',
  };
}

async function checkStats({ stats, images }: AgentFacts): Promise<DoctorCheck[]> {
  try {
    const { memory, pager } = await stats();
    const served = `process ${pager.pid} serves ${pager.objects.length} objects`;
    return [ok('pager', served), checkLayers(memory), checkRoom(memory, images)];
  } catch (error) {
    const words = error instanceof Error ? error.message : String(error);
    const mend = 'see agent.log in the state folder, then `sf down` and `sf up`';
    return [{ name: 'pager', status: 'fail', message: `it does not answer: ${words}`, mend }];
  }
}

async function checkCluster({ cluster, version, stats }: AgentFacts): Promise<DoctorCheck[]> {
  try {
    const { network } = await stats();
    const facts = await readClusterFacts(cluster, { version, network });
    return facts === undefined ? [] : judgeCluster(facts);
  } catch (error) {
    return [notThere(error)];
  }
}

export function checkLayers(memory: HostStats['memory']): DoctorCheck {
  const { layersBytes, layersBytesMax } = memory;
  const freeBytes = layersBytesMax - layersBytes;
  const message = `${mebi(freeBytes)} of ${mebi(layersBytesMax)} MiB of the tmpfs are free`;
  if (freeBytes >= LAYERS_FREE_BYTES_LOW) return ok('layers', message);
  const status = freeBytes < LAYERS_FREE_BYTES_NONE ? 'fail' : 'warn';
  const mend =
    'end VMs, delete checkpoints (`sf snapshot ls`, `sf snapshot rm`), or raise the setting ' +
    '`layersBytesMax`';
  return { name: 'layers', status, message, mend };
}

/** Counted in VMs of the smallest image, as that is what can be tried. */
export function checkRoom(memory: HostStats['memory'], images: readonly ImageInfo[]): DoctorCheck {
  const { roomBytes } = memory;
  const left = `${mebi(roomBytes)} MiB for new VMs`;
  if (images.length === 0) return ok('room', left);
  const smallest = images.reduce((a, b) =>
    a.machine.memoryBytes <= b.machine.memoryBytes ? a : b,
  );
  const eachBytes = commitBytes(smallest.machine);
  const vms = Math.floor(roomBytes / eachBytes);
  const message = `${left}: ${vms} of ${smallest.name}, at ${mebi(eachBytes)} MiB each`;
  if (vms >= VMS_FEW) return ok('room', message);
  const mend = 'end VMs or other programs, or lower the setting `reservedBytes`';
  // A fork needs its parent and one clone.
  return { name: 'room', status: vms < 2 ? 'fail' : 'warn', message, mend };
}

export function checkImages({
  images,
  incompatible,
}: Pick<AgentFacts, 'images' | 'incompatible'>): DoctorCheck {
  if (images.length === 0) {
    const mend = '`sf image build minimal`';
    return { name: 'images', status: 'warn', message: 'none is built', mend };
  }
  const stale = images.filter((image) => incompatible(image).length > 0);
  const names = images.map(({ name }) => name).join(', ');
  if (stale.length === 0) return ok('images', names);
  const reasons = stale.map((image) => `${image.name}: ${incompatible(image).join(', ')}`);
  return {
    name: 'images',
    status: 'warn',
    message: `do not run here: ${reasons.join('; ')}`,
    mend: stale.map(({ name }) => `\`sf image build ${name} --force\``).join(', '),
  };
}

function ok(name: string, message: string): DoctorCheck {
  return { name, status: 'ok', message };
}

function mebi(bytes: number): number {
  return Math.floor(bytes / MiB);
}
