// One connection of this process to `sf-guestd`, and the requests that are under way on it. It owns
// the socket and nothing of what is asked; `index.ts` calls it. After a fork the connection is in
// the clone too, as is every request under way: the agent answers each of them in both places.

import { setMaxListeners } from 'node:events';
import { connect, type Socket } from 'node:net';
import { SnowforkError } from '../api/errors.js';
import {
  decodeLines,
  encodeMessage,
  FrameReader,
  FrameType,
  GUEST_SOCKET_PATH,
  MESSAGE_BYTES_MAX,
  MessageAssembler,
} from '../api/port.js';
import { decodeValue, encodeValue } from '../api/value.js';
import type { ForkNotice } from './identity.js';

/** Requests of this process under way at once. */
const REQUESTS_MAX = 1024;
const WATCH_RETRY_MS = 1000;

interface PendingRequest {
  resolve(result: unknown): void;
  reject(error: SnowforkError): void;
}

export class GuestClient {
  readonly #pending = new Map<number, PendingRequest>();
  readonly #onForked: (notice: ForkNotice) => void;
  #socket: Socket | undefined;
  #watching = false;
  #lastId = 0;

  /** `onForked` is called when this VM was forked, before any answer that came with it is given. */
  constructor(onForked: (notice: ForkNotice) => void) {
    this.#onForked = onForked;
  }

  /** Keeps a connection from now on, so that `onForked` is also called when others fork. */
  watch(): void {
    this.#watching = true;
    if (this.#socket === undefined) this.#open().unref();
  }

  /**
   * Sends a request and resolves with its result as it came. Giving up leaves the request with the
   * agent; its answer is dropped.
   * @throws SnowforkError of the agent, or SF_AGENT_UNREACHABLE, SF_VALUE_TOO_LARGE, SF_ABORTED.
   */
  async call(method: string, params: object, signal?: AbortSignal): Promise<unknown> {
    if (signal?.aborted) throw abortedError(signal);
    // One signal may be for any number of calls.
    if (signal !== undefined) setMaxListeners(0, signal);
    if (this.#pending.size >= REQUESTS_MAX) {
      throw new SnowforkError('SF_BAD_REQUEST', `at most ${REQUESTS_MAX} requests at once`);
    }
    this.#lastId += 1;
    const id = this.#lastId;
    const request = encodeValue({ id, method, params }, MESSAGE_BYTES_MAX);
    const socket = this.#open();
    let onAbort: (() => void) | undefined;
    const answer = new Promise<unknown>((resolve, reject) => {
      this.#pending.set(id, { resolve, reject });
      onAbort = () => {
        this.#forget(id);
        reject(abortedError(signal!));
      };
      signal?.addEventListener('abort', onAbort, { once: true });
    });
    // The process lives as long as it waits for an answer, and may end when it does not.
    socket.ref();
    socket.write(encodeMessage(FrameType.request, 0, request));
    try {
      return await answer;
    } finally {
      if (onAbort !== undefined) signal?.removeEventListener('abort', onAbort);
    }
  }

  #open(): Socket {
    if (this.#socket !== undefined) return this.#socket;
    const path = process.env.SNOWFORK_GUEST_SOCKET ?? GUEST_SOCKET_PATH;
    const socket = connect(path);
    this.#socket = socket;
    const reader = new FrameReader();
    const assembler = new MessageAssembler();
    let error: SnowforkError | undefined;
    socket.on('data', (chunk) => {
      try {
        for (const frame of reader.push(chunk)) {
          if (frame.type === FrameType.forked) {
            this.#onForked(readNotice(frame.payload));
            continue;
          }
          if (frame.type !== FrameType.response) throw new Error(`a frame of type ${frame.type}`);
          const message = assembler.push(frame);
          if (message !== undefined) this.#settle(message);
        }
      } catch (cause) {
        error ??= notUnderstood(cause);
        socket.destroy();
      }
    });
    socket.on('error', (cause: NodeJS.ErrnoException) => {
      error ??= connectionError(cause, path);
    });
    socket.on('close', () => this.#closed(socket, error ?? lostError()));
    return socket;
  }

  #settle(message: Buffer): void {
    const answer = decodeValue(message, MESSAGE_BYTES_MAX);
    if (typeof answer !== 'object' || answer === null) throw new Error('an answer of no fields');
    const { id, result, error } = answer as { id?: unknown; result?: unknown; error?: unknown };
    const pending = typeof id === 'number' ? this.#pending.get(id) : undefined;
    // Nobody waits any more: the caller gave up.
    if (pending === undefined) return;
    this.#forget(id as number);
    if (error === undefined || error === null) pending.resolve(result);
    else pending.reject(SnowforkError.fromJSON(error));
  }

  #forget(id: number): void {
    this.#pending.delete(id);
    if (this.#pending.size === 0) this.#socket?.unref();
  }

  /** The next request opens a new connection. */
  #closed(socket: Socket, error: SnowforkError): void {
    if (this.#socket !== socket) return;
    this.#socket = undefined;
    const lost = [...this.#pending.values()];
    this.#pending.clear();
    for (const pending of lost) pending.reject(error);
    // Outside a VM there is nothing to watch.
    if (!this.#watching || (error.cause as NodeJS.ErrnoException)?.code === 'ENOENT') return;
    setTimeout(() => this.watch(), WATCH_RETRY_MS).unref();
  }
}

function readNotice(payload: Buffer): ForkNotice {
  const lines = decodeLines(payload);
  return { role: lines.get('role') === 'clone' ? 'clone' : 'parent', id: Number(lines.get('id')) };
}

function connectionError(cause: NodeJS.ErrnoException, path: string): SnowforkError {
  if (cause.code === 'ENOENT' || cause.code === 'ECONNREFUSED' || cause.code === 'ENOTDIR') {
    return new SnowforkError(
      'SF_AGENT_UNREACHABLE',
      `this program does not run inside a Snowfork VM, or its guest side does not run: nothing ` +
        `listens at ${path}. Start it with \`sf exec VM …\`, or from the image's own services.`,
      { cause },
    );
  }
  if (cause.code === 'EACCES' || cause.code === 'EPERM') {
    return new SnowforkError('SF_PERMISSION', `access to ${path} was refused`, { cause });
  }
  return new SnowforkError(
    'SF_AGENT_UNREACHABLE',
    `the connection to sf-guestd failed: ${cause.message}`,
    { cause },
  );
}

function lostError(): SnowforkError {
  return new SnowforkError(
    'SF_AGENT_UNREACHABLE',
    'sf-guestd closed the connection before it answered: the agent of the host, or sf-guestd, was ' +
      'started again. What was asked for may have happened; ask again.',
  );
}

function notUnderstood(cause: unknown): SnowforkError {
  const message = cause instanceof Error ? cause.message : String(cause);
  return new SnowforkError('SF_INTERNAL', `sf-guestd sent what is no answer: ${message}`, {
    cause,
  });
}

export function abortedError(signal: AbortSignal): SnowforkError {
  return new SnowforkError('SF_ABORTED', 'the caller gave up', { cause: signal.reason });
}
