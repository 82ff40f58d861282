// The machine that a bench runs on: what it is, how busy others keep it, and what a process of it has
// used. Reads /proc and changes nothing.

import fs from 'node:fs';
import os from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '@snowfork/sdk';

/** With less than this part of the processors in use the machine counts as idle. */
const IDLE_PART_MAX = 0.1;
const IDLE_SAMPLE_MS = 100;
/** Waits of a whole run together. */
const IDLE_WAITS_MS_MAX = 180_000;
const IDLE_WAITS_QUICK_MS_MAX = 10_000;
/** One wait. */
const IDLE_WAIT_MS_MAX = 10_000;

export interface MachineFacts {
  readonly processors: number;
  readonly processorModel: string;
  readonly memoryBytes: number;
  readonly kernel: string;
  readonly node: string;
  readonly qemu: string;
  readonly accelerator: string;
  readonly snowfork: string;
  /** Before the bench began: 1, 5, 15 minutes. */
  readonly loadAverage: readonly number[];
}

export async function machineFacts(host: Host, loadAverage: number[]): Promise<MachineFacts> {
  const { qemu, version } = await host.info();
  const processors = os.cpus();
  return {
    processors: processors.length,
    processorModel: processors[0]?.model.trim() ?? 'unknown',
    memoryBytes: os.totalmem(),
    kernel: os.release(),
    node: process.versions.node,
    qemu: qemu.version,
    accelerator: qemu.accelerator,
    snowfork: version,
    loadAverage,
  };
}

/** Waits for the machine to become idle and tells how it went; goes on anyway after a while. */
export class Quiet {
  #waitsLeftMs: number;
  /** The part of the processors in use when a measurement began, for each. */
  readonly busyParts: number[] = [];

  constructor(quick: boolean) {
    this.#waitsLeftMs = quick ? IDLE_WAITS_QUICK_MS_MAX : IDLE_WAITS_MS_MAX;
  }

  async wait(): Promise<void> {
    const startedAt = performance.now();
    const waitMsMax = Math.min(this.#waitsLeftMs, IDLE_WAIT_MS_MAX);
    for (;;) {
      const before = processorTicks();
      await delay(IDLE_SAMPLE_MS);
      const after = processorTicks();
      const part = (after.busy - before.busy) / Math.max(1, after.all - before.all);
      const waitedMs = performance.now() - startedAt;
      if (part > IDLE_PART_MAX && waitedMs < waitMsMax) continue;
      this.#waitsLeftMs = Math.max(0, this.#waitsLeftMs - waitedMs);
      this.busyParts.push(part);
      return;
    }
  }
}

function processorTicks(): { busy: number; all: number } {
  const line = fs.readFileSync('/proc/stat', 'latin1').split('\n', 1)[0]!;
  const [user, nice, system, idle, iowait, irq, softirq, steal] = line
    .trim()
    .split(/\s+/)
    .slice(1)
    .map(Number) as [number, number, number, number, number, number, number, number];
  const busy = user + nice + system + irq + softirq + steal;
  return { busy, all: busy + idle + iowait };
}

export interface ProcessorUse {
  /** All threads of the process, since it began. */
  readonly processMs: number;
  /** The thread that runs the guest: translation and translated code, and nothing else. */
  readonly guestMs: number;
}

/** What a QEMU with one virtual processor has used so far; zeros when it has gone. */
export function processorUse(pid: number): ProcessorUse {
  let processMs = 0;
  let guestMs = 0;
  try {
    for (const thread of fs.readdirSync(`/proc/${pid}/task`)) {
      const text = fs.readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1');
      const usedMs = Number(text.split(' ', 1)[0]) / 1e6;
      processMs += usedMs;
      // QEMU does not name its threads; of those beside the main one the guest's is the busy one.
      if (Number(thread) !== pid) guestMs = Math.max(guestMs, usedMs);
    }
  } catch {
    return { processMs: 0, guestMs: 0 };
  }
  return { processMs, guestMs };
}

/** Of all threads of a process, in the kernel's ticks; what it did in the kernel apart. */
export function processorTimes(pid: number): { userTicks: number; systemTicks: number } {
  const text = fs.readFileSync(`/proc/${pid}/stat`, 'latin1');
  // From the third field on: the second, the name, may have blanks.
  const fields = text
    .slice(text.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number);
  return { userTicks: fields[11]!, systemTicks: fields[12]! };
}

/** The process's share of the memory that it uses. */
export function processPssBytes(pid: number): number {
  const rollup = fs.readFileSync(`/proc/${pid}/smaps_rollup`, 'latin1');
  return Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0) * 1024;
}
