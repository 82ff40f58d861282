// From facts of a host to checks with their mends. Pure, so that every answer can be tested on one
// machine. Called by `sf doctor`; what only a running agent knows, the agent judges.

import type { DoctorCheck } from '../../api/doctor.js';
import { formatBytes } from '../format.js';
import { type HostFacts, PROGRAMS } from './facts.js';

const MiB = 1024 * 1024;
const NODE_MAJOR_MIN = 20;
/** A guest of 256 MiB, its clone, the agent and its pager. */
const MEMORY_BYTES_MIN = 768 * MiB;
const MEMORY_BYTES_LOW = 2048 * MiB;
/** Enough for a window of pages in flight from another host. */
const RECEIVE_BUFFER_BYTES = 4 * MiB;
const CONTROLLERS = ['memory', 'cpu', 'pids'] as const;
const DEBIAN_PACKAGES: Readonly<Record<string, string>> = {
  'qemu-system-x86_64': 'qemu-system-x86',
  mmdebstrap: 'mmdebstrap',
  mksquashfs: 'squashfs-tools',
  depmod: 'kmod',
  mount: 'mount',
  umount: 'mount',
};

/** What an older kernel lacks, and what is done in its place. */
const KERNEL_FEATURES = [
  {
    since: [6, 7],
    without:
      'without PAGEMAP_SCAN (6.7) a freeze reads the whole page map of QEMU, and copies all that the ' +
      'VM ever wrote: longer pauses',
  },
] as const;

/** All checks that need no agent, in the order in which they are shown. */
export function judgeHost(facts: HostFacts): DoctorCheck[] {
  return [
    judgeSystem(facts),
    judgeKernel(facts),
    judgeNode(facts),
    judgeUser(facts),
    judgeFuse(facts),
    judgeQemu(facts),
    judgeImageTools(facts),
    judgeMemory(facts),
    judgeCgroups(facts),
    judgeReceiveBuffer(facts),
    judgeMulticast(facts),
  ];
}

function judgeSystem({ platform, architecture }: HostFacts): DoctorCheck {
  const message = `${platform}, ${architecture}`;
  if (platform === 'linux' && architecture === 'x64') return ok('system', message);
  return fail('system', message, 'Snowfork runs on Linux on x86-64');
}

function judgeKernel({ kernelRelease, seccomp }: HostFacts): DoctorCheck {
  const [major = 0, minor = 0] = kernelRelease.split(/[.-]/).map(Number);
  const missing: string[] = [];
  for (const { since, without } of KERNEL_FEATURES) {
    if (major < since[0] || (major === since[0] && minor < since[1])) missing.push(without);
  }
  if (!seccomp) {
    missing.push('without seccomp QEMU asks for huge pages: a first touch may read 2 MiB ahead');
  }
  if (missing.length === 0) return ok('kernel', kernelRelease);
  const message = [kernelRelease, ...missing].join('; ');
  const mend = seccomp ? 'a newer kernel' : 'a newer kernel, with CONFIG_SECCOMP_FILTER';
  return warn('kernel', message, `${mend}; all works without`);
}

function judgeNode({ nodeVersion }: HostFacts): DoctorCheck {
  if (Number(nodeVersion.split('.')[0]) >= NODE_MAJOR_MIN) return ok('node', nodeVersion);
  return fail('node', nodeVersion, `the agent needs Node ${NODE_MAJOR_MIN} or later`);
}

/** What only root can do; all else an agent does in a user namespace as well. */
const MISSING_WITHOUT_ROOT = [
  'a user of its own for each VM (all run as this one)',
  'limits by cgroups that were not delegated',
  'clean-up of a FUSE connection that hangs',
  'a higher priority of the pager than of the VMs',
  'owners other than root in images that are built',
].join('; ');

function judgeUser({ user }: HostFacts): DoctorCheck {
  const { id, mayMount, inNamespace, refusal } = user;
  if (mayMount && !inNamespace) return ok('user', `${id}, may mount`);
  if (refusal !== undefined) {
    const message = `${id}, may not mount FUSE and tmpfs, and gets no user namespace to do it in`;
    return fail('user', `${message}: ${refusal.reason}`, refusal.mend);
  }
  const where = mayMount ? 'of a user namespace' : 'the agent runs in a user namespace';
  const mend = 'for these run as root; one user alone needs none';
  return warn('user', `${id}, ${where}; missing: ${MISSING_WITHOUT_ROOT}`, mend);
}

