// From arguments to an exit code: parses, runs the command, turns every failure into words (or
// JSON) and the documented code. Called by `main.ts`.

import { CommanderError } from 'commander';
import { errorRegistry, SnowforkError } from '../api/errors.js';
import { EXIT_OK, EXIT_USAGE } from './command.js';
import { answerShell, COMPLETE_WORD } from './completion/answer.js';
import { Interrupts } from './interrupts.js';
import { Output } from './output.js';
import { buildProgram } from './program.js';

/**
 * Runs one `sf` command and resolves with its exit code. Uses the process's streams and signals.
 */
export async function run(args: readonly string[]): Promise<number> {
  const json = args[0] !== COMPLETE_WORD && isJsonAsked(args);
  const output = new Output(process.stdout, process.stderr, json);
  output.endProcessOnClosedPipe();
  if (args[0] === COMPLETE_WORD) {
    for (const line of await answerShell(args.slice(1))) output.line(line);
    await output.flush();
    return EXIT_OK;
  }
  const interrupts = new Interrupts();
  interrupts.start();
  const outcome = { exitCode: EXIT_OK };
  try {
    const program = buildProgram({ output, interrupts, outcome });
    await program.parseAsync(args, { from: 'user' });
    return outcome.exitCode;
  } catch (error) {
    return report(output, error);
  } finally {
    interrupts.stop();
    await output.flush();
  }
}

function report(output: Output, error: unknown): number {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return EXIT_OK;
    // Help that was shown because no command was given is no error message of its own.
    const words = error.message.replace(/^error: /, '');
    if (error.code !== 'commander.help') output.error(new SnowforkError('SF_BAD_REQUEST', words));
    return EXIT_USAGE;
  }
  const ours = SnowforkError.from(error);
  output.error(ours);
  return errorRegistry[ours.code].exitCode;
}

/** Known before parsing, as errors of parsing are JSON too. What follows `--` is not ours. */
function isJsonAsked(args: readonly string[]): boolean {
  const end = args.indexOf('--');
  return args.slice(0, end === -1 ? undefined : end).includes('--json');
}
