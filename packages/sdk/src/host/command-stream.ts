// One command in a guest, as the API has it: a stream of output that ends with the exit, and
// requests for its input and signals. Closing the stream kills the command. Called by `exec` and
// `spawn`.

import { constants } from 'node:os';
import { SnowforkError } from '../api/errors.js';
import { type ExecExit, execExitSchema, execStartedSchema } from '../api/schemas.js';
import type { StreamEvent } from './events.js';
import { apiPath, type Transport } from './transport.js';
import { type Deadline, startDeadline, type WaitOptions } from './waits.js';

/** An argument list, or a line for `/bin/sh -c`. */
export type Command = string | readonly string[];

export interface CommandOptions extends WaitOptions {
  /** Working folder in the guest. */
  cwd?: string | undefined;
  /** Added to the environment of the guest side. */
  env?: Record<string, string> | undefined;
}

export type CommandEvent =
  | { readonly kind: 'stdout' | 'stderr'; readonly bytes: Buffer }
  | { readonly kind: 'exit'; readonly exit: ExecExit };

/** A signal's name or number, as `kill(2)` of Linux has them. */
export type SignalName = NodeJS.Signals | number;

export class CommandStream {
  readonly pid: number;
  readonly #transport: Transport;
  readonly #path: readonly (string | number)[];
  readonly #events: AsyncGenerator<StreamEvent>;
  readonly #deadline: Deadline;

  private constructor(options: {
    transport: Transport;
    path: readonly (string | number)[];
    pid: number;
    events: AsyncGenerator<StreamEvent>;
    deadline: Deadline;
  }) {
    this.pid = options.pid;
    this.#transport = options.transport;
    this.#path = options.path;
    this.#events = options.events;
    this.#deadline = options.deadline;
  }

  /** Resolves when the command has been started. */
  static async open(
    transport: Transport,
    vm: string,
    command: Command,
    { cwd, env, stdin, signal, timeoutMs }: CommandOptions & { stdin: boolean },
  ): Promise<CommandStream> {
    const deadline = startDeadline({ signal, timeoutMs }, 'the command');
    try {
      const path = apiPath('vms', vm, 'exec');
      const words = typeof command === 'string' ? ['/bin/sh', '-c', command] : command;
      const json = { command: words, cwd, env, stdin };
      const request = { method: 'POST', path, json, signal: deadline.signal } as const;
      const events = await transport.stream(request, ['exit']);
      const first = await events.next();
      const { exec, pid } = startedOf(first.done ? undefined : first.value);
      return new CommandStream({
        transport,
        path: ['vms', vm, 'execs', exec],
        pid,
        events,
        deadline,
      });
    } catch (error) {
      deadline.stop();
      throw error;
    }
  }

  /** Aborts when the command is over for its caller: deadline, abort, `close`. */
  get signal(): AbortSignal {
    return this.#deadline.signal;
  }

  /** Output as it comes, `exit` last. To be iterated once. */
  async *output(): AsyncGenerator<CommandEvent, void, undefined> {
    try {
      for await (const { event, data } of this.#events) {
        if (event === 'stdout' || event === 'stderr') {
          yield { kind: event, bytes: Buffer.from(data, 'base64') };
        } else if (event === 'exit') {
          yield { kind: 'exit', exit: execExitSchema.parse(JSON.parse(data)) };
        }
      }
    } finally {
      this.#deadline.stop();
    }
  }

  /** Resolves when the guest has taken all of it. */
  async writeStdin(bytes: Uint8Array): Promise<void> {
    const path = apiPath(...this.#path, 'stdin');
    await this.#transport.send({ method: 'POST', path, bytes, signal: this.signal });
  }

  async closeStdin(): Promise<void> {
    const path = apiPath(...this.#path, 'stdin');
    await this.#transport.send({ method: 'DELETE', path, signal: this.signal });
  }

  async kill(signal: SignalName): Promise<void> {
    const path = apiPath(...this.#path, 'signal');
    await this.#transport.send({ method: 'POST', path, json: { signal: signalNumber(signal) } });
  }

  /** Kills the command if it still runs; waits for its output reject with `reason`. */
  close(reason: SnowforkError): void {
    this.#deadline.stop();
    this.#deadline.abort(reason);
  }
}

function startedOf(event: StreamEvent | undefined): { exec: number; pid: number } {
  if (event?.event === 'started') return execStartedSchema.parse(JSON.parse(event.data));
  const message = `the agent did not say that the command was started, but ${event?.event}`;
  throw new SnowforkError('SF_INTERNAL', message);
}

function signalNumber(signal: SignalName): number {
  const number = typeof signal === 'number' ? signal : constants.signals[signal];
  if (Number.isInteger(number) && number >= 1 && number <= 64) return number;
  throw new SnowforkError('SF_BAD_REQUEST', `no signal is called ${signal}`);
}
