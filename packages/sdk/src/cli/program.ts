// All commands of `sf`, put together. Called by `run.ts`, and by `reference.ts` for the
// documentation.

import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { z } from 'zod';
import { addCommand, addGlobalOptions, addGroup, type Surroundings } from './command.js';
import { agentCommands, hostStats } from './commands/agent.js';
import { clusterGroup, hostGroup } from './commands/cluster.js';
import { completion } from './commands/completion.js';
import { consoleCommands } from './commands/console.js';
import { doctor } from './commands/doctor.js';
import { exec } from './commands/exec.js';
import { forkCommands, snapshotGroup } from './commands/forks.js';
import { imageGroup } from './commands/images.js';
import { top } from './commands/top.js';
import { vmCommands } from './commands/vms.js';

const SUMMARY = `fork() for virtual machines

Commands start the agent of this host when it is not there, except \`sf down\` and \`sf completion\`.`;

export function buildProgram(around: Surroundings): Command {
  const program = new Command('sf').description(SUMMARY).version(version(), '--version');
  // Before the commands are added, as they inherit it.
  program.exitOverride().configureOutput({ outputError: () => {} });
  addGlobalOptions(program);
  const { up, down, demo } = agentCommands;
  program.commandsGroup('Agent:');
  for (const spec of [up, down, doctor, hostStats, top, demo, completion])
    addCommand(program, spec, around);
  program.commandsGroup('VMs:');
  for (const spec of vmCommands) addCommand(program, spec, around);
  program.commandsGroup('Forks:');
  for (const spec of forkCommands) addCommand(program, spec, around);
  program.commandsGroup('Inside a VM:');
  for (const spec of [exec, ...consoleCommands]) addCommand(program, spec, around);
  program.commandsGroup('Stored things:');
  for (const group of [imageGroup, snapshotGroup]) addGroup(program, group, around);
  program.commandsGroup('Several hosts:');
  for (const group of [clusterGroup, hostGroup]) addGroup(program, group, around);
  return program;
}

function version(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  return z.object({ version: z.string() }).parse(JSON.parse(text)).version;
}
