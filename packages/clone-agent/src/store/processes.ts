// The processes that the agent has started, written down so that the next agent can end what a dead
// one left behind. A process is known by its id and its start time: an id alone may be somebody
// else's by now.

import fs from 'node:fs';
import path from 'node:path';

export class ProcessJournal {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
    fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
  }

  add(pid: number): void {
    const startTime = processStartTime(pid);
    if (startTime !== undefined) fs.writeFileSync(path.join(this.#folder, String(pid)), startTime);
  }

  remove(pid: number): void {
    fs.rmSync(path.join(this.#folder, String(pid)), { force: true });
  }

  /** Kills what is still running and forgets all; returns how many it killed. */
  killLeftOver(): number {
    let killed = 0;
    for (const name of fs.readdirSync(this.#folder)) {
      const pid = Number(name);
      const startTime = fs.readFileSync(path.join(this.#folder, name), 'utf8');
      if (Number.isInteger(pid) && pid > 1 && processStartTime(pid) === startTime) {
        process.kill(pid, 'SIGKILL');
        killed++;
      }
      this.remove(pid);
    }
    return killed;
  }
}

/** When a process started, in clock ticks since boot, with the boot's id; undefined when it is gone. */
export function processStartTime(pid: number): string | undefined {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'latin1');
    const boot = fs.readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim();
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? undefined : `${boot} ${fields[19]}`;
  } catch {
    return undefined;
  }
}
