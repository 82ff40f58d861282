// What one QEMU has written since the newest snapshot of its VM, so that a freeze copies that and not all that it
// ever wrote. It owns the asking for it in QEMU (`track-writes.pl`), the protecting of pages, and for each page whether
// the newest snapshot may still say what it has; it stores and copies nothing. Used by `freeze-memory.ts`, one freeze
// of a VM at a time. Why this way: `docs/adr/0012-writes-tracked-by-userfaultfd.md`.
//
// A page is *stale* when it may have something else than the newest snapshot says. The kernel forgets that a page was
// written when the page is protected again, so what a protecting scan tells is stale until a snapshot of that pause is
// the VM's newest, however many freezes fail in between. All of it lies in this agent's memory: to the next agent,
// and whenever the newest snapshot is another than was thought, all pages are stale.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { PAGE_BYTES, type PageRuns, ProcessMemory } from './process-memory.js';

/** A freeze waits no longer for QEMU to be tracked; then it goes without, and the next one looks again. */
export const START_PATIENCE_MS = 250;
const TRIAL_TIMEOUT_MS = 5_000;
/** Of what it says when it fails. */
const WORDS_MAX = 1024;

const TRACK_WRITES = fileURLToPath(new URL('../../freeze/track-writes.pl', import.meta.url));
const NO_PAGES = new Uint8Array(0);
const LATE = Symbol('late');
const OLD_KERNEL = 'the kernel has no PAGEMAP_SCAN (Linux 6.7)';

export class WriteTracker {
  #state: 'unknown' | 'on' | 'off' = 'unknown';
  #asking: Promise<string | undefined> | undefined;
  /** 1 for each page that is stale. */
  #isStale = NO_PAGES;
  /** The snapshot that the other pages are as in. */
  #since: string | undefined;

  /**
   * Has QEMU ask its kernel for it, once. Never rejects: where it can't be had, freezes copy all.
   *
   * @returns why it can't be had, to whoever finds out
   */
  async start(qemu: { pid: number; ramPath: string }): Promise<string | undefined> {
    if (this.#state !== 'unknown') return undefined;
    let memory: ProcessMemory | undefined;
    try {
      memory = new ProcessMemory({ pid: qemu.pid, path: qemu.ramPath });
      return await this.#ask(memory);
    } catch {
      return undefined; // QEMU has gone, or is not what it should be: the freeze finds out, and says so.
    } finally {
      memory?.close();
    }
  }

  async #ask(memory: ProcessMemory): Promise<string | undefined> {
    const before = memory.tracksWrites();
    // An agent before this one may have asked.
    if (before !== 'not yet') {
      this.#state = before === 'yes' ? 'on' : 'off';
      return before === 'yes' ? undefined : OLD_KERNEL;
    }
    const { startAddress, pages } = memory.mapping;
    this.#asking ??= askToTrack(memory.pid, startAddress, pages * PAGE_BYTES);
    const late = delay(START_PATIENCE_MS, LATE, { ref: false });
    const refusal = await Promise.race([this.#asking, late]);
    if (refusal === LATE) return undefined;
    const isOn = memory.tracksWrites() === 'yes';
    this.#state = isOn ? 'on' : 'off';
    return isOn ? undefined : (refusal ?? 'it was asked for, and is not there');
  }

  /**
   * Before the pause: which pages are stale, if `newest` is the VM's newest snapshot; it changes with `take`. Undefined
   * when nobody knows.
   */
  look(memory: ProcessMemory, newest: string): Uint8Array | undefined {
    if (this.#state !== 'on') return undefined;
    if (newest !== this.#since || this.#isStale.length !== memory.mapping.pages) {
      this.#isStale = new Uint8Array(memory.mapping.pages).fill(1);
      this.#since = undefined;
    }
    if (this.take(memory) === undefined) return undefined;
    // What is not there may be swapped out, or was dropped and is the file's again: only its bytes tell.
    const absent = memory.absentPages();
    if (absent !== undefined) this.#mark(absent);
    else this.end();
    return absent && this.#isStale;
  }

  /** What was written since it was asked last; stale from now on, and protected. Undefined when nobody knows. */
  take(memory: ProcessMemory): PageRuns | undefined {
    if (this.#state !== 'on') return undefined;
    let written: PageRuns | undefined;
    try {
      written = memory.takeWrittenPages();
    } finally {
      // It may have protected what it could not tell.
      if (written === undefined) this.end();
    }
    if (written !== undefined) this.#mark(written);
    return written;
  }

  /** The snapshot of the pause of the last `take` is the VM's newest, and has zeros for the pages that were free. */
  settle(snapshot: string, isFree: Uint8Array): void {
    if (this.#state !== 'on') return;
    this.#isStale = isFree.slice();
    this.#since = snapshot;
  }

  /** For good: QEMU has gone, or nobody knows any more what it wrote. */
  end(): void {
    this.#state = 'off';
    this.#isStale = NO_PAGES;
    this.#since = undefined;
  }

  #mark({ starts, counts, length }: PageRuns): void {
    for (let run = 0; run < length; run++) {
      this.#isStale.fill(1, starts[run]!, starts[run]! + counts[run]!);
    }
  }
}

/** Tries it on a process that does nothing, for `sf doctor`. Resolves to what is missing. */
export async function whyNotTracked(): Promise<string | undefined> {
  const idle = spawn('cat', { stdio: ['pipe', 'pipe', 'ignore'] });
  idle.on('error', () => {}); // `once` below fails with it
  try {
    idle.stdin.on('error', () => {}).write('here');
    await once(idle.stdout, 'data', { signal: AbortSignal.timeout(TRIAL_TIMEOUT_MS) });
    const maps = fs.readFileSync(`/proc/${idle.pid}/maps`, 'latin1');
    const [start, end] = /^[0-9a-f]+-[0-9a-f]+(?= rw-p)/m
      .exec(maps)![0]
      .split('-')
      .map((address) => Number.parseInt(address, 16));
    return await askToTrack(idle.pid!, start!, end! - start!);
  } catch (error) {
    return String(error);
  } finally {
    idle.kill('SIGKILL');
  }
}

/** Resolves to what is missing; undefined when the process is tracked now. */
async function askToTrack(pid: number, start: number, bytes: number): Promise<string | undefined> {
  // In a group of its own, as nothing that is meant for the agent may end it half way.
  const parameters = ['-w', TRACK_WRITES, String(pid), String(start), String(bytes)];
  const asking = spawn('perl', parameters, { stdio: ['ignore', 'ignore', 'pipe'], detached: true });
  let words = '';
  asking.stderr.setEncoding('utf8').on('data', (text: string) => {
    words = (words + text).slice(-WORDS_MAX);
  });
  try {
    const [code] = (await once(asking, 'close')) as [number | null];
    return code === 0 ? undefined : words.trim() || `perl ended with ${code}`;
  } catch (error) {
    return `perl does not start: ${(error as Error).message}`;
  }
}
