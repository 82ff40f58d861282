// The processes that agents of a state folder have started, written down so that the next agent can
// adopt or end what a dead one left. A process is known by its id and its start time: an id alone may
// be somebody else's by now.

import fs from 'node:fs';
import path from 'node:path';

/** How often a process that is not our child is looked at; whoever knows earlier says `look`. */
const POLL_MS = 100;

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

  /** Kills what is still running, but for the `adopted`, and forgets it; returns how many it killed. */
  killLeftOver(adopted: ReadonlySet<number> = new Set()): number {
    let killed = 0;
    for (const name of fs.readdirSync(this.#folder)) {
      const pid = Number(name);
      if (adopted.has(pid)) continue;
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

let boot: string | undefined;

/** When a process started, in clock ticks since boot, with the boot's id; undefined when it is gone. */
export function processStartTime(pid: number): string | undefined {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'latin1');
    boot ??= fs.readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim();
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? undefined : `${boot} ${fields[19]}`;
  } catch {
    return undefined;
  }
}

/** A process that another agent has started: neither its exit code nor its output can be had. */
export class AdoptedProcess {
  readonly pid: number;
  readonly #startTime: string;
  /** Resolves when it has gone; never rejects. */
  readonly exited: Promise<void>;
  #onExit!: () => void;
  #timer: NodeJS.Timeout | undefined;

  constructor(pid: number, startTime: string) {
    this.pid = pid;
    this.#startTime = startTime;
    this.exited = new Promise((resolve) => {
      this.#onExit = resolve;
    });
    this.#timer = setInterval(() => this.look(), POLL_MS);
    this.look();
  }

  get isAlive(): boolean {
    return this.#timer !== undefined;
  }

  /** Somebody has reason to believe that it has gone. */
  look(): void {
    if (this.#timer === undefined || processStartTime(this.pid) === this.#startTime) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#onExit();
  }

  kill(signal: NodeJS.Signals): void {
    this.look();
    if (this.isAlive) process.kill(this.pid, signal);
  }
}
