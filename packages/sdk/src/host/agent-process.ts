// Starts the agent's process when it is not there: finds its program, spawns it detached with its
// output in agent.log, and waits until the socket answers. Never talks to a running agent. Called
// by `connect.ts`.

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SnowforkError } from '../api/errors.js';
import { AGENT_EXIT_TAKEN } from '../api/schemas.js';
import { namespaceCommand } from './user-namespace.js';
import { pause } from './waits.js';

/** The agent probes the accelerator by booting, which has time-outs of its own. */
const START_TIMEOUT_MS = 120_000;
const POLL_FIRST_MS = 10;
const POLL_MAX_MS = 100;
const LOG_LINES_SHOWN = 5;
const LOG_BYTES_READ_MAX = 65_536;

export interface StartAgentOptions {
  readonly stateFolder: string;
  readonly environment: Readonly<Record<string, string>>;
  /** Whether the socket answers. */
  readonly answers: () => Promise<boolean>;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Resolves when the agent answers. The agent outlives this process.
 *
 * @throws SnowforkError SF_AGENT_UNREACHABLE with the last lines of agent.log, SF_PERMISSION when
 * the state folder cannot be made or an ordinary user gets no namespace, SF_ABORTED.
 */
export async function startAgent(options: StartAgentOptions): Promise<void> {
  const command = [process.execPath, agentProgram()];
  command.unshift(...(await namespaceCommand(options.stateFolder)));
  const logPath = join(options.stateFolder, 'agent.log');
  const logFile = openLog(options.stateFolder, logPath);
  const logStart = statSync(logPath).size;
  let child: ChildProcess;
  try {
    child = spawn(command[0]!, command.slice(1), {
      detached: true,
      stdio: ['ignore', logFile, logFile],
      cwd: '/',
      env: { ...process.env, ...options.environment, SNOWFORK_STATE: options.stateFolder },
    });
  } finally {
    closeSync(logFile);
  }
  child.unref();
  await untilAnswers(child, options, logPath, logStart);
}

async function untilAnswers(
  child: ChildProcess,
  { answers, signal }: StartAgentOptions,
  logPath: string,
  logStart: number,
): Promise<void> {
  const deadline = Date.now() + START_TIMEOUT_MS;
  let failed: string | undefined;
  child.once('error', (error) => {
    failed = `could not be started: ${error.message}`;
  });
  child.once('exit', (code, killedBy) => {
    // Somebody else's agent took the folder while ours was starting: wait for that one.
    if (code !== AGENT_EXIT_TAKEN) failed = `ended at once (${killedBy ?? `exit code ${code}`})`;
  });
  for (let pollMs = POLL_FIRST_MS; ; pollMs = Math.min(pollMs * 2, POLL_MAX_MS)) {
    if (await answers()) return;
    if (failed !== undefined) throw startError(failed, logPath, logStart);
    if (Date.now() > deadline) {
      throw startError(`did not answer within ${START_TIMEOUT_MS / 1000} s`, logPath, logStart);
    }
    await pause(pollMs, signal);
  }
}

/** SNOWFORK_AGENT, or the package beside this one. */
function agentProgram(): string {
  const chosen = process.env.SNOWFORK_AGENT;
  if (chosen) return chosen;
  let program: string;
  try {
    program = fileURLToPath(import.meta.resolve('@snowfork/clone-agent/main'));
  } catch (cause) {
    throw new SnowforkError(
      'SF_AGENT_UNREACHABLE',
      'the agent is not installed beside the SDK: install @snowfork/clone-agent, or set ' +
        'SNOWFORK_AGENT to its dist/main.js',
      { cause },
    );
  }
  if (existsSync(program)) return program;
  throw new SnowforkError(
    'SF_AGENT_UNREACHABLE',
    `the agent's program is missing (${program}): build it with \`npm run build\``,
  );
}

function openLog(stateFolder: string, logPath: string): number {
  try {
    mkdirSync(stateFolder, { recursive: true, mode: 0o700 });
    return openSync(logPath, 'a', 0o600);
  } catch (cause) {
    throw new SnowforkError(
      'SF_PERMISSION',
      `the state folder ${stateFolder} cannot be used (${(cause as Error).message}): ` +
        'choose another by SNOWFORK_STATE',
      { cause },
    );
  }
}

function startError(what: string, logPath: string, logStart: number): SnowforkError {
  const log = lastWords(logPath, logStart);
  const words = log.length === 0 ? `${logPath} says nothing` : `${logPath} ends with:`;
  const message = [`the agent ${what}; ${words}`, ...log.map((line) => `  ${line}`)].join('\n');
  return new SnowforkError('SF_AGENT_UNREACHABLE', message, { details: { logPath, log } });
}

/** The last lines that the agent wrote after `logStart`, its JSON lines as plain words. */
function lastWords(logPath: string, logStart: number): string[] {
  const bytes = readFileSync(logPath).subarray(logStart).subarray(-LOG_BYTES_READ_MAX);
  const lines = bytes.toString('utf8').split('\n');
  return lines
    .filter((line) => line.trim() !== '')
    .slice(-LOG_LINES_SHOWN)
    .map(plainLine);
}

function plainLine(line: string): string {
  try {
    const entry = JSON.parse(line) as { msg?: string; err?: { message?: string } };
    const words = [entry.msg, entry.err?.message].filter((word) => word !== undefined);
    return words.length === 0 ? line : words.join(': ');
  } catch {
    return line;
  }
}
