// One JSON object a line over a unix socket, as QMP speaks it: commands with ids and deadlines, their
// answers in any order, events in between. Knows the lines and nothing of what they ask for. `qmp.ts`
// speaks to QEMU through it, the agent to its pager.
//
//   → {"execute": NAME, "arguments": {…}, "id": N}
//   ← {"return": …, "id": N}   or   {"error": {"desc": TEXT, …}, "id": N}
//   ← {"event": NAME, "data": {…}, "timestamp": {"seconds": S, "microseconds": U}}

import { setMaxListeners } from 'node:events';
import net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { type ErrorCode, SnowforkError } from '@snowfork/sdk/api';

/** A peer that sends a longer line is broken; QEMU's longest answer (its schema) has 0.2 MB. */
export const LINE_BYTES_MAX = 4 * 1024 * 1024;
/** Commands that may wait for their answer at a time. */
export const COMMANDS_PENDING_MAX = 1024;
export const COMMAND_TIMEOUT_MS = 30_000;
const CONNECT_RETRY_MS = 3;

export interface LineEvent {
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
  /** When the peer says that it happened, in milliseconds since the epoch; 0 when it does not say. */
  readonly timeMs: number;
}

export interface LineClientOptions {
  /** Who is at the other end, for errors. */
  readonly peer: string;
  /** The code of an error that the peer answers, and of a lost connection. */
  readonly errorCode: ErrorCode;
  /** Recognises lines that are neither answer nor event, such as a greeting. */
  readonly accepts?: (line: Readonly<Record<string, unknown>>) => boolean;
  readonly lineBytesMax?: number;
}

export interface WaitOptions {
  readonly timeoutMs?: number;
  /** An abort with a SnowforkError as its reason ends the wait with that error. */
  readonly signal?: AbortSignal | undefined;
}

type EventListener = (event: LineEvent) => void;

interface Pending {
  settle(error: Error | undefined, value: unknown): void;
}

export class LineClient {
  readonly #socket: net.Socket;
  readonly #options: LineClientOptions;
  readonly #pending = new Map<number, Pending>();
  readonly #listeners = new Map<string, Set<EventListener>>();
  readonly #lost = new AbortController();
  #nextId = 1;
  #partial: Buffer[] = [];
  #partialBytes = 0;

