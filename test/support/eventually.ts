// Waits for what another process or connection does. The deadline is long, as it only ends tests
// that have failed anyway; what holds is seen at once. Used by tests.

import { vi } from 'vitest';

const DEADLINE_MS = 60_000;
const POLL_MS = 10;
const PATIENT_DEADLINE_MS = 180_000;
const PATIENT_POLL_MS = 300;

/** Resolves with what `check` gives when it passes; rejects with its last complaint. */
export async function eventually<T>(check: () => T | Promise<T>): Promise<T> {
  return await vi.waitFor(check, { timeout: DEADLINE_MS, interval: POLL_MS });
}

/** The same for what takes long: leases that run out, many processes on two cores, a guest that floods. */
export async function patiently<T>(check: () => T | Promise<T>): Promise<T> {
  return await vi.waitFor(check, { timeout: PATIENT_DEADLINE_MS, interval: PATIENT_POLL_MS });
}
