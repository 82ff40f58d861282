// The pager's two ends of /dev/fuse: FuseSession takes requests, FuseReplies answers them. Knows the
// headers and nothing of what is asked. Each serving thread has one of both; the main thread and the
// store thread only write.
//
// A serving thread blocks in read(2) on purpose. Measured on 2 cores, a 4 KiB fault takes 29 to 44 µs
// on average when two threads read so, and 58 to 109 µs with outstanding `fs.read`s, whose every
// request crosses from libuv's pool to the event loop; each also costs twice the CPU time.

import fs from 'node:fs';
import { encodeReplyHeader, REPLY_HEADER_BYTES, type RequestHeader } from './fuse-wire.js';

/** The end of a request's identity, all that a reply repeats of it. */
export type RequestIdentity = Pick<RequestHeader, 'uniqueLow' | 'uniqueHigh'>;

/** Is handed the buffer that the next request will overwrite. */
export type RequestHandler = (request: Buffer, lengthBytes: number) => void;

const ENDED: ReadonlySet<string> = new Set(['ENODEV', 'ECONNABORTED']);
/** The request was taken back before it was read, or a signal came. */
const AGAIN: ReadonlySet<string> = new Set(['ENOENT', 'EINTR', 'EAGAIN']);

export class FuseSession {
  readonly #descriptor: number;
  readonly #handle: RequestHandler;
  readonly #request: Buffer;

  /** `request`: where each request is read to. */
  constructor(descriptor: number, request: Buffer, handle: RequestHandler) {
    this.#descriptor = descriptor;
    this.#request = request;
    this.#handle = handle;
  }

  /** Blocks the thread and returns when the mount has gone. */
  run(): void {
    for (;;) {
      const lengthBytes = this.#take();
      if (lengthBytes === 0) return;
      if (lengthBytes > 0) this.#handle(this.#request, lengthBytes);
    }
  }

  /** The next request's length, 0 when the mount has gone, -1 when there was none after all. */
  #take(): number {
    try {
      return fs.readSync(this.#descriptor, this.#request, 0, this.#request.length, null);
    } catch (error) {
      const code = errorCode(error);
      if (ENDED.has(code)) return 0;
      if (AGAIN.has(code)) return -1;
      throw error;
    }
  }
}

export class FuseReplies {
  readonly #descriptor: number;
  readonly #answered: ((request: RequestIdentity) => void) | undefined;
  readonly #header = Buffer.alloc(REPLY_HEADER_BYTES);
  readonly #headerAlone = [this.#header];
  /** Reused: a reply allocates nothing. */
  readonly #headerAndResult: Buffer[] = [this.#header, this.#header];

  /** `answered` is called after each answer. */
  constructor(descriptor: number, answered?: (request: RequestIdentity) => void) {
    this.#descriptor = descriptor;
    this.#answered = answered;
  }

  result(request: RequestIdentity, result: Buffer): void {
    encodeReplyHeader(this.#header, request, result.length);
    this.#headerAndResult[1] = result;
    this.#write(this.#headerAndResult);
    this.#answered?.(request);
  }

  /** An empty result: nothing to say, or the end of a file. */
  done(request: RequestIdentity): void {
    encodeReplyHeader(this.#header, request, 0);
    this.#write(this.#headerAlone);
    this.#answered?.(request);
  }

  /** `errno` is positive, of `os.constants.errno`. */
  error(request: RequestIdentity, errno: number): void {
    encodeReplyHeader(this.#header, request, 0, errno);
    this.#write(this.#headerAlone);
    this.#answered?.(request);
  }

  #write(parts: Buffer[]): void {
    try {
      fs.writevSync(this.#descriptor, parts);
    } catch (error) {
      // Nobody waits any more (ENOENT), or the mount has gone, which `run` sees too.
      const code = errorCode(error);
      if (code !== 'ENOENT' && !ENDED.has(code)) throw error;
    }
  }
}

/** The `code` of an error of a system call; the empty string of any other. */
export function errorCode(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : '';
}
