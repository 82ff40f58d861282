// A process that the agent starts and then speaks to by a control socket: the pager, the memory
// server. Starts it, finds one that an agent before this one has started, and ends it. Knows
// neither what it does nor what is said to it.

import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { LISTENING_LINE } from '@snowfork/memserver/control';
import { type ErrorCode, SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';
import { LineClient } from '../hypervisor/line-client.js';
import { processStartTime, WatchedProcess } from '../store/processes.js';

const START_DEADLINE_MS = 20_000;
const STOP_DEADLINE_MS = 2000;
const PING_TIMEOUT_MS = 2000;
/** A process that has ended is reaped within this, unless it is stuck. */
const REAP_MS = 100;
const LAST_WORDS_CHARS_MAX = 4096;

/** Who listens at a control socket, for errors. */
export interface Peer {
  readonly peer: string;
  readonly errorCode: ErrorCode;
}

export interface ProcessExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface ListeningProcess {
  readonly pid: number;
  /** Resolves when the process has ended, however it did; never rejects. */
  readonly exited: Promise<ProcessExit>;
  /** SIGTERM, then SIGKILL; resolves when it has ended. */
  stop(): Promise<ProcessExit>;
}

/**
 * Resolves when the process listens on its control socket.
 * @throws SnowforkError SF_INTERNAL when it ends or hangs before that, SF_ABORTED.
 */
export async function startListening(of: {
  readonly name: string;
  /** For Node: a file and its arguments. */
  readonly args: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  /** Where the log goes: a descriptor, or `inherit` (the default). */
  readonly log?: number | 'inherit' | undefined;
  /** Descriptor 3 of the process. */
  readonly descriptor?: number;
  readonly signal?: AbortSignal | undefined;
}): Promise<ListeningProcess> {
  const more = of.descriptor === undefined ? [] : [of.descriptor];
  const stdio: StdioOptions = ['ignore', 'pipe', of.log ?? 'inherit', ...more];
  const child = spawn(process.execPath, of.args, {
    // A group of its own: what a terminal sends to the agent's is not for this process.
    detached: true,
    env: { ...process.env, ...of.environment },
    stdio,
  });
  const exited = endOf(child);
  const deadline = AbortSignal.timeout(START_DEADLINE_MS);
  const signal = of.signal ? AbortSignal.any([of.signal, deadline]) : deadline;
  try {
    await listening(child, exited, signal);
  } catch (cause) {
    child.kill('SIGKILL');
    if (of.signal?.aborted) throw new SnowforkError('SF_ABORTED', 'given up', { cause });
    const words = `${of.name} did not start: ${String(cause)}`;
    throw new SnowforkError('SF_INTERNAL', words, { cause });
  }
  const started = { exited, kill: (signal: NodeJS.Signals) => child.kill(signal) };
  return { pid: child.pid!, exited, stop: () => stop(started) };
}

const pingSchema = z.looseObject({ pid: z.int().min(2) });

/**
 * The process that listens at the socket, whoever started it, and what it says of itself.
 * @returns undefined when there is none
 */
export async function findListening(
  socketPath: string,
  peer: Peer,
): Promise<{ process: ListeningProcess; ping: Readonly<Record<string, unknown>> } | undefined> {
  let client: LineClient;
  try {
    client = await LineClient.connect(socketPath, { ...peer, timeoutMs: 0 });
  } catch {
    return undefined;
  }
  try {
    const ping = pingSchema.parse(await client.execute('ping', {}, { timeoutMs: PING_TIMEOUT_MS }));
    const { pid } = ping;
    const startTime = processStartTime(pid);
    if (startTime === undefined) return undefined;
    const watched = new WatchedProcess(pid, startTime);
    const exited = watched.exited.then(() => ({ code: null, signal: null }));
    const found = { exited, kill: (signal: NodeJS.Signals) => watched.kill(signal) };
    return { process: { pid, exited, stop: () => stop(found) }, ping };
  } finally {
    client.close();
  }
}

/**
 * Resolves when a process has ended. One that was killed is not reaped while a thread of it is
 * stuck in the kernel, as the pager's store thread is while it waits for the lock of a page:
 * whoever reads the page holds it until the next pager has answered. Nothing but that thread is
 * left then, and it does nothing more.
 */
export async function endOf(child: ChildProcess): Promise<ProcessExit> {
  const reaped = new Promise<ProcessExit>((resolve) => {
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
  exited: Promise<ProcessExit>,
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
    throw new Error(`it ended with ${code ?? by} ${words}`.trim());
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

async function stop(process: {
  readonly exited: Promise<ProcessExit>;
  kill(signal: NodeJS.Signals): unknown;
}): Promise<ProcessExit> {
  process.kill('SIGTERM');
  const killer = setTimeout(() => process.kill('SIGKILL'), STOP_DEADLINE_MS);
  const exit = await process.exited;
  clearTimeout(killer);
  return exit;
}
