// The program `bench/guest/worker.pl` in a guest: started there once, spoken to there and in every copy
// of that guest, whoever made the copy. Used by parts that time a program in a parent and its clone.

import fs from 'node:fs';
import path from 'node:path';
import type { Vm } from '@snowfork/sdk';
import { projectFolder } from './bench-host.js';

const PROGRAM = '/root/worker.pl';
const FOLDER = '/tmp/worker';

/** Runs a line of shell in a guest and gives what it wrote. */
export type GuestShell = (line: string, stdin?: Buffer) => Promise<string>;

export interface WorkerRun {
  /** By the guest's monotonic clock. */
  readonly seconds: number;
  /** The same wherever the same was computed. */
  readonly result: string;
}

export function shellOf(vm: Vm): GuestShell {
  return async (line, stdin) => {
    const { code, stdout, stderr } = await vm.exec(line, stdin === undefined ? {} : { stdin });
    if (code !== 0) throw new Error(`in ${vm.id}: ${line}: ${stderr}`);
    return stdout;
  };
}

export async function startWorker(shell: GuestShell, mib: number): Promise<void> {
  const source = path.join(projectFolder, 'bench/guest', path.basename(PROGRAM));
  await shell(`cat >${PROGRAM}`, fs.readFileSync(source));
  const run = `setsid perl ${PROGRAM} ${FOLDER} ${mib}`;
  await shell(
    `mkdir ${FOLDER} && cd ${FOLDER} && { LC_ALL=C ${run} </dev/null >log 2>&1 & } &&
     until [ -e ready ]; do kill -0 $! || { cat log >&2; exit 1; }; usleep 20000; done`,
  );
}

/** The line of shell that has the worker do something; it writes the worker's answer. */
export function workerLine(command: string): string {
  return `cd ${FOLDER} && echo '${command}' >ask && cat answer`;
}

/** `cpu ROUNDS` or `memory PASSES`. */
export async function runWorker(shell: GuestShell, command: string): Promise<WorkerRun> {
  const answer = await shell(workerLine(command));
  const [, seconds, result] = /^(\d+\.\d+) (\d+)$/m.exec(answer) ?? [];
  if (seconds === undefined) throw new Error(`the worker answers ${command} by ${answer}`);
  return { seconds: Number(seconds), result: result! };
}
