// `vm.connect()`: a byte stream to a server inside the guest, over the port of the VM, as clones have
// no network of their own. The guest's end is `sf-guest connect`, a command like any other, so a
// connection needs nothing that `exec` does not. Called by `vm.ts`.

import { Duplex } from 'node:stream';
import { SnowforkError } from '../api/errors.js';
import type { GuestProcess } from './guest-process.js';

/** What the guest's end writes to its standard error. */
const CONNECTED = 'connected\n';
/** What is kept of the guest's words when it can't connect. */
const WORDS_BYTES_MAX = 4096;

/**
 * Resolves when the guest's end says that it is connected.
 *
 * @throws SnowforkError SF_BAD_REQUEST with the guest's words when it is not.
 */
export async function connectThrough(
  relay: GuestProcess,
  target: number | string,
): Promise<GuestConnection> {
  let words = '';
  for await (const chunk of relay.stderr.iterator({ destroyOnReturn: false })) {
    words += String(chunk);
    if (words.endsWith(CONNECTED)) return new GuestConnection(relay);
    if (words.length > WORDS_BYTES_MAX) break;
  }
  // How it ended says more than that it did: a deadline, a VM that has gone.
  await relay.exit;
  const told = words.trim().replace(/^sf-guest: /, '');
  throw new SnowforkError('SF_BAD_REQUEST', `no connection to ${target} in the guest: ${told}`);
}

/**
 * A stream to a server in a guest. `end()` tells the server that no more will come; the stream is over
 * when the server has ended its own side. It goes where Node takes a socket, as in `createConnection`
 * of an `http.Agent`, and so has the methods of one that such callers use; as there are no packets
 * here, they have nothing to do.
 */
export class GuestConnection extends Duplex {
  readonly #relay: GuestProcess;

  /** @internal by `Vm.connect` only */
  constructor(relay: GuestProcess) {
    super({ allowHalfOpen: false });
    this.#relay = relay;
    relay.stderr.resume();
    relay.stdout.on('data', (chunk) => {
      if (!this.push(chunk)) relay.stdout.pause();
    });
    relay.stdout.on('end', () => void this.#end());
    relay.exit.catch((error: Error) => this.destroy(error));
  }

  /** An end that the server did not choose must not look like one. */
  async #end(): Promise<void> {
    const { code } = await this.#relay.exit;
    if (code === 0) this.push(null);
    else this.destroy(new SnowforkError('SF_EXEC_NOT_FOUND', 'its end in the guest was killed'));
  }

  override _read(): void {
    this.#relay.stdout.resume();
  }

  override _write(
    chunk: Buffer,
    _encoding: BufferEncoding,
    callback: (error?: Error | null) => void,
  ): void {
    this.#relay.stdin.write(chunk, callback);
  }

  override _writev(chunks: { chunk: Buffer }[], callback: (error?: Error | null) => void): void {
    this.#relay.stdin.write(Buffer.concat(chunks.map(({ chunk }) => chunk)), callback);
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#relay.stdin.end(() => callback());
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    void this.#relay[Symbol.asyncDispose]().then(() => callback(error));
  }

  setKeepAlive(): this {
    return this;
  }

  setNoDelay(): this {
    return this;
  }

  setTimeout(): this {
    return this;
  }

  ref(): this {
    return this;
  }

  unref(): this {
    return this;
  }
}
