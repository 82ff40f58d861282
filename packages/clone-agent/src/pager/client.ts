// Starts the pager process, for the agent, and finds that of an agent before. The agent keeps
// /dev/fuse open as well, so when the pager dies its faults wait, and another one started on the same
// descriptor serves them. What is said to a running pager goes through its control socket.

import { fileURLToPath } from 'node:url';
import {
  findListening,
  type ListeningProcess,
  startListening,
} from '../system/listening-process.js';
import { takeDescriptor } from '../system/pidfd.js';

/** The control socket, in the run folder. */
export const PAGER_SOCKET = 'pager.sock';
/** Reads from disks that may go on at once. Serving threads are not of libuv's pool. */
export const PAGER_THREADPOOL_SIZE = 8;

/** For connections to the control socket. */
export const PAGER_PEER = { peer: 'the pager', errorCode: 'SF_INTERNAL' } as const;
/** The descriptor's number in the pager. */
const FUSE_DESCRIPTOR = 3;

/** When it is stopped the mount stays, and faults wait. */
export type PagerProcess = ListeningProcess;

export interface StartPagerOptions {
  /** /dev/fuse, mounted already (`mount.ts`). The caller keeps its own copy open. */
  readonly fuseFd: number;
  readonly runFolder: string;
  /** What was touched before it was there is pushed when it is opened; `true` is the default. */
  readonly replays?: boolean;
  /** Where the log goes: a descriptor, or `inherit` (the default). */
  readonly log?: number | 'inherit';
  readonly signal?: AbortSignal;
}

/**
 * Resolves when the pager serves the mount and listens on its control socket.
 * @throws SnowforkError SF_INTERNAL when it ends or hangs before that.
 */
export async function startPager(options: StartPagerOptions): Promise<PagerProcess> {
  return await startListening({
    name: 'the pager',
    args: [
      ...[pagerEntry(), '--fuse-fd', String(FUSE_DESCRIPTOR), '--run', options.runFolder],
      ...(options.replays === false ? ['--no-replay'] : []),
    ],
    environment: { UV_THREADPOOL_SIZE: String(PAGER_THREADPOOL_SIZE) },
    log: options.log,
    descriptor: options.fuseFd,
    signal: options.signal,
  });
}

/**
 * The pager that another agent has started on this run folder.
 * @returns undefined when there is none
 */
export async function adoptPager(
  socketPath: string,
): Promise<{ process: PagerProcess; fuseFd: number } | undefined> {
  const found = await findListening(socketPath, PAGER_PEER);
  if (found === undefined) return undefined;
  const { process } = found;
  return { process, fuseFd: takeDescriptor(process.pid, FUSE_DESCRIPTOR) };
}

/** Worker threads want JavaScript: from the sources the built file is started. */
function pagerEntry(): string {
  const fromSources = import.meta.url.endsWith('.ts');
  const file = fromSources ? '../../dist/pager/main.js' : './main.js';
  return fileURLToPath(new URL(file, import.meta.url));
}
