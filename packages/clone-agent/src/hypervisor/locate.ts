// Finds the host's QEMU and what of it matters: its version, the versioned name of its q35 machine
// and the properties of that. Starts no VM. The agent calls it once, when it starts.

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { SnowforkError } from '@snowfork/sdk/api';

export const QEMU_PROGRAM = 'qemu-system-x86_64';
/** Names the program to use instead of the one in PATH. */
export const QEMU_VARIABLE = 'SNOWFORK_QEMU';
const VERSION_MIN = { major: 7, minor: 2 } as const;
const HELP_TIMEOUT_MS = 10_000;

export interface QemuBinary {
  readonly path: string;
  /** As `7.2.22`. */
  readonly version: string;
  /** What `q35` stands for in this version. */
  readonly machineType: string;
  readonly machineProperties: ReadonlySet<string>;
}

/** @throws SnowforkError SF_QEMU_MISSING that says what was looked for and what to do. */
export async function locateQemu(environment: NodeJS.ProcessEnv): Promise<QemuBinary> {
  const program = findProgram(environment);
  const [versionText, machines] = await Promise.all([
    help(program, '--version'),
    help(program, '-machine', 'help'),
  ]);
  const version = parseVersion(versionText);
  if (version === undefined || !isRecent(version)) {
    throw missing(`${program} is QEMU ${version ?? 'of an unknown version'}`);
  }
  const machineType = parseMachineType(machines);
  if (machineType === undefined) throw missing(`${program} has no machine q35`);
  const properties = await help(program, '-machine', `${machineType},help`);
  return { path: program, version, machineType, machineProperties: parseProperties(properties) };
}

/** The version in the answer to `--version`. */
export function parseVersion(text: string): string | undefined {
  return /QEMU emulator version (\d+\.\d+(?:\.\d+)?)/.exec(text)?.[1];
}

/** The versioned name behind the alias q35 in the answer to `-machine help`. */
export function parseMachineType(text: string): string | undefined {
  return /^q35 .*\(alias of ([a-z0-9.-]+)\)/m.exec(text)?.[1];
}

/** Names of the lines `  name=<type>  - what it is`. */
export function parseProperties(text: string): Set<string> {
  return new Set([...text.matchAll(/^\s+([a-z0-9-]+)=</gm)].map(([, name]) => name!));
}

export function isRecent(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  if (major !== VERSION_MIN.major) return major > VERSION_MIN.major;
  return minor >= VERSION_MIN.minor;
}

function findProgram(environment: NodeJS.ProcessEnv): string {
  const named = environment[QEMU_VARIABLE];
  if (named) {
    if (isExecutable(named)) return named;
    throw missing(`${QEMU_VARIABLE} names ${named}, which cannot be executed`);
  }
  const folders = (environment.PATH ?? '').split(path.delimiter).filter(Boolean);
  const found = folders.map((folder) => path.join(folder, QEMU_PROGRAM)).find(isExecutable);
  if (found) return found;
  throw missing(`${QEMU_PROGRAM} is not in PATH`);
}

function isExecutable(file: string): boolean {
  try {
    fs.accessSync(file, fs.constants.X_OK);
    return fs.statSync(file).isFile();
  } catch {
    return false;
  }
}

async function help(program: string, ...parameters: string[]): Promise<string> {
  try {
    const options = { timeout: HELP_TIMEOUT_MS };
    return (await promisify(execFile)(program, parameters, options)).stdout;
  } catch (cause) {
    throw missing(`${program} ${parameters.join(' ')} failed`, cause);
  }
}

function missing(what: string, cause?: unknown): SnowforkError {
  const need = `QEMU ${VERSION_MIN.major}.${VERSION_MIN.minor} or later is needed`;
  const remedy = `install the Debian package qemu-system-x86, or set ${QEMU_VARIABLE}`;
  return new SnowforkError('SF_QEMU_MISSING', `${what}; ${need}: ${remedy}`, { cause });
}
