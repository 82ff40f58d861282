// What can stand at the end of a half-typed `sf` line, from the declarations of the commands; names
// and ids are asked of whoever knows. The shells' scripts call it (`scripts.ts`) through `answer.ts`.

import type { Command, Option } from 'commander';
import { SHELLS } from './scripts.js';

export interface Candidate {
  readonly value: string;
  /** A few words; empty: none. */
  readonly says: string;
}

/** Things whose names only this host knows; named as the arguments of commands are. */
export type Kind = 'vm' | 'image' | 'snapshot' | 'ticket' | 'name';
const KINDS: readonly string[] = ['vm', 'image', 'snapshot', 'ticket', 'name'] satisfies Kind[];

/** Names of a kind. `stateFolder` is what the line says, if it does. */
export type Ask = (kind: Kind, stateFolder: string | undefined) => Promise<Candidate[]>;

export interface Completion {
  readonly candidates: readonly Candidate[];
  /** What the shell is to complete by itself. */
  readonly paths: 'none' | 'files' | 'folders';
}

const NOTHING: Completion = { candidates: [], paths: 'none' };

/** Values of options that are paths, by the name in their flags. */
const PATH_VALUES: Readonly<Record<string, Completion['paths']>> = {
  path: 'files',
  folder: 'folders',
};
/** Folders that are not this host's. */
const GUEST_OPTIONS: readonly string[] = ['--cwd'];

/** `words`: all after `sf`; the last one is being typed and may be empty. */
export async function complete(
  program: Command,
  words: readonly string[],
  ask: Ask,
): Promise<Completion> {
  // Some shells split `--state=folder` in three.
  const typed = words.filter((word, at) => word !== '=' || at === words.length - 1);
  const current = typed.at(-1) === '=' ? '' : (typed.at(-1) ?? '');
  const line = readLine(program, typed.slice(0, -1));
  const known = await candidatesFor(line, current, ask);
  const given = new Set(line.positionals);
  const candidates = known.candidates.filter(
    ({ value }) => value.startsWith(current) && !given.has(value),
  );
  return { ...known, candidates };
}

interface Line {
  readonly command: Command;
  /** The words of the command that are no options and no values of such. */
  readonly positionals: readonly string[];
  /** Whose value comes next. */
  readonly option: Option | undefined;
  /** `--` was there: no options any more. */
  readonly optionsEnded: boolean;
  readonly stateFolder: string | undefined;
}

/** What the finished words of the line say. */
function readLine(program: Command, words: readonly string[]): Line {
  let command = program;
  let option: Option | undefined;
  let optionsEnded = false;
  let stateFolder: string | undefined;
  const positionals: string[] = [];
  for (const word of words) {
    if (option !== undefined) {
      if (option.long === '--state') stateFolder = word;
      option = undefined;
    } else if (optionsEnded) {
      positionals.push(word);
    } else if (word === '--') {
      optionsEnded = true;
    } else if (word.startsWith('-')) {
      const [flag, value] = splitOnce(word);
      const found = optionsOf(command).find(({ long, short }) => flag === long || flag === short);
      if (flag === '--state' && value !== undefined) stateFolder = value;
      if (takesValue(found) && value === undefined) option = found;
    } else {
      const child = command.commands.find((candidate) => candidate.name() === word);
      if (child === undefined) positionals.push(word);
      else command = child;
    }
  }
  return { command, positionals, option, optionsEnded, stateFolder };
}

async function candidatesFor(line: Line, current: string, ask: Ask): Promise<Completion> {
  const { command, positionals, option, optionsEnded, stateFolder } = line;
  if (option !== undefined) return valuesOf(option);
  if (current.startsWith('-') && !optionsEnded) {
    return { candidates: optionsOf(command).map(describeOption), paths: 'none' };
  }
  if (command.commands.length > 0) {
    const shown = command.commands.map((child) => ({
      value: child.name(),
      says: child.summary() || child.description(),
    }));
    return { candidates: shown, paths: 'none' };
  }
  const { registeredArguments } = command;
  const last = registeredArguments.at(-1);
  const argument = registeredArguments[positionals.length] ?? (last?.variadic ? last : undefined);
  if (argument === undefined) return NOTHING;
  const kind = argument.name();
  if (kind === 'shell') return choices(SHELLS);
  return isKind(kind) ? { candidates: await ask(kind, stateFolder), paths: 'none' } : NOTHING;
}

function valuesOf(option: Option): Completion {
  if (option.argChoices !== undefined) return choices(option.argChoices);
  if (GUEST_OPTIONS.includes(option.long ?? '')) return NOTHING;
  const [, name = ''] = /<(\w+)/.exec(option.flags) ?? [];
  return { candidates: [], paths: PATH_VALUES[name] ?? 'none' };
}

function choices(values: readonly string[]): Completion {
  return { candidates: values.map((value) => ({ value, says: '' })), paths: 'none' };
}

function optionsOf(command: Command): Option[] {
  return command.createHelp().visibleOptions(command);
}

function describeOption(option: Option): Candidate {
  return { value: option.long ?? option.short ?? '', says: option.description };
}

function takesValue(option: Option | undefined): boolean {
  return option !== undefined && (option.required || option.optional);
}

function splitOnce(word: string): [string, string | undefined] {
  const at = word.startsWith('--') ? word.indexOf('=') : -1;
  return at === -1 ? [word, undefined] : [word.slice(0, at), word.slice(at + 1)];
}

function isKind(name: string): name is Kind {
  return KINDS.includes(name);
}
