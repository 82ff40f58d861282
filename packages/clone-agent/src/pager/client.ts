// Starts and ends the pager process, for the agent. The agent keeps /dev/fuse open as well, so when
// the pager dies its faults wait, and another one started on the same descriptor serves them. What is
// said to a running pager goes through its control socket (`control.ts`).

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';
import { LineClient } from '../hypervisor/line-client.js';
import { processStartTime, WatchedProcess } from '../store/processes.js';
import { takeDescriptor } from '../system/pidfd.js';

/** The control socket, in the run folder. */
export const PAGER_SOCKET = 'pager.sock';
/** What the pager prints when its control socket listens. */
export const LISTENING_LINE = 'listening';
/** Reads from disks that may go on at once. Serving threads are not of libuv's pool. */
export const PAGER_THREADPOOL_SIZE = 8;

/** For connections to the control socket. */
export const PAGER_PEER = { peer: 'the pager', errorCode: 'SF_INTERNAL' } as const;
const ADOPT_TIMEOUT_MS = 2000;
const pingSchema = z.object({ pid: z.int().min(2) });

const START_DEADLINE_MS = 20_000;
const STOP_DEADLINE_MS = 2000;
/** A process that has ended is reaped within this, unless it is stuck. */
const REAP_MS = 100;
/** The descriptor's number in the pager. */
const FUSE_DESCRIPTOR = 3;
const LAST_WORDS_CHARS_MAX = 4096;

export interface PagerExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface PagerProcess {
  readonly pid: number;
  /** Resolves when the process has ended, however it did; never rejects. */
  readonly exited: Promise<PagerExit>;
  /** SIGTERM, then SIGKILL; resolves when it has ended. The mount stays, and faults wait. */
  stop(): Promise<PagerExit>;
}

export interface StartPagerOptions {
  /** /dev/fuse, mounted already (`mount.ts`). The caller keeps its own copy open. */
  readonly fuseFd: number;
  readonly runFolder: string;
  /** Where the log goes: a descriptor, or `inherit` (the default). */
  readonly log?: number | 'inherit';
  readonly signal?: AbortSignal;
}

/**
 * Resolves when the pager serves the mount and listens on its control socket.
 * @throws SnowforkError SF_INTERNAL when it ends or hangs before that.
 */
export async function startPager(options: StartPagerOptions): Promise<PagerProcess> {
  const args = [pagerEntry(), '--fuse-fd', String(FUSE_DESCRIPTOR), '--run', options.runFolder];
  const child = spawn(process.execPath, args, {
    // A group of its own: what a terminal sends to the agent's is not for the pager.
    detached: true,
    env: { ...process.env, UV_THREADPOOL_SIZE: String(PAGER_THREADPOOL_SIZE) },
    stdio: ['ignore', 'pipe', options.log ?? 'inherit', options.fuseFd],
  });
  const exited = endOf(child);
  const deadline = AbortSignal.timeout(START_DEADLINE_MS);
  const signal = options.signal ? AbortSignal.any([options.signal, deadline]) : deadline;
  try {
    await listening(child, exited, signal);
  } catch (cause) {
    child.kill('SIGKILL');
    if (options.signal?.aborted) throw new SnowforkError('SF_ABORTED', 'given up', { cause });
    throw new SnowforkError('SF_INTERNAL', `the pager did not start: ${String(cause)}`, { cause });
  }
  const pager = { exited, kill: (signal: NodeJS.Signals) => child.kill(signal) };
  return { pid: child.pid!, exited, stop: () => stop(pager) };
}

/**
 * The pager that another agent has started on this run folder.
 * @returns undefined when there is none
 */
export async function adoptPager(
  socketPath: string,
): Promise<{ process: PagerProcess; fuseFd: number } | undefined> {
  let client: LineClient;
  try {
    client = await LineClient.connect(socketPath, { ...PAGER_PEER, timeoutMs: 0 });
  } catch {
    return undefined;
  }
  try {
    const { pid } = pingSchema.parse(
      await client.execute('ping', {}, { timeoutMs: ADOPT_TIMEOUT_MS }),
    );
    const startTime = processStartTime(pid);
    if (startTime === undefined) return undefined;
    const process = new WatchedProcess(pid, startTime);
    const exited = process.exited.then(() => ({ code: null, signal: null }));
    const pager = { exited, kill: (signal: NodeJS.Signals) => process.kill(signal) };
    return {
      process: { pid, exited, stop: () => stop(pager) },
      fuseFd: takeDescriptor(pid, FUSE_DESCRIPTOR),
    };
  } finally {
    client.close();
  }
}

/**
 * Resolves when a process has ended. One that was killed is not reaped while its store thread waits for
 * the lock of a page: whoever reads the page holds it until the next pager has answered. Nothing but
 * that thread is left then, and it does nothing more.
 */
export async function endOf(child: ChildProcess): Promise<PagerExit> {
  const reaped = new Promise<PagerExit>((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }));
    child.once('error', () => resolve({ code: null, signal: null }));
  });
  const startTime = child.pid === undefined ? undefined : processStartTime(child.pid);
  if (startTime === undefined) return await reaped;
  const watched = new WatchedProcess(child.pid!, startTime);
  const stuck = watched.exited.then(() => delay(REAP_MS, { code: null, signal: null }));
  return await Promise.race([reaped, stuck]).finally(() => watched.look());
}

async function listening(
  child: ChildProcess,
  exited: Promise<PagerExit>,
  signal: AbortSignal,
): Promise<void> {
  let words = '';
  const said = new Promise<void>((resolve) => {
    child.stdout!.on('data', (chunk: Buffer) => {
      words = (words + chunk).slice(-LAST_WORDS_CHARS_MAX);
      if (words.includes(LISTENING_LINE)) resolve();
    });
  });
  const ended = exited.then(({ code, signal: by }) => {
    throw new Error(`it ended with ${code ?? by}`);
  });
  const aborted = once(signal, 'abort').then(() => {
    throw new Error('it did not listen in time');
  });
  // The losers of the race reject later, when nobody listens.
  ended.catch(() => {});
  aborted.catch(() => {});
  signal.throwIfAborted();
  await Promise.race([said, ended, aborted]);
}

async function stop(pager: {
  readonly exited: Promise<PagerExit>;
  kill(signal: NodeJS.Signals): unknown;
}): Promise<PagerExit> {
  pager.kill('SIGTERM');
  const killer = setTimeout(() => pager.kill('SIGKILL'), STOP_DEADLINE_MS);
  const exit = await pager.exited;
  clearTimeout(killer);
  return exit;
}

/** Worker threads want JavaScript: from the sources the built file is started. */
function pagerEntry(): string {
  const fromSources = import.meta.url.endsWith('.ts');
  const file = fromSources ? '../../dist/pager/main.js' : './main.js';
  return fileURLToPath(new URL(file, import.meta.url));
}
