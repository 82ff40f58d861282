// Answers READs: zeros, what lies in a layer, or "not I". Every thread that answers has one; it holds
// the reused buffers, counts, and asks the store thread to push what is likely to be touched next.
// It never waits: a READ for an object it does not know, or one that would wait for a disk or another
// host, is left to its caller.

import os from 'node:os';
import {
  type LayerRead,
  ObjectError,
  PAGE_BYTES,
  readWaiting,
  ZERO_PAGE,
} from '@snowfork/memserver/pages';
import { READ_BYTES_MAX, type ReadArguments, type RequestHeader } from './fuse-wire.js';
import { readWithoutWaiting } from './no-wait.js';
import { BLOCK_PAGES } from './push-windows.js';
import { Source } from './reader-counts.js';
import { Counter, clockMs, pagesCovered, type ServedObject } from './served-object.js';
import type { FuseReplies } from './session.js';
import type { StoreRequests } from './stores.js';

const { EIO } = os.constants.errno;

/** What became of a READ. */
export const Outcome = { answered: 0, unknownObject: 1, wouldWait: 2 } as const;
export type Outcome = (typeof Outcome)[keyof typeof Outcome];

/** Two pages more than the longest READ: one that is not aligned touches one page more. */
const BUFFER_BYTES = READ_BYTES_MAX + 2 * PAGE_BYTES;

export class PageServer {
  readonly objects = new Map<number, ServedObject>();
  readonly #replies: FuseReplies;
  readonly #stores: StoreRequests;
  readonly #complain: (message: string) => void;
  // Written to, and so in memory: the kernel would answer with an error for a thread that is killed
  // while a page of its answer has to be made (`MAP_POPULATE` in `taken.ts`).
  readonly #buffer = Buffer.alloc(BUFFER_BYTES).fill(0);
  readonly #page = this.#buffer.subarray(0, PAGE_BYTES);
  readonly #zeros = Buffer.alloc(READ_BYTES_MAX).fill(0);
  readonly #zeroPage = this.#zeros.subarray(0, PAGE_BYTES);
  readonly #readLayer: LayerRead = readWithoutWaiting(this.#buffer);

  constructor(of: {
    replies: FuseReplies;
    stores: StoreRequests;
    /** Told what is broken; not once per page. */
    complain: (message: string) => void;
  }) {
    this.#replies = of.replies;
    this.#stores = of.stores;
    this.#complain = of.complain;
  }

  /** With `mayWait` it waits for a disk; never for another host. */
  read(request: RequestHeader, wanted: ReadArguments, mayWait = false): Outcome {
    const object = this.objects.get(request.nodeid);
    if (object === undefined) return Outcome.unknownObject;
    const sizeBytes = Math.min(wanted.sizeBytes, object.shared.sizeBytes - wanted.offset);
    if (sizeBytes <= 0) {
      this.#replies.done(request);
      return Outcome.answered;
    }
    const firstPage = Math.floor(wanted.offset / PAGE_BYTES);
    const count = pagesCovered(wanted.offset, sizeBytes);
    if (object.isMemory) object.markUnderWay(firstPage, count);
    const read = mayWait ? readWaiting : this.#readLayer;
    const outcome = this.#answer(object, request, wanted.offset, sizeBytes, firstPage, count, read);
    if (outcome !== Outcome.answered) return outcome;
    this.#answered(object, firstPage, count);
    return outcome;
  }

  /** With a page of an open object that has just come, and is in no layer here yet. */
  answerPage(object: ServedObject, request: RequestHeader, page: number, bytes: Buffer): void {
    this.#replies.result(request, bytes);
    object.count(Counter.reads, 1);
    object.countPages(Source.replica, 1, request.pid);
    this.#answered(object, page, 1);
  }

  /** What follows an answer: it was a first touch, and what is beside it will be wanted too. */
  #answered(object: ServedObject, firstPage: number, count: number): void {
    if (!object.isMemory) return;
    object.clearUnderWay(firstPage, count);
    if (count === 1 && !object.paged.isZero(firstPage, 1)) object.touches?.add(firstPage);
    this.#pushAround(object, firstPage, count);
  }

  #answer(
    object: ServedObject,
    request: RequestHeader,
    offset: number,
    sizeBytes: number,
    firstPage: number,
    count: number,
    read: LayerRead,
  ): Outcome {
    if (count > 1 && object.isMemory && !object.atHand(firstPage, count)) {
      // Read-ahead: the kernel asks again for the one page that somebody waits for.
      object.count(Counter.refusedReads, 1);
      this.#replies.error(request, EIO);
      return Outcome.answered;
    }
    if (object.paged.isZero(firstPage, count)) {
      const zeros = sizeBytes === PAGE_BYTES ? this.#zeroPage : this.#zeros.subarray(0, sizeBytes);
      this.#replies.result(request, zeros);
      countAnswer(object, request, firstPage, count);
      return Outcome.answered;
    }
    return this.#answerFromLayers(object, request, offset, sizeBytes, firstPage, count, read);
  }

  #answerFromLayers(
    object: ServedObject,
    request: RequestHeader,
    offset: number,
    sizeBytes: number,
    firstPage: number,
    count: number,
    read: LayerRead,
  ): Outcome {
    try {
      if (!object.paged.readInto(this.#buffer, firstPage, count, read)) return Outcome.wouldWait;
    } catch (error) {
      this.#fail(object, request, error);
      return Outcome.answered;
    }
    const start = offset - firstPage * PAGE_BYTES;
    const whole = start === 0 && sizeBytes === PAGE_BYTES;
    const result = whole ? this.#page : this.#buffer.subarray(start, start + sizeBytes);
    this.#replies.result(request, result);
    countAnswer(object, request, firstPage, count);
    return Outcome.answered;
  }

  /** An error to the reader: never zeros, never wrong data. */
  #fail(object: ServedObject, request: RequestHeader, error: unknown): void {
    const { snapshot, name } = object.shared;
    const kind = error instanceof ObjectError ? 'broken' : 'unreadable';
    const words = error instanceof Error ? error.message : String(error);
    object.count(Counter.reads, 1);
    this.#complain(`${snapshot}/${name} is ${kind}: ${words}`);
    this.#replies.error(request, EIO);
  }

  #pushAround(object: ServedObject, firstPage: number, count: number): void {
    // More pages than a block were read ahead by the kernel: it will go on by itself.
    if (count > BLOCK_PAGES) return;
    const zeros = object.paged.isZero(firstPage, 1);
    const windows = zeros ? object.zeroWindows : object.layerWindows;
    if (!windows.touch(firstPage, clockMs())) return;
    this.#stores.offer(object.shared.nodeid, windows.firstPage, windows.count, zeros);
  }
}

/** Counts a READ that was answered whole, page by page of either kind. */
function countAnswer(
  object: ServedObject,
  { pid }: RequestHeader,
  firstPage: number,
  count: number,
): void {
  const { paged } = object;
  object.count(Counter.reads, 1);
  const end = firstPage + count;
  for (let page = firstPage; page < end; ) {
    const run = paged.runLength(page, end - page);
    const layer = paged.layerOf(page);
    if (layer === ZERO_PAGE) object.countPages(Source.zero, run, pid);
    else if (paged.layers[layer - 1]?.held === undefined) object.countPages(Source.local, run, pid);
    else object.countPages(Source.replica, run, pid);
    page += run;
  }
}
