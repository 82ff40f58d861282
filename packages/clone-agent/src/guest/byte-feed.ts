// The output of something that never stops talking: the last bytes are kept, listeners get the rest
// as it comes. Bounded by bytes, so a guest that floods its console costs no more than one that is
// quiet. Consoles and logs of VMs are feeds.

import type { ByteFeed } from '../api/service.js';

type Listener = (chunk: Buffer | undefined) => void;

export class RingFeed implements ByteFeed {
  #bytesMax: number;
  readonly #listeners = new Set<Listener>();
  #chunks: Buffer[] = [];
  #bytes = 0;
  #ended = false;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  get history(): Buffer {
    return Buffer.concat(this.#chunks).subarray(-this.#bytesMax);
  }

  subscribe(listener: Listener): () => void {
    if (this.#ended) listener(undefined);
    else this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  push(chunk: Buffer): void {
    if (this.#ended || chunk.length === 0) return;
    this.#chunks.push(ownBytes(chunk));
    this.#bytes += chunk.length;
    while (this.#chunks.length > 1 && this.#bytes - this.#chunks[0]!.length >= this.#bytesMax) {
      this.#bytes -= this.#chunks.shift()!.length;
    }
    if (this.#chunks.length > CHUNKS_MAX) {
      this.#chunks = [this.history];
      this.#bytes = this.#chunks[0]!.length;
    }
    for (const listener of this.#listeners) listener(chunk);
  }

  /** Keeps no more than that from now on. */
  shrink(bytesMax: number): void {
    if (bytesMax >= this.#bytesMax) return;
    this.#bytesMax = bytesMax;
    this.#chunks = [Buffer.from(new Uint8Array(this.history).buffer)];
    this.#bytes = this.#chunks[0]!.length;
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    for (const listener of this.#listeners) listener(undefined);
    this.#listeners.clear();
  }
}

/** Many tiny chunks are put together, so that the overhead per chunk is bounded too. */
const CHUNKS_MAX = 1024;

/** The bytes, without what they were read with: a few bytes must not keep a large buffer. */
export function ownBytes(bytes: Buffer): Buffer {
  return bytes.buffer.byteLength > 2 * bytes.length
    ? Buffer.from(new Uint8Array(bytes).buffer)
    : bytes;
}
