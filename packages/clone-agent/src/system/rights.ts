// What this process may do beyond an ordinary user. An agent in a user namespace is root there and
// yet an ordinary user to the host, so the user id alone says little.

import fs from 'node:fs';

const CAP_SYS_NICE = 23n;

/**
 * Whether this is a user namespace with one user: nothing in it can belong to anybody else, and all
 * that runs in it runs as whoever started it.
 */
export function hasOneUser(): boolean {
  const [, , count] = uidMap().split(/\s+/);
  return count === '1';
}

/** Whether a priority that was lowered can be raised again: by root of the host only. */
export function mayRaisePriority(): boolean {
  return uidMap() === WHOLE_RANGE && hasCapability(readCapabilities(), CAP_SYS_NICE);
}

/** What is in effect, a bit for each of capabilities(7). */
export function readCapabilities(): bigint {
  const status = fs.readFileSync('/proc/self/status', 'latin1');
  return BigInt(`0x${/^CapEff:\s+([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
}

export function hasCapability(capabilities: bigint, bit: bigint): boolean {
  return ((capabilities >> bit) & 1n) === 1n;
}

const WHOLE_RANGE = '0 0 4294967295';

/** First id inside, first outside, how many; further lines when there are more ranges. */
function uidMap(): string {
  return fs.readFileSync('/proc/self/uid_map', 'latin1').trim().replaceAll(/ +/g, ' ');
}
