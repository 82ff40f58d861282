// The entry of the pager process: `node main.js --fuse-fd N --run FOLDER`. The agent starts it with
// /dev/fuse as an inherited descriptor (`client.ts`). It ends when the mount has gone or on SIGTERM,
// and may be started again on the same descriptor at any time; it keeps nothing that could be lost.

import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { newComplaints } from '@snowfork/memserver';
import { LISTENING_LINE, listenForCommands } from '@snowfork/memserver/control';
import koffi from 'koffi';
import { PAGER_SOCKET } from './client.js';
import { Pager } from './pager.js';

/** Faults come before whatever else wants a processor. */
const PRIORITY = -10;

/**
 * Ends the process at once. Its threads block in read(2) on /dev/fuse, so `process.exit`, which waits
 * for them, would not return.
 */
const exitNow: (code: number) => void = koffi.load('libc.so.6').func('void _exit(int code)');

const { log, complain } = newComplaints('pager');

/** Threads that block would keep alive a process that does nothing any more; another one goes on. */
function failed(error: unknown): void {
  log(`failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
  exitNow(1);
}

async function main(): Promise<void> {
  process.on('uncaughtException', failed).on('unhandledRejection', failed);
  const { values } = parseArgs({
    options: {
      'fuse-fd': { type: 'string' },
      run: { type: 'string' },
      'no-replay': { type: 'boolean', default: false },
    },
  });
  const fuseDescriptor = Number(values['fuse-fd']);
  const runFolder = values.run;
  if (!Number.isInteger(fuseDescriptor) || runFolder === undefined) {
    throw new Error('usage: main.js --fuse-fd N --run FOLDER [--no-replay]');
  }
  // Before the threads start: each inherits it.
  try {
    os.setPriority(PRIORITY);
  } catch {
    log('no right to a higher priority: faults will be slower when the host is busy');
  }
  const pager = new Pager(
    { fuseDescriptor, runFolder, replays: !values['no-replay'] },
    { complain, gone: () => exitNow(0), failed },
  );
  // A terminal's Ctrl-C is for the agent; VMs still need their pages.
  for (const signal of ['SIGINT', 'SIGHUP'] as const) process.on(signal, () => {});
  process.on('SIGTERM', () => void pager.quiet().then(() => exitNow(0)));
  await listenForCommands(path.join(runFolder, PAGER_SOCKET), pager.commands);
  process.stdout.on('error', () => {});
  process.stdout.write(`${LISTENING_LINE}\n`);
}

main().catch((error: unknown) => {
  log(`did not start: ${error instanceof Error ? error.message : String(error)}`);
  exitNow(1);
});
