// How a command of `sf` is declared: its words, options, examples and exit codes in one place, from
// which the parser, the help and `docs/reference/cli.md` are made. Called by `program.ts`.

import { type Command, InvalidArgumentError, Option } from 'commander';
import type { Accelerator } from '../api/schemas.js';
import type { Host } from '../host/host.js';
import type { Interrupts } from './interrupts.js';
import type { Output } from './output.js';

export const EXIT_OK = 0;
/** What was asked for came to an end that is no success: a clone was lost, a VM was killed. */
export const EXIT_FAILED = 1;
export const EXIT_USAGE = 2;

export interface OptionSpec {
  /** As commander has them: `-n, --clones <n>`. */
  readonly flags: string;
  readonly summary: string;
  readonly parse?: (text: string) => unknown;
  readonly choices?: readonly string[];
  readonly default?: unknown;
}

/** What a running command has at hand. */
export interface Session {
  readonly output: Output;
  readonly interrupts: Interrupts;
  /** Connects, and starts the agent unless told not to; the connection ends with the command. */
  connect(options?: { start?: boolean; accelerator?: Accelerator | undefined }): Promise<Host>;
}

export interface CommandSpec {
  /** Name and arguments: `fork <vm>`. */
  readonly syntax: string;
  readonly summary: string;
  /** More than the summary says. */
  readonly details?: string;
  readonly options?: readonly OptionSpec[];
  readonly examples: readonly { readonly line: string; readonly says: string }[];
  /** Exit codes of this command beside those of the table of errors. */
  readonly exits?: readonly { readonly code: string; readonly when: string }[];
  /** Resolves with the exit code, 0 when it is nothing. */
  readonly run: (
    session: Session,
    args: readonly string[],
    options: Record<string, unknown>,
    // biome-ignore lint/suspicious/noConfusingVoidType: a command that says nothing has succeeded.
  ) => Promise<number | void>;
}

export interface GroupSpec {
  readonly name: string;
  readonly summary: string;
  readonly commands: readonly CommandSpec[];
}

export interface Surroundings {
  readonly output: Output;
  readonly interrupts: Interrupts;
  readonly outcome: { exitCode: number };
}

const GLOBAL_OPTIONS: readonly OptionSpec[] = [
  { flags: '--json', summary: 'print JSON: one document, or one per line for what streams' },
  { flags: '--state <folder>', summary: 'state folder of the agent (default: $SNOWFORK_STATE)' },
];

const specs = new WeakMap<Command, CommandSpec>();

/** The declaration that a command was made of; none for a group. */
export function specOf(command: Command): CommandSpec | undefined {
  return specs.get(command);
}

export function addCommand(parent: Command, spec: CommandSpec, around: Surroundings): void {
  const command = parent.command(spec.syntax).summary(spec.summary);
  command.description(
    spec.details === undefined ? spec.summary : `${spec.summary}\n\n${spec.details}`,
  );
  for (const option of [...(spec.options ?? []), ...GLOBAL_OPTIONS]) {
    command.addOption(makeOption(option));
  }
  command.addHelpText('after', helpAfter(spec));
  specs.set(command, spec);
  command.action(async () => {
    const options = command.optsWithGlobals<Record<string, unknown>>();
    const args = command.processedArgs.flat().filter((arg): arg is string => arg !== undefined);
    around.outcome.exitCode = await runCommand(spec, around, args, options);
  });
}

export function addGroup(parent: Command, group: GroupSpec, around: Surroundings): void {
  const command = parent.command(group.name).description(group.summary);
  for (const spec of group.commands) addCommand(command, spec, around);
}

export function addGlobalOptions(program: Command): void {
  for (const option of GLOBAL_OPTIONS) program.addOption(makeOption(option));
}

/** A positive number of seconds, as milliseconds. */
export function parseSeconds(text: string): number {
  const seconds = Number(text);
  if (text.trim() === '' || !(seconds > 0) || !Number.isFinite(seconds)) {
    throw new InvalidArgumentError('A number of seconds above 0 is needed.');
  }
  return seconds * 1000;
}

async function runCommand(
  spec: CommandSpec,
  { output, interrupts }: Surroundings,
  args: readonly string[],
  options: Record<string, unknown>,
): Promise<number> {
  let host: Host | undefined;
  const session: Session = {
    output,
    interrupts,
    async connect({ start = true, accelerator } = {}) {
      // Loaded here, so that help and mistakes are answered at once.
      const { connect } = await import('../host/index.js');
      const stateFolder = options.state as string | undefined;
      host = await connect({ stateFolder, start, accelerator, signal: interrupts.signal });
      return host;
    },
  };
  try {
    return (await spec.run(session, args, options)) ?? EXIT_OK;
  } finally {
    await host?.close();
  }
}

function makeOption(spec: OptionSpec): Option {
  const option = new Option(spec.flags, spec.summary);
  if (spec.choices !== undefined) option.choices(spec.choices);
  const { parse } = spec;
  if (parse !== undefined) option.argParser((text: string) => parse(text));
  if (spec.default !== undefined) option.default(spec.default);
  return option;
}

function helpAfter({ examples, exits = [] }: CommandSpec): string {
  const width = Math.max(...examples.map(({ line }) => line.length));
  const lines = ['', 'Examples:'];
  for (const { line, says } of examples) lines.push(`  ${line.padEnd(width)}  ${says}`);
  if (exits.length > 0) lines.push('', 'Exit codes:');
  for (const { code, when } of exits) lines.push(`  ${code.padEnd(5)} ${when}`);
  return lines.join('\n');
}
