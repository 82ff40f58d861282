// READs that the serving threads passed on: of objects that nobody has loaded, of snapshots whose
// freeze still goes on, of layers on a disk. Lives on the main thread, where waiting costs no other
// READ anything. Every READ taken here is answered in the end: with its bytes, or with an error.

import fs from 'node:fs';
import os from 'node:os';
import { promisify } from 'node:util';
import { PAGE_BYTES, ZERO_PAGE } from '@snowfork/memserver/pages';
import type { ReadArguments, RequestHeader } from './fuse-wire.js';
import { numberOfNode } from './nodes.js';
import type { Loaded, Registry } from './objects.js';
import { Outcome, type PageServer } from './page-server.js';
import { BLOCK_PAGES } from './push-windows.js';
import { pagesCovered, type ServedObject } from './served-object.js';
import type { FuseReplies } from './session.js';

const { EIO } = os.constants.errno;
const readAsync = promisify(fs.read);

/** READs that wait for a freeze. Each holds a thread of some QEMU, of which there are fewer. */
export const PARKED_READS_MAX = 4096;
/** A freeze that takes longer has failed, and nobody said so. */
const PENDING_DEADLINE_MS = 60_000;
/** In case the agent dies before it says `ready`. */
const PENDING_POLL_MS = 10;
/** The page cache may lose what was just read; then the READ waits for the disk. */
const WARM_ATTEMPTS_MAX = 3;

interface DeferredRead {
  readonly header: RequestHeader;
  readonly wanted: ReadArguments;
  /** Milliseconds since the epoch. */
  readonly startedAt: number;
}

export class DeferredReads {
  readonly #server: PageServer;
  readonly #registry: Registry;
  readonly #replies: FuseReplies;
  readonly #answered: (startedAt: number) => void;
  readonly #complain: (message: string) => void;
  #parked: DeferredRead[] = [];
  #poll: NodeJS.Timeout | undefined;
  /** Reads from disks that are going on, by node. */
  readonly #warming = new Map<number, Set<Promise<void>>>();
  /** Refused because too many waited. */
  refused = 0;

  constructor(of: {
    server: PageServer;
    registry: Registry;
    replies: FuseReplies;
    /** Called for each READ that got its bytes. */
    answered: (startedAt: number) => void;
    complain: (message: string) => void;
  }) {
    this.#server = of.server;
    this.#registry = of.registry;
    this.#replies = of.replies;
    this.#answered = of.answered;
    this.#complain = of.complain;
  }

  get parkedCount(): number {
    return this.#parked.length;
  }

  take(read: DeferredRead): void {
    const outcome = this.#server.read(read.header, read.wanted);
    if (outcome === Outcome.answered) this.#answered(read.startedAt);
    else if (outcome === Outcome.wouldWait) this.#startWarming(read);
    else this.#takeUnknown(read);
  }

  /** A freeze has ended: answers what waited for it, if its content is there. */
  retryParked(): void {
    const parked = this.#parked;
    this.#parked = [];
    for (const read of parked) {
      if (Date.now() < read.startedAt + PENDING_DEADLINE_MS) this.take(read);
      else this.#replies.error(read.header, EIO);
    }
    this.#schedulePoll();
  }

  /** Ends what waits for a dropped snapshot; resolves when its layers are read no more. */
  async drop(number: number): Promise<void> {
    const isDropped = (read: DeferredRead) => numberOfNode(read.header.nodeid) === number;
    const dropped = this.#parked.filter(isDropped);
    this.#parked = this.#parked.filter((read) => !isDropped(read));
    for (const read of dropped) this.#replies.error(read.header, EIO);
    this.#schedulePoll();
    for (const [node, reads] of this.#warming) {
      if (numberOfNode(node) === number) await Promise.all(reads);
    }
  }

  #takeUnknown(read: DeferredRead): void {
    const loaded = this.#load(read.header.nodeid);
    if (loaded?.state === 'loaded') this.take(read);
    else if (loaded?.state === 'pending') this.#park(read);
    else this.#replies.error(read.header, EIO);
  }

  #load(nodeid: number): Loaded | undefined {
    try {
      return this.#registry.load(nodeid);
    } catch (error) {
      this.#complain(`node ${nodeid} can't be served: ${String(error)}`);
      return undefined;
    }
  }

  #park(read: DeferredRead): void {
    if (this.#parked.length >= PARKED_READS_MAX) {
      this.refused += 1;
      this.#replies.error(read.header, EIO);
      return;
    }
    this.#parked.push(read);
    this.#schedulePoll();
  }

  #schedulePoll(): void {
    if (this.#parked.length === 0 || this.#poll !== undefined) return;
    this.#poll = setTimeout(() => {
      this.#poll = undefined;
      this.retryParked();
    }, PENDING_POLL_MS);
  }

  #startWarming(read: DeferredRead): void {
    const { nodeid } = read.header;
    const reads = this.#warming.get(nodeid) ?? new Set();
    this.#warming.set(nodeid, reads);
    const warming = this.#answerFromDisk(read).finally(() => {
      reads.delete(warming);
      if (reads.size === 0) this.#warming.delete(nodeid);
    });
    reads.add(warming);
  }

  /** Brings the pages into the layer's page cache, then answers as if they had been there. */
  async #answerFromDisk(read: DeferredRead): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      const object = this.#server.objects.get(read.header.nodeid);
      // Dropped meanwhile.
      if (object === undefined) return this.#replies.error(read.header, EIO);
      try {
        await warm(object, read.wanted);
      } catch (error) {
        this.#complain(`${object.shared.snapshot}/${object.shared.name}: ${String(error)}`);
        return this.#replies.error(read.header, EIO);
      }
      const mayWait = attempt === WARM_ATTEMPTS_MAX;
      const outcome = this.#server.read(read.header, read.wanted, mayWait);
      if (outcome === Outcome.answered) return this.#answered(read.startedAt);
    }
  }
}

/** Reads what a READ covers from the disk, and the rest of the blocks at its edges with it. */
async function warm(object: ServedObject, wanted: ReadArguments): Promise<void> {
  const { paged } = object;
  const sizeBytes = Math.min(wanted.sizeBytes, paged.sizeBytes - wanted.offset);
  const firstPage = Math.floor(wanted.offset / PAGE_BYTES);
  const lastPage = firstPage + pagesCovered(wanted.offset, sizeBytes) - 1;
  const first = firstPage - (firstPage % BLOCK_PAGES);
  const end = Math.min(lastPage - (lastPage % BLOCK_PAGES) + BLOCK_PAGES, paged.pageCount);
  const scratch = Buffer.allocUnsafe((end - first) * PAGE_BYTES);
  for (let page = first; page < end; ) {
    const run = paged.runLength(page, end - page);
    const layer = paged.layers[paged.layerOf(page) - 1];
    if (paged.layerOf(page) !== ZERO_PAGE && layer?.onDisk) {
      await readAsync(layer.descriptor, scratch, 0, run * PAGE_BYTES, page * PAGE_BYTES);
    }
    page += run;
  }
}
