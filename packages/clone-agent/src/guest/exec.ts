// A command that the agent runs in a guest: its output as an async iterable with backpressure that
// reaches the command (credits), its input likewise. The channel feeds it frames and carries what it
// sends; the HTTP server consumes it.

import {
  decodeLines,
  EXEC_WINDOW_BYTES,
  type ExecRequest,
  encodeFrame,
  encodeLines,
  FLAG_END,
  FRAME_PAYLOAD_BYTES_MAX,
  type Frame,
  FrameError,
  FrameType,
  SnowforkError,
} from '@snowfork/sdk/api';
import type { ExecEvent, ExecSession } from '../api/service.js';
import { ownBytes } from './byte-feed.js';

/** How a session reaches the port. */
type Send = (frame: Buffer) => void;

/** @throws SnowforkError SF_BAD_REQUEST when a string holds a NUL or all is too long for one frame. */
export function encodeExec(stream: number, request: ExecRequest): Buffer {
  const environment = Object.entries(request.env ?? {}).map(([key, value]) => `${key}=${value}`);
  const command = request.command;
  const strings = [request.cwd ?? '', String(command.length), ...command, ...environment];
  if (strings.some((text) => text.includes('\0'))) {
    throw new SnowforkError(
      'SF_BAD_REQUEST',
      'a command and its environment cannot hold NUL bytes',
    );
  }
  const payload = Buffer.from(strings.map((text) => `${text}\0`).join(''));
  if (payload.length > FRAME_PAYLOAD_BYTES_MAX) {
    throw new SnowforkError(
      'SF_BAD_REQUEST',
      `command and environment take ${payload.length} bytes, at most ${FRAME_PAYLOAD_BYTES_MAX} ` +
        'are allowed: write a file into the guest and run that',
    );
  }
  return encodeFrame(FrameType.exec, stream, payload);
}

export class GuestExec implements ExecSession {
  readonly exec: number;
  readonly #send: Send;
  #pid = 0;
  readonly #queue: ExecEvent[] = [];
  #queuedBytes = 0;
  #wakeReader: (() => void) | undefined;
  #stdinRoomBytes = EXEC_WINDOW_BYTES;
  #wakeWriter: (() => void) | undefined;
  #failure: SnowforkError | undefined;
  #ended = false;
  readonly #started: PromiseWithResolversOf<void>;

  constructor(exec: number, send: Send) {
    this.exec = exec;
    this.#send = send;
    this.#started = withResolvers<void>();
    this.#started.promise.catch(() => {});
  }

