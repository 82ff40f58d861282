// QEMU's monitor protocol: `LineClient` with QMP's greeting and its first command. Knows no command
// but that one. `qemu.ts` drives a QEMU through it.

import { SnowforkError } from '@snowfork/sdk/api';
import { LineClient, type WaitOptions } from './line-client.js';

/** A QEMU that does not open its monitor in this time never will. */
export const QMP_CONNECT_TIMEOUT_MS = 15_000;

export type Qmp = LineClient;

/**
 * Connects to the QEMU whose monitor is (or soon will be) at `socketPath`.
 * @param wait `signal` should abort, with a SnowforkError, when the process ends.
 */
export async function connectQmp(socketPath: string, wait: WaitOptions = {}): Promise<Qmp> {
  const { timeoutMs = QMP_CONNECT_TIMEOUT_MS, signal } = wait;
  const client = await LineClient.connect(socketPath, {
    peer: 'QEMU',
    errorCode: 'SF_QEMU_FAILED',
    accepts: (line) => typeof line.QMP === 'object',
    timeoutMs,
    signal,
  });
  try {
    // Sent without waiting for the greeting: QEMU reads in order, so that one round trip is enough.
    await client.execute('qmp_capabilities', undefined, { timeoutMs, signal });
    return client;
  } catch (error) {
    client.close();
    throw SnowforkError.from(error, 'SF_QEMU_FAILED');
  }
}
