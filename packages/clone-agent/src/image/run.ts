// Child processes of an image build: asynchronous, without a shell, killed with all they started
// when the build is given up. Never decides what to run; called by the steps (`kernel.ts`,
// `root.ts` …).

import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { SnowforkError } from '@snowfork/sdk/api';
import { hasOneUser } from '../system/rights.js';

/** How much of a failed command's output the error shows. */
const TAIL_LINES = 30;
const LINE_CHARACTERS_MAX = 400;
/** Of the standard output that is handed back. */
const OUTPUT_CHARACTERS_MAX = 4 * 1024 * 1024;
/** No step of a build takes longer, unless it hangs. */
const STEP_TIMEOUT_MS = 30 * 60_000;
/** Administrators' programs (depmod, chroot) are not on every user's path. */
const SYSTEM_PATHS = [
  '/usr/local/sbin',
  '/usr/sbin',
  '/sbin',
  '/usr/local/bin',
  '/usr/bin',
  '/bin',
];

/** What every step of a build is given. */
export interface StepContext {
  /** As shown to the user and named in errors: `packages`. */
  readonly step: string;
  readonly signal: AbortSignal;
  readonly onProgress: (step: string, message: string) => void;
}

export interface RunOptions {
  readonly folder?: string;
  /** Added to the environment of the agent. */
  readonly environment?: Readonly<Record<string, string>>;
  /** Instead of the environment of the agent. */
  readonly onlyEnvironment?: boolean;
  /** The program that is meant, where `command` only starts it. */
  readonly label?: string;
  /** Called for each line of either output. */
  readonly onLine?: (line: string) => void;
}

/**
 * Runs `command` to its end and gives its standard output.
 * @throws SnowforkError SF_IMAGE_BUILD_FAILED with the end of its output, SF_ABORTED.
 */
export function run(
  command: string,
  parameters: readonly string[],
  context: StepContext,
  options: RunOptions = {},
): Promise<string> {
  if (context.signal.aborted) return Promise.reject(aborted(context));
  const deadline = AbortSignal.timeout(STEP_TIMEOUT_MS);
  const ended = AbortSignal.any([context.signal, deadline]);
  const tail: string[] = [];
  const output: string[] = [];
  let outputCharacters = 0;
  const program = options.label ?? command;
  return new Promise((resolve, reject) => {
    const child = spawn(command, parameters, {
      cwd: options.folder,
      env: environmentOf(options),
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true, // a process group of its own, to be killed as a whole
    });
    const kill = () => killGroup(child.pid);
    ended.addEventListener('abort', kill, { once: true });
    const onLine = (line: string) => {
      tail.push(line.slice(0, LINE_CHARACTERS_MAX));
      if (tail.length > TAIL_LINES) tail.shift();
      options.onLine?.(line);
    };
    createInterface({ input: child.stderr }).on('line', onLine);
    createInterface({ input: child.stdout }).on('line', (line) => {
      outputCharacters += line.length + 1;
      if (outputCharacters <= OUTPUT_CHARACTERS_MAX) output.push(line);
      onLine(line);
    });
    child.once('error', (cause) => {
      ended.removeEventListener('abort', kill);
      reject(startFailure(command, context, cause));
    });
    child.once('close', (code, signal) => {
      ended.removeEventListener('abort', kill);
      if (code === 0) return resolve(output.map((line) => `${line}\n`).join(''));
      if (context.signal.aborted) return reject(aborted(context));
      const how = deadline.aborted ? 'was ended at its deadline' : howEnded(program, code, signal);
      reject(stepFailed(context, `${program} ${how}`, tail));
    });
  });
}

/** The error of a step that went wrong; `output` is the end of what its command said. */
export function stepFailed(
  { step }: Pick<StepContext, 'step'>,
  what: string,
  output: readonly string[] = [],
  cause?: unknown,
): SnowforkError {
  const shown = output.length === 0 ? '' : `\n${output.map((line) => `  ${line}`).join('\n')}`;
  return new SnowforkError('SF_IMAGE_BUILD_FAILED', `step "${step}" failed: ${what}${shown}`, {
    details: { step, output: [...output] },
    cause,
  });
}

export function aborted({ step }: Pick<StepContext, 'step'>): SnowforkError {
  return new SnowforkError('SF_ABORTED', `the build was given up in step "${step}"`);
}

/**
 * Runs a command so that nothing of it is left when it ends or is killed: in namespaces of its own
 * for processes (the kernel ends them with the first) and for mounts. With `root` the command sees
 * that folder as the whole file system.
 */
export function runConfined(
  command: readonly [string, ...string[]],
  context: StepContext,
  options: RunOptions & { readonly root?: string } = {},
): Promise<string> {
  const namespaces = ['--mount', '--pid', '--fork', '--kill-child'];
  const where = options.root === undefined ? [] : [`--root=${options.root}`, '--wd=/'];
  const parameters = [...namespaces, ...where, '--mount-proc', '--', ...command];
  const withAgent = ['setpriv', '--pdeathsig', 'KILL', '--', 'unshare', ...parameters];
  const asOneOwner = ['unshare', '--mount', '--', 'perl', ONE_OWNER, options.root ?? ''];
  const [program, ...rest] = hasOneUser() ? [...asOneOwner, ...withAgent] : withAgent;
  return run(program!, rest, context, { label: command[0], ...options });
}

/** For a build by an ordinary user; it says itself what it does. */
const ONE_OWNER = fileURLToPath(new URL('../../image/one-owner.pl', import.meta.url));

function environmentOf(options: RunOptions): NodeJS.ProcessEnv {
  if (options.onlyEnvironment === true) return { ...options.environment };
  const path = [...new Set([...(process.env.PATH ?? '').split(':'), ...SYSTEM_PATHS])];
  return { ...process.env, PATH: path.join(':'), LC_ALL: 'C.UTF-8', ...options.environment };
}

/** SIGKILL at once: whatever they leave lies in folders that the build removes. */
function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** Where a Debian user finds the programs that the build calls. */
const PACKAGE_OF: Readonly<Record<string, string>> = {
  mmdebstrap: 'mmdebstrap',
  mksquashfs: 'squashfs-tools',
  depmod: 'kmod',
  unshare: 'util-linux',
  setpriv: 'util-linux',
  'dpkg-deb': 'dpkg',
  'apt-get': 'apt',
  'apt-cache': 'apt',
  'apt-config': 'apt',
  xz: 'xz-utils',
};

/** What a shell says for a program that is not there; so does `unshare`. */
const CODE_NOT_FOUND = 127;

function howEnded(program: string, code: number | null, signal: string | null): string {
  if (signal !== null) return `was ended by ${signal}`;
  return `ended with code ${code}${code === CODE_NOT_FOUND ? installHint(program) : ''}`;
}

function startFailure(command: string, context: StepContext, cause: Error): SnowforkError {
  const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
  const what = missing
    ? `the program ${command} is missing${installHint(command)}`
    : `${command} did not start: ${cause.message}`;
  return stepFailed(context, what, [], cause);
}

function installHint(program: string): string {
  const name = PACKAGE_OF[program];
  return name === undefined ? '' : `: install the Debian package ${name}`;
}
