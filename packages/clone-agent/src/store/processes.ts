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

/**
 * When a process started, in clock ticks since boot, with the boot's id; undefined when it has ended.
 * One that was killed has ended also when a thread is stuck in the kernel, for which it is not reaped.
 */
export function processStartTime(pid: number): string | undefined {
  try {
    const fields = statFields(`/proc/${pid}`);
    if (fields[0] === 'X' || (fields[0] === 'Z' && !threadsOf(pid).some(isGoingOn)))
      return undefined;
    boot ??= fs.readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim();
    return `${boot} ${fields[19]}`;
  } catch {
    return undefined;
  }
}

/** Of a `stat` file, from the state on. */
function statFields(folder: string): string[] {
  const stat = fs.readFileSync(path.join(folder, 'stat'), 'latin1');
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ');
}

function isGoingOn(thread: string): boolean {
  try {
    return !['Z', 'X', 'D'].includes(statFields(thread)[0]!);
  } catch {
    return false; // it has gone
  }
}

function threadsOf(pid: number): string[] {
  const folder = `/proc/${pid}/task`;
  return fs.readdirSync(folder).map((thread) => path.join(folder, thread));
}

/** A process that is watched from outside: neither its exit code nor its output can be had. */
export class WatchedProcess {
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

  /** Nobody asks any more: `exited` stays open. */
  forget(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  kill(signal: NodeJS.Signals): void {
    this.look();
    if (this.isAlive) process.kill(this.pid, signal);
  }
}
