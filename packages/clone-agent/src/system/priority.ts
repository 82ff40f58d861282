// Low and normal scheduling priority of a process and all its threads. Linux keeps it per thread, and
// a new thread takes that of its maker. Called for QEMUs of the warm pool.

import fs from 'node:fs';
import os from 'node:os';
import { mayRaisePriority } from './rights.js';

const BACKGROUND_NICENESS = 15;

/** For a process whose start nobody waits for. Only root can take it back; others' keep theirs. */
export function lowerPriority(pid: number): void {
  if (mayRaisePriority()) setPriority(pid, BACKGROUND_NICENESS);
}

export function restorePriority(pid: number): void {
  setPriority(pid, 0);
}

function setPriority(pid: number, niceness: number): void {
  try {
    for (const thread of fs.readdirSync(`/proc/${pid}/task`)) {
      os.setPriority(Number(thread), niceness);
    }
  } catch {
    // It has gone, or we may not: it keeps the priority that it has.
  }
}