  get pid(): number {
    return this.#pid;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** Resolves when the guest has started the command, rejects when it could not. */
  started(): Promise<void> {
    return this.#started.promise;
  }

  async *events(): AsyncIterable<ExecEvent> {
    for (;;) {
      const event = this.#queue.shift();
      if (event === undefined) {
        if (this.#failure !== undefined) throw this.#failure;
        await new Promise<void>((resolve) => {
          this.#wakeReader = resolve;
        });
        continue;
      }
      yield event;
      if (event.kind === 'exit') return;
      this.#queuedBytes -= event.bytes.length;
      this.#credit(event.bytes.length);
    }
  }

  async writeStdin(bytes: Uint8Array): Promise<void> {
    for (let offset = 0; offset < bytes.length; ) {
      while (this.#stdinRoomBytes === 0 && !this.#ended) {
        await new Promise<void>((resolve) => {
          this.#wakeWriter = resolve;
        });
      }
      if (this.#ended) throw new SnowforkError('SF_EXEC_NOT_FOUND', 'the command has ended');
      const room = Math.min(this.#stdinRoomBytes, FRAME_PAYLOAD_BYTES_MAX);
      const part = bytes.subarray(offset, offset + room);
      this.#stdinRoomBytes -= part.length;
      offset += part.length;
      this.#send(encodeFrame(FrameType.stdin, this.exec, part));
    }
  }

  closeStdin(): void {
    if (!this.#ended) this.#send(encodeFrame(FrameType.stdin, this.exec, undefined, FLAG_END));
  }

  signal(signal: number): void {
    if (!this.#ended) this.#send(encodeFrame(FrameType.signal, this.exec, encodeLines({ signal })));
  }

  /** A frame of this command's stream came from the guest. @throws FrameError when it cheats. */
  take(frame: Frame): void {
    if (frame.type === FrameType.started) {
      this.#pid = wholeNumber(decodeLines(frame.payload).get('pid')) ?? 0;
      this.#started.resolve();
    } else if (frame.type === FrameType.stdout || frame.type === FrameType.stderr) {
      if (frame.payload.length === 0) return;
      const kind = frame.type === FrameType.stdout ? 'stdout' : 'stderr';
      this.#queuedBytes += frame.payload.length;
      if (this.#queuedBytes > EXEC_WINDOW_BYTES) throw new FrameError('output beyond its window');
      this.#push({ kind, bytes: ownBytes(frame.payload) });
    } else if (frame.type === FrameType.credit) {
      const bytes = Number(decodeLines(frame.payload).get('bytes'));
      if (!Number.isSafeInteger(bytes) || bytes < 0) throw new FrameError('credit is no number');
      this.#stdinRoomBytes = Math.min(this.#stdinRoomBytes + bytes, EXEC_WINDOW_BYTES);
      this.#wakeWriter?.();
    } else if (frame.type === FrameType.exit) {
      this.#exit(decodeLines(frame.payload));
    }
  }

  /** The VM has gone, or the guest side was started anew: nothing more will come. */
  fail(failure: SnowforkError): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#failure = failure;
    this.#started.reject(failure);
    this.#wakeReader?.();
    this.#wakeWriter?.();
  }

  #exit(fields: Map<string, string>): void {
    const error = fields.get('error');
    if (error !== undefined) {
      this.fail(
        new SnowforkError('SF_BAD_REQUEST', `the guest could not run the command: ${error}`),
      );
      return;
    }
    const code = wholeNumber(fields.get('code'));
    const signal = wholeNumber(fields.get('signal'));
    this.#started.resolve();
    this.#push({ kind: 'exit', exit: { code, signal } });
    this.#ended = true;
    this.#wakeWriter?.();
  }

  #push(event: ExecEvent): void {
    this.#queue.push(event);
    if (this.#queue.length > EVENTS_QUEUED_MAX) this.#compact();
    this.#wakeReader?.();
  }

  /** What a command writes byte by byte, and nobody reads yet, must not cost more than its bytes. */
  #compact(): void {
    const joined = (['stdout', 'stderr'] as const).flatMap((kind) => {
      const chunks = this.#queue.flatMap((event) => (event.kind === kind ? [event.bytes] : []));
      return chunks.length === 0 ? [] : [{ kind, bytes: Buffer.concat(chunks) }];
    });
    const exits = this.#queue.filter(({ kind }) => kind === 'exit');
    this.#queue.splice(0, this.#queue.length, ...joined, ...exits);
  }

  #credit(bytes: number): void {
    if (this.#ended) return;
    this.#send(encodeFrame(FrameType.credit, this.exec, encodeLines({ bytes })));
  }
}

/** Null where the guest wrote something else. */
function wholeNumber(text: string | undefined): number | null {
  const isNumber = text !== undefined && /^-?\d{1,10}$/.test(text);
  return isNumber ? Number(text) : null;
}

const EVENTS_QUEUED_MAX = 1024;

interface PromiseWithResolversOf<T> {
  readonly promise: Promise<T>;
  readonly resolve: (value: T) => void;
  readonly reject: (reason: unknown) => void;
}

/** `Promise.withResolvers`, which Node 20 lacks. */
export function withResolvers<T>(): PromiseWithResolversOf<T> {
  let resolve!: (value: T) => void;
  let reject!: (reason: unknown) => void;
  const promise = new Promise<T>((resolveIt, rejectIt) => {
    resolve = resolveIt;
    reject = rejectIt;
  });
  return { promise, resolve, reject };
}
