#!/usr/bin/env node
// The process of the agent: reads the environment, starts the agent, ends it on a signal. Started by
// `sf up` or by any command that finds no agent; everything else is in `agent.ts`.

import fs from 'node:fs';
import { AGENT_EXIT_TAKEN, defaultStateFolder, SnowforkError } from '@snowfork/sdk/api';
import pino from 'pino';
import { Agent } from './agent.js';
import { processStartTime } from './store/processes.js';
import { stateFolder } from './store/state-folder.js';
import { keepDescriptors } from './system/descriptors.js';

/** Tests and benches own their agent: it must not outlive them, whatever ends them. */
const OWNER_POLL_MS = 500;

const log = pino({ name: 'snowfork', level: process.env.SNOWFORK_LOG ?? 'info' });

keepDescriptors();
try {
  const state = stateFolder(realFolder(process.env.SNOWFORK_STATE || defaultStateFolder()));
  const agent = await Agent.start({ state, log, environment: process.env });
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, () => void agent.shutDown());
  // A terminal that closes must not take the VMs with it.
  process.on('SIGHUP', () => {});
  const owner = Number(process.env.SNOWFORK_OWNER);
  if (owner > 0) endWith(owner, () => void agent.shutDown());
} catch (error) {
  log.fatal({ err: error }, 'the agent could not start');
  const isTaken = error instanceof SnowforkError && error.details.taken === true;
  process.exit(isTaken ? AGENT_EXIT_TAKEN : 1);
}

/** As the kernel names it where it lists mounts and mappings; made when it is not there. */
function realFolder(folder: string): string {
  fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
  return fs.realpathSync(folder);
}

function endWith(owner: number, end: () => void): void {
  const startTime = processStartTime(owner);
  const timer = setInterval(() => {
    if (startTime !== undefined && processStartTime(owner) === startTime) return;
    clearInterval(timer);
    end();
  }, OWNER_POLL_MS);
}
