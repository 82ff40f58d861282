// `vm.spawn()`: a command in the guest as streams of Node. Called by `vm.ts`.

import { Readable, Writable } from 'node:stream';
import { SnowforkError } from '../api/errors.js';
import type { ExecExit } from '../api/schemas.js';
import type { CommandOptions, CommandStream, SignalName } from './command-stream.js';

/** What each of stdout and stderr holds before the command has to wait for its reader. */
const OUTPUT_BUFFER_BYTES = 1024 * 1024;
const INPUT_BUFFER_BYTES = 256 * 1024;

export interface SpawnOptions extends CommandOptions {
  /**
   * Whether standard input stays open for `stdin`; true when not given, else the input is empty.
   */
  stdin?: boolean | undefined;
}

/**
 * A running command. Read both `stdout` and `stderr`, or `resume()` what you don't want: as with
 * pipes, a command whose output nobody takes stands still after 1 MiB, and its `exit` waits too.
 */
export class GuestProcess {
  /** In the guest. */
  readonly pid: number;
  /**
   * Async iterable of Buffers. Ends with the command; is destroyed with the error if that fails.
   */
  readonly stdout: Readable;
  readonly stderr: Readable;
  /**
   * `end()` closes the command's input. A write's callback comes when the guest has taken it;
   * writing to a command that has ended fails with SF_EXEC_NOT_FOUND, which nobody has to handle.
   */
  readonly stdin: Writable;
  /**
   * How the command ended, after all its output was taken. Rejects with SF_TIMEOUT, SF_ABORTED,
   * SF_VM_GONE and the like; nobody has to handle it.
   */
  readonly exit: Promise<ExecExit>;
  readonly #stream: CommandStream;

  /** @internal by `Vm.spawn` only */
  constructor(stream: CommandStream) {
    this.#stream = stream;
    this.pid = stream.pid;
    const stdout = new OutputPipe();
    const stderr = new OutputPipe();
    this.stdout = stdout.readable;
    this.stderr = stderr.readable;
    this.stdin = inputOf(stream);
    this.exit = pump(stream, { stdout, stderr }, this.stdin);
    this.exit.catch(() => {});
  }

  /**
   * Sends a signal, SIGTERM when not given. @throws SnowforkError SF_EXEC_NOT_FOUND once it has
   * ended.
   */
  async kill(signal: SignalName = 'SIGTERM'): Promise<void> {
    await this.#stream.kill(signal);
  }

  /** Kills the command if it still runs, and drops what was not read. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stream.close(new SnowforkError('SF_ABORTED', 'the command was disposed of'));
    await this.exit.catch(() => {});
  }
}

async function pump(
  stream: CommandStream,
  pipes: { readonly stdout: OutputPipe; readonly stderr: OutputPipe },
  stdin: Writable,
): Promise<ExecExit> {
  let exit: ExecExit | undefined;
  try {
    for await (const event of stream.output()) {
      if (event.kind === 'exit') exit = event.exit;
      else await pipes[event.kind].push(event.bytes, stream.signal);
    }
  } catch (error) {
    pipes.stdout.readable.destroy(error as Error);
    pipes.stderr.readable.destroy(error as Error);
    stdin.destroy();
    throw error;
  }
  pipes.stdout.readable.push(null);
  pipes.stderr.readable.push(null);
  stdin.destroy();
  return exit!;
}

/** A Readable whose writer waits while it is full. */
class OutputPipe {
  readonly readable: Readable;
  #wake: (() => void) | undefined;

  constructor() {
    const wake = () => this.#wake?.();
    this.readable = new Readable({ highWaterMark: OUTPUT_BUFFER_BYTES, read: wake });
    this.readable.on('close', wake);
    // `exit` carries the same error; a stream that nobody looks at must not end the process.
    this.readable.on('error', () => {});
  }

  async push(bytes: Buffer, signal: AbortSignal): Promise<void> {
    // Destroyed by a reader that has seen enough: the rest is dropped.
    if (this.readable.destroyed || this.readable.push(bytes) || signal.aborted) return;
    await new Promise<void>((resolve) => {
      const done = () => {
        signal.removeEventListener('abort', done);
        resolve();
      };
      this.#wake = done;
      signal.addEventListener('abort', done, { once: true });
    });
  }
}

function inputOf(stream: CommandStream): Writable {
  const send = (bytes: Buffer, callback: (error?: Error | null) => void) =>
    stream.writeStdin(bytes).then(() => callback(), callback);
  const stdin = new Writable({
    highWaterMark: INPUT_BUFFER_BYTES,
    write: (chunk: Buffer, _encoding, callback) => void send(chunk, callback),
    // What was written while a request was under way goes as one.
    writev: (chunks, callback) =>
      void send(Buffer.concat(chunks.map(({ chunk }) => chunk as Buffer)), callback),
    final: (callback) => void stream.closeStdin().then(() => callback(), callback),
  });
  stdin.on('error', () => {});
  return stdin;
}
