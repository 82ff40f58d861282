// What an agent has left on the host, looked at from outside: its processes and its mounts. Used by the
// tests of how agents end.

import fs from 'node:fs';
import path from 'node:path';

/** Processes that the agent of a state folder has written down. */
export function startedBy(state: string): number[] {
  return fs.readdirSync(path.join(state, 'processes')).map(Number);
}

export function isRunning(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(fs.readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

export function mountsBelow(state: string): string[] {
  const lines = fs.readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  return lines.filter((line) => line.split(' ')[4]?.startsWith(`${state}/`));
}
