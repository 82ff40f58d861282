// Waits that end: deadlines and callers' signals as one signal whose reason is an error of ours,
// and a pause that can be aborted. Called by everything in the host SDK that waits.

import { setMaxListeners } from 'node:events';
import { SnowforkError } from '../api/errors.js';

export interface WaitOptions {
  /** Gives up: the promise rejects with SF_ABORTED. */
  signal?: AbortSignal | undefined;
  /** Gives up after so many milliseconds: the promise rejects with SF_TIMEOUT. */
  timeoutMs?: number | undefined;
}

/** Largest delay that Node's timers take, 24.8 days. */
const TIMEOUT_MS_MAX = 2 ** 31 - 1;

/** Runs `work` under a signal that aborts with the caller's or at the deadline. */
export async function withDeadline<T>(
  { signal, timeoutMs }: WaitOptions,
  what: string,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const deadline = startDeadline({ signal, timeoutMs }, what);
  try {
    return await work(deadline.signal);
  } finally {
    deadline.stop();
  }
}

/** A deadline that outlives one call. */
export interface Deadline {
  readonly signal: AbortSignal;
  /** Aborts the signal now. */
  abort(reason: SnowforkError): void;
  /** Must be called when the wait is over; may be called twice. */
  stop(): void;
}

export function startDeadline({ signal, timeoutMs }: WaitOptions, what: string): Deadline {
  if (timeoutMs !== undefined) assertTimeout(timeoutMs);
  const controller = new AbortController();
  const onAbort = () => controller.abort(abortError(signal?.reason));
  if (signal?.aborted) onAbort();
  else if (signal !== undefined) {
    // One signal may be for any number of waits.
    setMaxListeners(0, signal);
    signal.addEventListener('abort', onAbort, { once: true });
  }
  let timer: NodeJS.Timeout | undefined;
  if (timeoutMs !== undefined) {
    timer = setTimeout(() => {
      const message = `${what} took longer than ${timeoutMs} ms`;
      controller.abort(new SnowforkError('SF_TIMEOUT', message, { details: { timeoutMs } }));
    }, timeoutMs);
  }
  return {
    signal: controller.signal,
    abort: (reason) => controller.abort(reason),
    stop() {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
    },
  };
}

/** The error that a wait rejects with, from the reason of the signal that ended it. */
export function abortError(reason: unknown): SnowforkError {
  if (reason instanceof SnowforkError) return reason;
  if (reason instanceof DOMException && reason.name === 'TimeoutError') {
    return new SnowforkError('SF_TIMEOUT', 'the deadline of the signal passed', { cause: reason });
  }
  return new SnowforkError('SF_ABORTED', 'aborted by the caller', { cause: reason });
}

/** Resolves after `delayMs`, or rejects when the signal aborts. */
export async function pause(delayMs: number, signal?: AbortSignal): Promise<void> {
  if (signal?.aborted) throw abortError(signal.reason);
  await new Promise<void>((resolve, reject) => {
    const onAbort = () => {
      clearTimeout(timer);
      reject(abortError(signal?.reason));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort);
      resolve();
    }, delayMs);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}

function assertTimeout(timeoutMs: number): void {
  if (timeoutMs >= 0 && timeoutMs <= TIMEOUT_MS_MAX) return;
  throw new SnowforkError(
    'SF_BAD_REQUEST',
    `timeoutMs is a number from 0 to ${TIMEOUT_MS_MAX}, not ${timeoutMs}`,
  );
}

/** Without what is undefined: JSON has no such thing. */
export function definedOf<T extends object>(of: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const defined = Object.entries(of).filter(([, value]) => value !== undefined);
  return Object.fromEntries(defined) as { [K in keyof T]?: Exclude<T[K], undefined> };
}
