// `vm.exec()`: runs a command in the guest to its end and collects what it wrote. Called by
// `vm.ts`.

import { SnowforkError } from '../api/errors.js';
import type { ExecExit } from '../api/schemas.js';
import { type Command, type CommandOptions, CommandStream } from './command-stream.js';
import type { Transport } from './transport.js';

/** What each of stdout and stderr may hold unless `maxBuffer` says otherwise, in bytes. */
export const MAX_BUFFER_BYTES_DEFAULT = 64 * 1024 * 1024;

export type ExecStdin = string | Uint8Array | AsyncIterable<string | Uint8Array>;

/** Called for each chunk; the next one waits until a promise of it is settled. */
type OnOutput = (chunk: Buffer) => void | Promise<void>;

export interface ExecOptions extends CommandOptions {
  /** Standard input; empty when not given. What a command that ended did not read is dropped. */
  stdin?: ExecStdin | undefined;
  onStdout?: OnOutput | undefined;
  onStderr?: OnOutput | undefined;
  /**
   * Bytes kept of each of stdout and stderr, 64 MiB when not given. A command that writes more is
   * killed and SF_VALUE_TOO_LARGE thrown, unless a callback takes that output: then the result
   * holds the first `maxBuffer` bytes and the callback gets all.
   */
  maxBuffer?: number | undefined;
  /** `utf8` (when not given): `stdout` and `stderr` are strings. `buffer`: they are Buffers. */
  encoding?: 'utf8' | 'buffer' | undefined;
}

export interface ExecResult<Output = string> {
  /** Exit code; null when a signal ended the command. */
  readonly code: number | null;
  /** Number of that signal, else null. */
  readonly signal: number | null;
  readonly stdout: Output;
  readonly stderr: Output;
}

export async function runCommand(
  transport: Transport,
  vm: string,
  command: Command,
  options: ExecOptions,
): Promise<ExecResult<string | Buffer>> {
  const { stdin, maxBuffer = MAX_BUFFER_BYTES_DEFAULT, encoding = 'utf8' } = options;
  const collected = {
    stdout: new Collector('stdout', maxBuffer, options.onStdout),
    stderr: new Collector('stderr', maxBuffer, options.onStderr),
  };
  const { cwd, env, signal, timeoutMs } = options;
  const wanted = { cwd, env, signal, timeoutMs, stdin: stdin !== undefined };
  const stream = await CommandStream.open(transport, vm, command, wanted);
  const input = new InputFeed(stream);
  if (stdin !== undefined) void input.feed(stdin);
  let exit: ExecExit | undefined;
  try {
    for await (const event of stream.output()) {
      if (event.kind === 'exit') exit = event.exit;
      else await collected[event.kind].take(event.bytes);
    }
  } catch (error) {
    throw input.failure ?? error;
  } finally {
    stream.close(new SnowforkError('SF_EXEC_NOT_FOUND', 'the command is over'));
  }
  const output = (from: Collector) => (encoding === 'buffer' ? from.bytes() : from.text());
  return { ...exit!, stdout: output(collected.stdout), stderr: output(collected.stderr) };
}

/** Sends the input beside the output. If the input itself throws, the command is killed. */
class InputFeed {
  /** What the caller's own iterable threw. */
  failure: unknown;
  readonly #stream: CommandStream;

  constructor(stream: CommandStream) {
    this.#stream = stream;
  }

  /** Never rejects. */
  async feed(stdin: ExecStdin): Promise<void> {
    const chunks = typeof stdin === 'string' || stdin instanceof Uint8Array ? [stdin] : stdin;
    try {
      for await (const chunk of chunks) {
        if (this.#stream.signal.aborted) return;
        const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : chunk;
        if (bytes.length > 0) await this.#stream.writeStdin(bytes);
      }
      await this.#stream.closeStdin();
    } catch (error) {
      // Not all was read: the command ended first, as in `yes | head`. Its exit says the rest.
      if (error instanceof SnowforkError && error.code === 'SF_EXEC_NOT_FOUND') return;
      this.failure = error;
      this.#stream.close(new SnowforkError('SF_ABORTED', 'the input failed', { cause: error }));
    }
  }
}

class Collector {
  readonly #name: string;
  readonly #bytesMax: number;
  readonly #onOutput: OnOutput | undefined;
  readonly #chunks: Buffer[] = [];
  #sizeBytes = 0;

  constructor(name: string, bytesMax: number, onOutput: OnOutput | undefined) {
    this.#name = name;
    this.#bytesMax = bytesMax;
    this.#onOutput = onOutput;
  }

  async take(chunk: Buffer): Promise<void> {
    const kept = chunk.subarray(0, this.#bytesMax - this.#sizeBytes);
    if (kept.length < chunk.length && this.#onOutput === undefined) {
      throw new SnowforkError(
        'SF_VALUE_TOO_LARGE',
        `the command wrote more than ${this.#bytesMax} bytes to ${this.#name}: raise maxBuffer, ` +
          'or take the output by a callback or by spawn()',
        { details: { maxBuffer: this.#bytesMax } },
      );
    }
    if (kept.length > 0) this.#chunks.push(kept);
    this.#sizeBytes += kept.length;
    await this.#onOutput?.(chunk);
  }

  bytes(): Buffer {
    return Buffer.concat(this.#chunks);
  }

  text(): string {
    return this.bytes().toString('utf8');
  }
}
