// Frames between agents: a length and a MessagePack value, on a stream. Bounded both ways; what is no
// frame ends the connection. Knows no methods.
//
//   +------------------+---------------------+
//   | length, u32 (LE) | MessagePack, length |
//   +------------------+---------------------+

import type { Duplex } from 'node:stream';
import { SnowforkError } from '@snowfork/sdk/api';
import { Packr } from 'msgpackr';

/** A descriptor with its device state and page maps. */
export const FRAME_BYTES_MAX = 64 * 1024 * 1024;
const LENGTH_BYTES = 4;

const packr = new Packr({ useRecords: false, mapsAsObjects: true });

export function encodeFrame(value: unknown): Buffer {
  const body = packr.pack(value);
  if (body.length > FRAME_BYTES_MAX) {
    throw new SnowforkError('SF_VALUE_TOO_LARGE', `a message of ${body.length} bytes to a host`);
  }
  const frame = Buffer.allocUnsafe(LENGTH_BYTES + body.length);
  frame.writeUInt32LE(body.length, 0);
  body.copy(frame, LENGTH_BYTES);
  return frame;
}

/** Takes frames out of a stream's bytes. */
export class FrameReader {
  readonly #bytesMax: number;
  #chunks: Buffer[] = [];
  #length = 0;
  /** Bytes without which nothing can be said of the next frame. */
  #needed = LENGTH_BYTES;

  constructor(bytesMax = FRAME_BYTES_MAX) {
    this.#bytesMax = bytesMax;
  }

  push(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#length += chunk.length;
  }

  /** The next value, or undefined: more must come. @throws Error when it is no frame. */
  next(): { readonly value: unknown } | undefined {
    if (this.#length < this.#needed) return undefined;
    const bytes = this.#joined();
    const bodyBytes = bytes.readUInt32LE(0);
    if (bodyBytes > this.#bytesMax) throw new Error(`a frame of ${bodyBytes} bytes`);
    const end = LENGTH_BYTES + bodyBytes;
    this.#needed = end;
    if (bytes.length < end) return undefined;
    this.#needed = LENGTH_BYTES;
    this.#set(bytes.subarray(end));
    return { value: packr.unpack(bytes.subarray(LENGTH_BYTES, end)) };
  }

  /** What came after the last frame that was taken. */
  rest(): Buffer {
    const rest = this.#joined();
    this.#set(Buffer.alloc(0));
    return rest;
  }

  #joined(): Buffer {
    const [first] = this.#chunks;
    if (this.#chunks.length === 1 && first !== undefined) return first;
    const joined = Buffer.concat(this.#chunks);
    this.#set(joined);
    return joined;
  }

  #set(bytes: Buffer): void {
    this.#chunks = bytes.length === 0 ? [] : [bytes];
    this.#length = bytes.length;
  }
}

/** The first frame of a stream, which must come in time; the stream is paused after it. */
export function firstFrame(
  stream: Duplex,
  { bytesMax, timeoutMs }: { bytesMax: number; timeoutMs: number },
): Promise<unknown> {
  const reader = new FrameReader(bytesMax);
  return new Promise((resolve, reject) => {
    const settle = (end: () => void) => {
      clearTimeout(timer);
      stream.off('data', onData);
      stream.off('close', onClose);
      stream.off('error', onClose);
      end();
    };
    const onData = (chunk: Buffer) => {
      try {
        reader.push(chunk);
        const frame = reader.next();
        if (frame === undefined) return;
        stream.pause();
        const rest = reader.rest();
        settle(() => {
          if (rest.length > 0) stream.unshift(rest);
          resolve(frame.value);
        });
      } catch (error) {
        settle(() => reject(error));
      }
    };
    const onClose = (error?: Error | boolean) =>
      settle(() => reject(error instanceof Error ? error : new Error('the connection was closed')));
    const timer = setTimeout(
      () => settle(() => reject(new Error('nothing was said in time'))),
      timeoutMs,
    );
    stream.on('data', onData);
    stream.on('close', onClose);
    stream.on('error', onClose);
  });
}