  /** Takes over a connected socket. */
  constructor(socket: net.Socket, options: LineClientOptions) {
    this.#socket = socket;
    this.#options = options;
    socket.on('data', (chunk) => this.#receive(chunk));
    socket.on('error', (cause) => this.#fail('the connection broke', cause));
    socket.on('close', () => this.#fail('the connection was closed'));
  }

  /** Connects as soon as somebody listens at `socketPath`. @throws SnowforkError */
  static async connect(
    socketPath: string,
    options: LineClientOptions & Required<Pick<WaitOptions, 'timeoutMs'>> & WaitOptions,
  ): Promise<LineClient> {
    const deadline = performance.now() + options.timeoutMs;
    for (;;) {
      const socket = await tryConnect(socketPath);
      if (socket instanceof net.Socket) {
        if (!options.signal?.aborted) return new LineClient(socket, options);
        socket.destroy();
      }
      if (options.signal?.aborted) throw abortError(options.signal);
      if (performance.now() > deadline) {
        const words = `${options.peer} does not listen at ${socketPath}`;
        throw new SnowforkError('SF_TIMEOUT', words, { cause: socket });
      }
      await delay(CONNECT_RETRY_MS);
    }
  }

  /** Aborted, with the error as its reason, when the connection has ended. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /**
   * Sends at once, and in the order of the calls: a caller who does not await the first answer before
   * the next call saves a round trip.
   * @throws SnowforkError with the peer's words; SF_TIMEOUT; SF_ABORTED
   */
  execute(
    command: string,
    parameters?: Readonly<Record<string, unknown>>,
    wait: WaitOptions = {},
  ): Promise<unknown> {
    if (this.lost.aborted) return Promise.reject(this.lost.reason);
    if (wait.signal?.aborted) return Promise.reject(abortError(wait.signal));
    if (this.#pending.size >= COMMANDS_PENDING_MAX) {
      return Promise.reject(
        this.#error(`${command}: ${COMMANDS_PENDING_MAX} commands wait already`),
      );
    }
    const id = this.#nextId++;
    const answer = this.#waiting(id, command, wait);
    this.#batch();
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: parameters, id })}\n`);
    return answer;
  }

  /** Calls back for each event of that name. Returns the unsubscriber. */
  on(name: string, listener: EventListener): () => void {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /** The next event of that name for which `accepts` holds; subscribe before causing it. */
  waitEvent(
    name: string,
    accepts: (event: LineEvent) => boolean = () => true,
    wait: WaitOptions = {},
  ): Promise<LineEvent> {
    return new Promise((resolve, reject) => {
      const finish = () => {
        unsubscribe();
        stopWaiting();
      };
      const unsubscribe = this.on(name, (event) => {
        if (!accepts(event)) return;
        finish();
        resolve(event);
      });
      const stopWaiting = this.#limit(`event ${name}`, wait, (error) => {
        finish();
        reject(error);
      });
    });
  }

  /** Ends the connection; what waits is rejected. */
  close(): void {
    this.#fail('the connection was closed by us');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  #waiting(id: number, command: string, wait: WaitOptions): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const settle = (error: Error | undefined, value: unknown) => {
        this.#pending.delete(id);
        stopWaiting();
        if (error === undefined) resolve(value);
        else
          reject(error instanceof PeerError ? this.#error(`${command}: ${error.message}`) : error);
      };
      this.#pending.set(id, { settle });
      const stopWaiting = this.#limit(command, wait, (error) => settle(error, undefined));
    });
  }

  /** Calls `fail` when the deadline passes, the caller aborts or the connection ends. */
  #limit(what: string, wait: WaitOptions, fail: (error: Error) => void): () => void {
    const timeoutMs = wait.timeoutMs ?? COMMAND_TIMEOUT_MS;
    const late = () => {
      const words = `${this.#options.peer} did not answer within ${timeoutMs} ms: ${what}`;
      fail(new SnowforkError('SF_TIMEOUT', words));
    };
    const { signal } = wait;
    const { lost } = this;
    const onAbort = () => fail(abortError(signal!));
    const onLost = () => fail(lost.reason as Error);
    const timer = setTimeout(late, timeoutMs);
    // Many waits may share a signal, and each takes its listener back: no leak to warn of.
    setMaxListeners(0, lost, ...(signal ? [signal] : []));
    signal?.addEventListener('abort', onAbort, { once: true });
    lost.addEventListener('abort', onLost, { once: true });
    const stop = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      lost.removeEventListener('abort', onLost);
    };
    // Deferred, as the caller does not hold `stop` yet.
    if (signal?.aborted || lost.aborted) queueMicrotask(lost.aborted ? onLost : onAbort);
    return stop;
  }

  /** Commands of one turn of the event loop leave in one write. */
  #batch(): void {
    if (this.#socket.writableCorked > 0) return;
    this.#socket.cork();
    process.nextTick(() => this.#socket.uncork());
  }

  #receive(chunk: Buffer): void {
    let rest = chunk;
    for (let end = rest.indexOf(0x0a); end >= 0; end = rest.indexOf(0x0a)) {
      const line = Buffer.concat([...this.#partial, rest.subarray(0, end)]);
      this.#partial = [];
      this.#partialBytes = 0;
      rest = rest.subarray(end + 1);
      this.#takeLine(line);
      if (this.lost.aborted) return;
    }
    if (rest.length === 0) return;
    this.#partial.push(rest);
    this.#partialBytes += rest.length;
    const lineBytesMax = this.#options.lineBytesMax ?? LINE_BYTES_MAX;
    if (this.#partialBytes > lineBytesMax)
      this.#fail(`a line is longer than ${lineBytesMax} bytes`);
  }

  #takeLine(bytes: Buffer): void {
    if (bytes.length > (this.#options.lineBytesMax ?? LINE_BYTES_MAX)) {
      this.#fail('a line is too long');
      return;
    }
    const line = parseObject(bytes.toString());
    if (line === undefined) {
      this.#fail(`a line is no JSON object: ${bytes.toString('latin1', 0, 80)}`);
    } else if (typeof line.event === 'string') {
      this.#takeEvent(line.event, line);
    } else if (typeof line.id === 'number') {
      // Who asked may have given up: an answer that nobody awaits is dropped.
      const failure = line.error === undefined ? undefined : new PeerError(describe(line.error));
      this.#pending.get(line.id)?.settle(failure, line.return);
    } else if (!this.#options.accepts?.(line)) {
      this.#fail(`a line is neither answer nor event: ${bytes.toString('latin1', 0, 80)}`);
    }
  }

  #takeEvent(name: string, line: Record<string, unknown>): void {
    const time = asObject(line.timestamp);
    const timeMs = Number(time.seconds ?? 0) * 1000 + Number(time.microseconds ?? 0) / 1000;
    const event = { name, data: asObject(line.data), timeMs };
    for (const listener of [...(this.#listeners.get(name) ?? [])]) listener(event);
  }

  #fail(words: string, cause?: unknown): void {
    if (this.lost.aborted) return;
    this.#lost.abort(this.#error(words, cause));
    this.#listeners.clear();
    this.#socket.destroy();
  }

  #error(words: string, cause?: unknown): SnowforkError {
    const { errorCode, peer } = this.#options;
    return new SnowforkError(errorCode, `${peer}: ${words}`, { cause });
  }
}

/** What the peer answered; becomes a SnowforkError that names the command. */
class PeerError extends Error {}

/** The error for a wait that `signal` ended. */
export function abortError(signal: AbortSignal): SnowforkError {
  if (signal.reason instanceof SnowforkError) return signal.reason;
  return new SnowforkError('SF_ABORTED', 'the caller gave up', { cause: signal.reason });
}

function tryConnect(socketPath: string): Promise<net.Socket | Error> {
  return new Promise((resolve) => {
    const socket = net.connect(socketPath);
    socket.once('error', resolve);
    socket.once('connect', () => {
      socket.off('error', resolve);
      resolve(socket);
    });
  });
}

function describe(error: unknown): string {
  const { desc } = asObject(error);
  return typeof desc === 'string' ? desc : JSON.stringify(error);
}

function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
    return isObject ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

function asObject(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}
