// READs that the serving threads passed on: of objects that nobody has loaded, of snapshots whose
// freeze still goes on, of layers on a disk or on another host. Lives on the main thread, where waiting costs no other
// READ anything. Every READ taken here is answered in the end: with its bytes, or with an error.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { PAGE_BYTES, ZERO_PAGE } from '@snowfork/memserver/pages';
import type { ReadArguments, RequestHeader } from './fuse-wire.js';
import { numberOfNode } from './nodes.js';
import type { Loaded, Registry } from './objects.js';
import { Outcome, type PageServer } from './page-server.js';
import { BLOCK_PAGES } from './push-windows.js';
import { processOf, Source } from './reader-counts.js';
import { LostPageError, type RemotePages } from './remote-pages.js';
import { onePageOf, pagesCovered, type ServedObject } from './served-object.js';
import type { FuseReplies } from './session.js';
import { lostFile, snapshotFolder } from './snapshot-file.js';

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
  /** A serving thread has asked the page's host for it. */
  readonly isAsked: boolean;
}

export class DeferredReads {
  readonly #server: PageServer;
  readonly #registry: Registry;
  readonly #remote: RemotePages;
  readonly #replies: FuseReplies;
  readonly #answered: (startedAt: number) => void;
  readonly #complain: (message: string) => void;
  readonly #runFolder: string;
  #parked: DeferredRead[] = [];
  #poll: NodeJS.Timeout | undefined;
  /** READs that wait for a disk or another host, by node. */
  readonly #waiting = new Map<number, Set<Promise<void>>>();
  /** Refused because too many waited. */
  refused = 0;

  constructor(of: {
    server: PageServer;
    registry: Registry;
    remote: RemotePages;
    replies: FuseReplies;
    /** Called for each READ that got its bytes. */
    answered: (startedAt: number) => void;
    complain: (message: string) => void;
    runFolder: string;
  }) {
    this.#server = of.server;
    this.#registry = of.registry;
    this.#remote = of.remote;
    this.#replies = of.replies;
    this.#answered = of.answered;
    this.#complain = of.complain;
    this.#runFolder = of.runFolder;
  }

  get parkedCount(): number {
    return this.#parked.length;
  }

  take(read: DeferredRead): void {
    const outcome = this.#server.read(read.header, read.wanted);
    if (outcome === Outcome.answered) {
      // The page came before the word that it was asked for.
      if (read.isAsked) this.#countDemand(read.header, 1);
      this.#answered(read.startedAt);
    } else if (outcome === Outcome.wouldWait) {
      if (!this.#fetchOne(read)) this.#startWaiting(read);
    } else this.#takeUnknown(read);
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
    for (const [node, reads] of this.#waiting) {
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

  /** What a guest waits for is one page, nearly always; it is answered as soon as that has come. */
  #fetchOne(read: DeferredRead): boolean {
    const { header, wanted, isAsked } = read;
    const { nodeid } = header;
    const page = onePageOf(wanted);
    if (page === undefined) return false;
    return this.#remote.fetchOne(nodeid, page, isAsked, {
      came: (bytes, offset) => {
        const object = this.#server.objects.get(nodeid);
        if (object === undefined) return this.#replies.error(header, EIO);
        const content = bytes.subarray(offset, offset + PAGE_BYTES);
        this.#server.answerPage(object, header, page, content);
        this.#countDemand(header, 1);
        this.#answered(read.startedAt);
      },
      settled: (error) => {
        if (error === undefined) return this.#startWaiting(read);
        const object = this.#server.objects.get(nodeid);
        if (object !== undefined) this.#fail(object, header, error);
        this.#replies.error(header, EIO);
      },
    });
  }

  #startWaiting(read: DeferredRead): void {
    const { nodeid } = read.header;
    const reads = this.#waiting.get(nodeid) ?? new Set();
    this.#waiting.set(nodeid, reads);
    const waiting = this.#answerLater(read).finally(() => {
      reads.delete(waiting);
      if (reads.size === 0) this.#waiting.delete(nodeid);
    });
    reads.add(waiting);
  }

  /** Brings the pages to this host and into the page cache, then answers as if they had been there. */
  async #answerLater(read: DeferredRead): Promise<void> {
    let demanded = 0;
    for (let attempt = 1; ; attempt += 1) {
      const object = this.#server.objects.get(read.header.nodeid);
      // Dropped meanwhile.
      if (object === undefined) return this.#replies.error(read.header, EIO);
      try {
        demanded = Math.max(demanded, await this.#bring(object, read.wanted));
      } catch (error) {
        this.#fail(object, read.header, error);
        return this.#replies.error(read.header, EIO);
      }
      // The object may have gone while its page came.
      if (!this.#server.objects.has(read.header.nodeid)) continue;
      const mayWait = attempt >= WARM_ATTEMPTS_MAX;
      const outcome = this.#server.read(read.header, read.wanted, mayWait);
      if (outcome !== Outcome.answered) continue;
      this.#countDemand(read.header, demanded);
      return this.#answered(read.startedAt);
    }
  }

  /** Whoever reads will end for it: it is said why. */
  #fail({ shared }: ServedObject, { pid }: RequestHeader, error: unknown): void {
    const { snapshot, name } = shared;
    this.#complain(`${snapshot}/${name}: ${String(error)}`);
    if (!(error instanceof LostPageError) || !this.#server.objects.has(shared.nodeid)) return;
    const reader = processOf(pid);
    if (reader === undefined) return;
    const file = path.join(snapshotFolder(this.#runFolder, snapshot), lostFile(reader));
    try {
      fs.writeFileSync(file, error.message);
    } catch (cause) {
      this.#complain(`${file}: ${String(cause)}`);
    }
  }

  /** What came for a READ, once it is answered: never more than what is counted as a replica's. */
  #countDemand({ nodeid, pid }: RequestHeader, pages: number): void {
    this.#server.objects.get(nodeid)?.countPages(Source.demand, pages, pid);
  }

  /** Resolves to the number of pages that another host had to give. */
  async #bring(object: ServedObject, wanted: ReadArguments): Promise<number> {
    const { paged, shared } = object;
    const firstPage = Math.floor(wanted.offset / PAGE_BYTES);
    const sizeBytes = Math.min(wanted.sizeBytes, paged.sizeBytes - wanted.offset);
    const count = pagesCovered(wanted.offset, sizeBytes);
    let absent = 0;
    for (let page = firstPage; page < firstPage + count; page += 1) {
      if (!paged.isHere(page, 1)) absent += 1;
    }
    if (absent === 0) await warm(object, firstPage, count);
    else await this.#remote.fetch(shared.nodeid, firstPage, count);
    return absent;
  }
}

/** Reads what a READ covers from the disk, and the rest of the blocks at its edges with it. */
async function warm(object: ServedObject, firstPage: number, count: number): Promise<void> {
  const { paged } = object;
  const lastPage = firstPage + count - 1;
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