function judgeFuse({ fuse }: HostFacts): DoctorCheck {
  if (fuse === 'ok') return ok('fuse', '/dev/fuse opens');
  const message = `/dev/fuse does not open: ${fuse}`;
  if (fuse === 'EACCES' || fuse === 'EPERM') {
    return fail('fuse', message, 'run as root, or `chmod 0666 /dev/fuse` as root');
  }
  return fail('fuse', message, '`modprobe fuse` as root; in a container give it the device');
}

/** The agent's own check of the same name says more, and takes the place of this one. */
function judgeQemu({ programs, qemuNamed }: HostFacts): DoctorCheck {
  const path = programs[PROGRAMS.qemu[0]];
  if (path === undefined && qemuNamed !== undefined) {
    const message = `SNOWFORK_QEMU names ${qemuNamed}, which cannot be run`;
    return fail('qemu', message, 'let it name a QEMU, or unset it');
  }
  const absent = PROGRAMS.mounts.filter((name) => programs[name] === undefined);
  if (path !== undefined && absent.length === 0) return ok('qemu', path);
  const missing = path === undefined ? [...PROGRAMS.qemu, ...absent] : absent;
  return fail('qemu', `not found: ${missing.join(', ')}`, installationOf(missing));
}

function judgeImageTools({ programs }: HostFacts): DoctorCheck {
  const missing = PROGRAMS.images.filter((name) => programs[name] === undefined);
  if (missing.length === 0) return ok('image tools', PROGRAMS.images.join(', '));
  const message = `not found: ${missing.join(', ')}; images that are built run, none can be built`;
  return warn('image tools', message, installationOf(missing));
}

function judgeMemory({ memory }: HostFacts): DoctorCheck {
  const { totalBytes, availableBytes } = memory;
  const message = `${formatBytes(availableBytes)} of ${formatBytes(totalBytes)} available`;
  const mend = 'end other programs, or give the host more memory';
  if (availableBytes < MEMORY_BYTES_MIN) return fail('memory', message, mend);
  if (availableBytes < MEMORY_BYTES_LOW) return warn('memory', `${message}: few VMs`, mend);
  return ok('memory', message);
}

function judgeCgroups({ cgroups }: HostFacts): DoctorCheck {
  const { version, controllers } = cgroups;
  const shown = controllers.length === 0 ? 'no controllers' : controllers.join(', ');
  if (version === 0) {
    const message = 'none is mounted: the system cannot limit VMs';
    return warn('cgroups', message, '`mount -t cgroup2 none /sys/fs/cgroup` as root');
  }
  const missing = CONTROLLERS.filter((name) => !controllers.includes(name));
  if (missing.length === 0) return ok('cgroups', `v${version}: ${shown}`);
  const message = `v${version}: ${shown}; missing: ${missing.join(', ')}`;
  return warn('cgroups', message, 'boot the kernel with `cgroup_enable=memory`, or a newer one');
}

function judgeReceiveBuffer({ receiveBufferBytesMax }: HostFacts): DoctorCheck {
  const message = `net.core.rmem_max is ${formatBytes(receiveBufferBytesMax)}`;
  if (receiveBufferBytesMax >= RECEIVE_BUFFER_BYTES) return ok('receive buffer', message);
  const words = `${message}: pages from other hosts may be lost and asked for again`;
  const mend = `\`sysctl -w net.core.rmem_max=${RECEIVE_BUFFER_BYTES}\`; one host alone needs none`;
  return warn('receive buffer', words, mend);
}

function judgeMulticast({ interfaces }: HostFacts): DoctorCheck {
  const shown = interfaces.map(({ name, multicast }) => `${name}: ${multicast}`).join('; ');
  const works = interfaces.some(({ isLoopback, multicast }) => !isLoopback && multicast === 'ok');
  if (works) return ok('multicast', shown);
  const mend =
    '`ip link set dev NAME multicast on`; without it pages go to each host apart, and one host ' +
    'alone needs none';
  return warn('multicast', shown === '' ? 'there is no network interface' : shown, mend);
}

function installationOf(programs: readonly string[]): string {
  const packages = new Set(programs.map((name) => DEBIAN_PACKAGES[name] ?? name));
  return `\`apt-get install --no-install-recommends ${[...packages].join(' ')}\``;
}

export function ok(name: string, message: string): DoctorCheck {
  return { name, status: 'ok', message };
}

export function warn(name: string, message: string, mend: string): DoctorCheck {
  return { name, status: 'warn', message, mend };
}

export function fail(name: string, message: string, mend: string): DoctorCheck {
  return { name, status: 'fail', message, mend };
}
