// A wait that its caller may give up. Called where an agent waits for what it was asked for.

import { setMaxListeners } from 'node:events';
import { SnowforkError } from '@snowfork/sdk/api';

/** As `promise`, which goes on all the same. @throws SnowforkError SF_ABORTED when the caller gives up before. */
export async function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  // Many waits may share a signal, and each takes its listener back.
  setMaxListeners(0, signal);
  let onAbort: (() => void) | undefined;
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(new SnowforkError('SF_ABORTED', 'the caller gave up'));
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort!);
  }
}
