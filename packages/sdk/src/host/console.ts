// Consoles and logs of a VM: bytes kept so far, then those to come. Called by `vm.ts`.

import { z } from 'zod';
import { SnowforkError } from '../api/errors.js';
import type { StreamEvent } from './events.js';
import { apiPath, type Transport } from './transport.js';
import { startDeadline } from './waits.js';

export interface ConsoleSession {
  /** The last output of the guest, then what comes, until the VM ends. To be iterated once. */
  readonly output: AsyncIterable<Buffer>;
  /** Types into the console. */
  write(bytes: string | Uint8Array): Promise<void>;
  /** Ends `output`. */
  close(): void;
  [Symbol.asyncDispose](): Promise<void>;
}

const droppedSchema = z.object({ bytes: z.number() });

export async function openConsole(
  transport: Transport,
  vm: string,
  signal: AbortSignal | undefined,
): Promise<ConsoleSession> {
  const path = apiPath('vms', vm, 'console');
  const deadline = startDeadline({ signal }, 'the console');
  const closed = new SnowforkError('SF_ABORTED', 'the console was closed');
  const request = { method: 'GET', path, signal: deadline.signal } as const;
  const events = await transport.stream(request, ['end']);
  const close = () => {
    deadline.stop();
    deadline.abort(closed);
  };
  const output = async function* () {
    try {
      yield* feedBytes(events);
    } catch (error) {
      if (error !== closed) throw error;
    } finally {
      deadline.stop();
    }
  };
  return {
    output: output(),
    write: (bytes) => transport.send({ method: 'POST', path, bytes: Buffer.from(bytes), signal }),
    close,
    [Symbol.asyncDispose]: async () => close(),
  };
}

export async function* readLogs(
  transport: Transport,
  vm: string,
  { follow = false, signal }: { follow?: boolean | undefined; signal?: AbortSignal | undefined },
): AsyncGenerator<Buffer, void, undefined> {
  const path = apiPath('vms', vm, 'logs');
  const query = { follow: follow ? '1' : '0' };
  yield* feedBytes(await transport.stream({ method: 'GET', path, query, signal }, ['end']));
}

async function* feedBytes(events: AsyncIterable<StreamEvent>): AsyncGenerator<Buffer> {
  for await (const { event, data } of events) {
    if (event === 'output') yield Buffer.from(data, 'base64');
    if (event !== 'dropped') continue;
    const { bytes } = droppedSchema.parse(JSON.parse(data));
    yield Buffer.from(`\r\n[${bytes} bytes left out: they came faster than they were read]\r\n`);
  }
}
