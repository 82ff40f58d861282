// Mounts and unmounts the pager's file system, for the agent. Nothing here is synchronous where it
// could enter the mount: a pager that is not there would hang the agent for good.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { SnowforkError } from '@snowfork/sdk/api';

const FUSE_DEVICE = '/dev/fuse';
const FUSE_TYPE = 'fuse.snowfork';
const CONNECTIONS = '/sys/fs/fuse/connections';
const COMMAND_DEADLINE_MS = 10_000;
/** The descriptor's number in mount(8). */
const FUSE_DESCRIPTOR = 3;

/** Opens /dev/fuse. @throws SnowforkError SF_PERMISSION */
export function openFuse(): number {
  try {
    return fs.openSync(FUSE_DEVICE, 'r+');
  } catch (cause) {
    throw new SnowforkError(
      'SF_PERMISSION',
      `${FUSE_DEVICE} can't be opened (${String(cause)}): load the module \`fuse\` and run as root`,
      { cause },
    );
  }
}

/** @throws SnowforkError SF_PERMISSION, SF_ABORTED */
export async function mountFuse(of: {
  fd: number;
  mountPoint: string;
  signal?: AbortSignal;
}): Promise<void> {
  const access = 'default_permissions,allow_other,nosuid,nodev,noatime';
  const options = `fd=${FUSE_DESCRIPTOR},rootmode=40000,user_id=0,group_id=0,${access}`;
  // -i: no /sbin/mount.fuse, which would start a program of its own.
  const args = ['-i', '-t', FUSE_TYPE, '-o', options, 'snowfork', of.mountPoint];
  const { code, words } = await run('mount', args, of.signal, of.fd);
  if (code === 0) return;
  if (of.signal?.aborted) throw new SnowforkError('SF_ABORTED', 'mounting was given up');
  throw new SnowforkError(
    'SF_PERMISSION',
    `mounting FUSE on ${of.mountPoint} failed (${words}): run as root, or in a user namespace`,
  );
}

/** Lazily: those who still map files keep them. Resolves also when nothing was mounted. */
export async function unmountFuse(mountPoint: string): Promise<void> {
  if ((await fuseConnection(mountPoint)) === undefined) return;
  const { code, words } = await run('umount', ['-l', mountPoint]);
  if (code === 0 || (await fuseConnection(mountPoint)) === undefined) return;
  throw new SnowforkError('SF_PERMISSION', `${mountPoint} was not unmounted: ${words}`);
}

/**
 * The number of the FUSE connection mounted on `mountPoint`: the minor number of its device. To be
 * asked for before unmounting if `abortConnection` may be needed after.
 */
export async function fuseConnection(mountPoint: string): Promise<number | undefined> {
  const mounts = await readFile('/proc/self/mountinfo', 'utf8');
  let connection: number | undefined;
  for (const line of mounts.split('\n')) {
    const [before, after] = line.split(' - ');
    const fields = before?.split(' ') ?? [];
    if (!after?.startsWith('fuse') || unescapeMount(fields[4] ?? '') !== mountPoint) continue;
    // The last one covers the others.
    connection = Number(fields[2]?.split(':')[1]);
  }
  return connection;
}

/**
 * Ends a connection whatever state it is in: all who wait for a page get an error. For clean-up after
 * a crash only, as VMs that still run on it die. Resolves also when it has gone already.
 */
export async function abortConnection(connection: number): Promise<void> {
  if ((await readdir(CONNECTIONS)).length === 0) {
    await run('mount', ['-t', 'fusectl', 'none', CONNECTIONS]);
  }
  try {
    await writeFile(`${CONNECTIONS}/${connection}/abort`, '1');
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
  }
}

async function run(
  command: string,
  args: string[],
  signal?: AbortSignal,
  descriptor?: number,
): Promise<{ code: number | null; words: string }> {
  const inherited = descriptor === undefined ? [] : [descriptor];
  const child = spawn(command, args, {
    stdio: ['ignore', 'ignore', 'pipe', ...inherited],
    timeout: COMMAND_DEADLINE_MS,
    killSignal: 'SIGKILL',
    ...(signal ? { signal } : {}),
  });
  let words = '';
  child.stderr!.on('data', (chunk: Buffer) => {
    words += chunk;
  });
  try {
    const [code] = await once(child, 'close');
    return { code, words: words.trim() };
  } catch (error) {
    return { code: null, words: error instanceof Error ? error.message : String(error) };
  }
}

/** Spaces, tabs, newlines and backslashes are octal there. */
function unescapeMount(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(parseInt(octal, 8)),
  );
}
