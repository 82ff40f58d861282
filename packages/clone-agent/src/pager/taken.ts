// The requests that were taken from /dev/fuse and are not answered yet, in memory that outlives the
// process: a file on the tmpfs, mapped by every thread. A serving thread reads requests right into it,
// so there is no moment at which a pager that is killed has a request that the next one does not find.
// What is answered twice does no harm: the kernel has forgotten the request and says so.
//
//   for each serving thread:
//   +------------------------------------+------------------------------------------+
//   | the request that it is answering,  | requests that it has passed on,          |
//   | REQUEST_BYTES_MAX                  | SLOTS × SLOT_BYTES                       |
//   +------------------------------------+------------------------------------------+
//
// Each begins with its length, as FUSE requests do; zero: there is none. A slot is filled by its
// serving thread and emptied by the main thread.

import fs from 'node:fs';
import path from 'node:path';
import { mapFile, mappedBytes } from '@snowfork/memserver/pages';
import { decodeHeader, newRequestHeader, Opcode, REQUEST_BYTES_MAX } from './fuse-wire.js';
import type { RequestIdentity } from './session.js';
import { SERVING_THREADS } from './thread-data.js';

/** More than can wait: each is a thread of some QEMU. */
const SLOTS = 2048;
/** Room for a LOOKUP of the longest name. */
const SLOT_BYTES = 512;
const THREAD_BYTES = REQUEST_BYTES_MAX + SLOTS * SLOT_BYTES;
const FILE_BYTES = SERVING_THREADS * THREAD_BYTES;
const HEADER_BYTES = 40;
const U32 = 2 ** 32;

/** The kernel waits for no answer to these. */
const UNANSWERED: ReadonlySet<number> = new Set([
  Opcode.forget,
  Opcode.batchForget,
  Opcode.interrupt,
]);

/** Maps the file, which is made when it is not there. */
export function mapTakenRequests(runFolder: string): Buffer {
  const file = path.join(runFolder, 'pager.requests');
  // Written, not only made long: the tmpfs may be full one day, and a fault in it must not fail.
  const isThere = fs.statSync(file, { throwIfNoEntry: false })?.size === FILE_BYTES;
  if (!isThere) fs.writeFileSync(file, Buffer.alloc(FILE_BYTES), { mode: 0o600 });
  // So that the kernel need not wait for a page of it while it copies a request: it would give up the
  // request of a thread that is being killed, and whoever reads gets an error.
  return Buffer.from(mappedBytes(mapFile(file, { isPopulated: true })));
}

/** A serving thread's side. */
export class TakenRequests {
  /** Where the thread reads its next request to. */
  readonly current: Buffer;
  readonly #memory: Buffer;
  readonly #slots: number;
  #next = 0;

  constructor(memory: Buffer, thread: number) {
    this.#memory = memory;
    const start = thread * THREAD_BYTES;
    this.current = memory.subarray(start, start + REQUEST_BYTES_MAX);
    this.#slots = start + REQUEST_BYTES_MAX;
  }

  /** The current request is answered, or kept. */
  done(): void {
    this.current.writeUInt32LE(0, 0);
  }

  /** Keeps the current request until `AnsweredRequests` is told of it; returns where. */
  keep(opcode: number, lengthBytes: number): number | undefined {
    if (UNANSWERED.has(opcode) || lengthBytes > SLOT_BYTES) return undefined;
    for (let tried = 0; tried < SLOTS; tried++) {
      const slot = this.#slots + this.#next * SLOT_BYTES;
      this.#next = (this.#next + 1) % SLOTS;
      if (this.#memory.readUInt32LE(slot) !== 0) continue;
      put(this.#memory, slot, this.current.subarray(0, lengthBytes));
      return slot;
    }
    return undefined;
  }
}

/** The main thread's side. */
export class AnsweredRequests {
  readonly #memory: Buffer;
  readonly #slotOf = new Map<number, number>();

  constructor(memory: Buffer) {
    this.#memory = memory;
  }

  /** The request in this slot is under way. */
  await(request: RequestIdentity, slot: number): void {
    this.#slotOf.set(keyOf(request), slot);
  }

  answered(request: RequestIdentity): void {
    const key = keyOf(request);
    const slot = this.#slotOf.get(key);
    if (slot === undefined) return;
    this.#slotOf.delete(key);
    this.#memory.writeUInt32LE(0, slot);
  }

  /**
   * What the pager before this one had taken and not answered, with the slots it is kept in. Before
   * the serving threads start.
   */
  left(): { request: Buffer; slot: number }[] {
    for (let thread = 0; thread < SERVING_THREADS; thread++) {
      const taken = new TakenRequests(this.#memory, thread);
      const request = validRequest(taken.current);
      if (request !== undefined) taken.keep(opcodeOf(request), request.length);
      taken.done();
    }
    const left: { request: Buffer; slot: number }[] = [];
    for (let thread = 0; thread < SERVING_THREADS; thread++) {
      for (let index = 0; index < SLOTS; index++) {
        const slot = thread * THREAD_BYTES + REQUEST_BYTES_MAX + index * SLOT_BYTES;
        const request = validRequest(this.#memory.subarray(slot, slot + SLOT_BYTES));
        if (request !== undefined) left.push({ request: Buffer.from(request), slot });
      }
    }
    return left;
  }
}

/** The length last: a slot that has one is whole. */
function put(memory: Buffer, slot: number, request: Buffer): void {
  memory.set(request.subarray(4), slot + 4);
  memory.writeUInt32LE(request.length, slot);
}

function validRequest(place: Buffer): Buffer | undefined {
  const lengthBytes = place.readUInt32LE(0);
  if (lengthBytes < HEADER_BYTES || lengthBytes > place.length) return undefined;
  return place.subarray(0, lengthBytes);
}

function opcodeOf(request: Buffer): number {
  const header = newRequestHeader();
  decodeHeader(request, request.length, header);
  return header.opcode;
}

function keyOf({ uniqueLow, uniqueHigh }: RequestIdentity): number {
  return uniqueHigh * U32 + uniqueLow;
}
