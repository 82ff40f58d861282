// How an agent is started by somebody who may not mount: inside a user and a mount namespace of its
// own, where it may. Nothing outside sees those mounts; the state folder's socket lies outside of
// them. Decides only what is put before the agent's command; called by `agent-process.ts`, and by
// `sf doctor` for what an ordinary user lacks.

import { execFile } from 'node:child_process';
import { accessSync, constants, readdirSync, readFileSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { SnowforkError } from '../api/errors.js';

const CAP_SYS_ADMIN = 21n;
const TRY_TIMEOUT_MS = 10_000;
/** A namespace with one user, who is root in it. */
const MAKE_NAMESPACES = ['unshare', '--user', '--map-root-user', '--mount', '--'] as const;
/** What forbids user namespaces: the kernel's, Debian's and Ubuntu's switches. */
const SWITCHES = [
  { file: 'user/max_user_namespaces', forbids: '0', mend: 'user.max_user_namespaces=15000' },
  {
    file: 'kernel/unprivileged_userns_clone',
    forbids: '0',
    mend: 'kernel.unprivileged_userns_clone=1',
  },
  {
    file: 'kernel/apparmor_restrict_unprivileged_userns',
    forbids: '1',
    mend: 'kernel.apparmor_restrict_unprivileged_userns=0',
  },
] as const;
export const FUSE_DEVICE = '/dev/fuse';

/** Whether this process has CAP_SYS_ADMIN, in whichever user namespace it is. */
export function mayMount(): boolean {
  const status = readFileSync('/proc/self/status', 'latin1');
  const capabilities = BigInt(`0x${/^CapEff:\s*(\w+)/m.exec(status)?.[1] ?? '0'}`);
  return ((capabilities >> CAP_SYS_ADMIN) & 1n) === 1n;
}

/**
 * The words to put before the command of an agent for this state folder: none for who may mount.
 * An agent that follows one that was killed goes where that one's VMs and mounts are.
 *
 * @throws SnowforkError SF_PERMISSION with the mend, where no namespace can be made or /dev/fuse
 * does not open.
 */
export async function namespaceCommand(stateFolder: string): Promise<string[]> {
  if (mayMount()) return [];
  const survivor = findSurvivor(stateFolder);
  if (survivor !== undefined) {
    return ['nsenter', '--user', '--preserve-credentials', '--mount', `--target=${survivor}`, '--'];
  }
  assertFuseOpens();
  const refusal = await whyNoNamespaces();
  if (refusal === undefined) return [...MAKE_NAMESPACES];
  throw new SnowforkError(
    'SF_PERMISSION',
    `an agent of an ordinary user needs a user namespace, and none can be made: ${refusal.reason}; ` +
      refusal.mend,
  );
}

/** Tried, as there are more ways to forbid it than switches; undefined when it works. */
export async function whyNoNamespaces(): Promise<{ reason: string; mend: string } | undefined> {
  const [program, ...parameters] = MAKE_NAMESPACES;
  try {
    await promisify(execFile)(program, [...parameters, 'true'], { timeout: TRY_TIMEOUT_MS });
    return undefined;
  } catch (error) {
    const { code, stderr } = error as NodeJS.ErrnoException & { stderr?: string };
    if (code === 'ENOENT') {
      return { reason: 'there is no `unshare`', mend: 'install the package util-linux' };
    }
    const reason = stderr?.trim() || String(error);
    const off = SWITCHES.find(({ file, forbids }) => readSwitch(file) === forbids);
    if (off === undefined) return { reason, mend: mendOfContainer() };
    return { reason, mend: `run as root, or as root once: \`sysctl -w ${off.mend}\`` };
  }
}

/** No switch forbids it: what does is a filter of system calls, as containers have it. */
function mendOfContainer(): string {
  if (process.getuid?.() !== 0)
    return 'run as root, or let the system (container, seccomp) allow it';
  return 'give the container CAP_SYS_ADMIN and /dev/fuse, or let it make user namespaces';
}

function assertFuseOpens(): void {
  try {
    accessSync(FUSE_DEVICE, constants.R_OK | constants.W_OK);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const mend =
      code === 'ENOENT' ? '`modprobe fuse` as root' : `\`chmod 0666 ${FUSE_DEVICE}\` as root`;
    const message = `${FUSE_DEVICE} does not open (${code}): ${mend}, or run as root`;
    throw new SnowforkError('SF_PERMISSION', message, { cause });
  }
}

/** A process that an agent of the folder has left, in whose namespace the folder's mounts are. */
function findSurvivor(stateFolder: string): number | undefined {
  const mounted = realPath(join(stateFolder, 'run'))?.replaceAll(' ', '\\040');
  return listed(join(stateFolder, 'processes')).find((pid) =>
    read(`/proc/${pid}/mountinfo`)
      .split('\n')
      .some((line) => line.split(' ')[4] === mounted),
  );
}

function listed(folder: string): number[] {
  try {
    return readdirSync(folder)
      .map(Number)
      .filter((pid) => pid > 1);
  } catch {
    return []; // no agent was ever here
  }
}

function realPath(file: string): string | undefined {
  try {
    return realpathSync(file);
  } catch {
    return undefined;
  }
}

function readSwitch(file: string): string {
  return read(join('/proc/sys', file)).trim();
}

/** Nothing for what is not there, or is not for us. */
function read(file: string): string {
  try {
    return readFileSync(file, 'latin1');
  } catch {
    return '';
  }
}
