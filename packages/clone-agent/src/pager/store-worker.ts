// The entry of the store thread: pushes pages into the kernel's page cache before they are asked for
// (what lies around and ahead of a touched page, and what clones of this family touch first), and tells
// the kernel what to forget. It alone writes FUSE_NOTIFY_STORE and _INVAL_…: they take the lock of a
// page, which a READ of that page holds until it is answered, so this thread may wait for those that
// answer, and none of them ever waits for it.

import fs from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { PAGE_BYTES, ZERO_PAGE } from '@snowfork/memserver/pages';
import { type Bulletin, Mailbox } from './board.js';
import { encodeStoreHeader, READ_BYTES_MAX, STORE_HEADER_BYTES } from './fuse-wire.js';
import { isMarker } from './push-windows.js';
import { Counter, ServedObject } from './served-object.js';
import { errorCode } from './session.js';
import { type StoreJob, StoreJobs } from './stores.js';
import type { ThreadData, ThreadWord } from './thread-data.js';

const STORE_PAGES_MAX = READ_BYTES_MAX / PAGE_BYTES;

const data: ThreadData = workerData;
const say = (word: ThreadWord) => parentPort!.postMessage(word);
const objects = new Map<number, ServedObject>();
const header = Buffer.alloc(STORE_HEADER_BYTES);
const zeros = Buffer.alloc(READ_BYTES_MAX);
const pages = Buffer.alloc(READ_BYTES_MAX);
const toTell: Extract<Bulletin, { kind: 'tell' }>[] = [];
const toReplay: Extract<Bulletin, { kind: 'replay' }>[] = [];

const mailbox = new Mailbox({
  memory: data.board,
  port: data.port,
  thread: data.thread,
  receive: (bulletin) => {
    if (bulletin.kind === 'object') {
      objects.set(bulletin.object.nodeid, new ServedObject(bulletin.object, data.thread));
    } else if (bulletin.kind === 'drop') {
      for (const node of bulletin.nodes) objects.delete(node);
    } else if (bulletin.kind === 'replay') {
      toReplay.push(bulletin);
    } else if (bulletin.kind === 'tell') {
      toTell.push(bulletin);
    }
  },
});

/** Stores the pages of a range of one kind that no READ waits for, in runs as long as possible. */
function pushRange(object: ServedObject, { nodeid, firstPage, count, zeros }: StoreJob): void {
  const end = Math.min(firstPage + count, wholePages(object));
  if (!zeros && !object.paged.isHere(firstPage, count)) {
    say({ kind: 'absent', nodeid, firstPage, count: end - firstPage });
  }
  let page = firstPage;
  while (page < end) {
    const start = page;
    const most = Math.min(end, start + STORE_PAGES_MAX);
    while (page < most && !isMarker(page) && isPushable(object, page, zeros)) page += 1;
    if (page === start) page += 1;
    else if (zeros) storeZeros(object, start, page - start);
    else if (!pushFromLayers(object, start, page - start, Counter.aheadPages)) return;
  }
}

function isPushable(object: ServedObject, page: number, zeros: boolean): boolean {
  if ((object.paged.layerOf(page) === ZERO_PAGE) !== zeros || object.isUnderWay(page)) return false;
  return zeros || object.paged.isHere(page, 1);
}

/** A last page that is not whole can't be stored. */
function wholePages(object: ServedObject): number {
  return Math.floor(object.shared.sizeBytes / PAGE_BYTES);
}

function storeZeros(object: ServedObject, firstPage: number, count: number): void {
  if (store(object, firstPage, zeros.subarray(0, count * PAGE_BYTES))) {
    object.count(Counter.storedPages, count);
  }
}

/** `false` when the kernel does not know the object: no clone has it open. */
function store(object: ServedObject, firstPage: number, content: Uint8Array): boolean {
  const { nodeid } = object.shared;
  const offset = firstPage * PAGE_BYTES;
  encodeStoreHeader(header, { nodeid, offset, sizeBytes: content.length });
  return notify([header, content]);
}

function replayAll(): void {
  for (const { nodeid, pages: list } of toReplay.splice(0)) {
    const object = objects.get(nodeid);
    if (object !== undefined) replay(object, list);
  }
}

/** Pushes the pages of an ascending list that lie in layers and that no READ waits for, by runs. */
function replay(object: ServedObject, list: readonly number[]): void {
  const wanted = (page: number | undefined) =>
    page !== undefined && page < wholePages(object) && isPushable(object, page, false);
  for (let at = 0; at < list.length; ) {
    const first = list[at]!;
    let count = 0;
    while (count < STORE_PAGES_MAX && list[at + count] === first + count && wanted(first + count)) {
      count += 1;
    }
    at += Math.max(count, 1);
    if (count === 0) continue;
    if (!pushFromLayers(object, first, count, Counter.replayedPages)) return;
  }
}

function pushFromLayers(
  object: ServedObject,
  firstPage: number,
  count: number,
  counter: number,
): boolean {
  try {
    // Of another host, and not here: who asks for it will wait for it.
    if (!object.paged.readInto(pages, firstPage, count)) return true;
  } catch (error) {
    // Whoever asks for the page will be told; nothing is pushed that is not known to be right.
    say({ kind: 'complaint', message: `${object.shared.snapshot}: ${String(error)}` });
    return false;
  }
  if (!store(object, firstPage, pages.subarray(0, count * PAGE_BYTES))) return false;
  object.count(counter, count);
  return true;
}

/** `false` when the kernel does not know the file (any more): there is nothing to push then. */
function notify(parts: Uint8Array[]): boolean {
  try {
    fs.writevSync(data.fuseDescriptor, parts);
    return true;
  } catch (error) {
    const code = errorCode(error);
    if (code === 'ENOENT' || code === 'ENODEV' || code === 'ENOTDIR') return false;
    say({ kind: 'complaint', message: `a notification was refused: ${code}` });
    return false;
  }
}

function tellAll(): void {
  for (const { id, notifications } of toTell.splice(0)) {
    for (const notification of notifications) notify([notification]);
    say({ kind: 'told', id });
  }
}

const jobs = new StoreJobs(data.stores);
const job: StoreJob = { nodeid: 0, firstPage: 0, count: 0, zeros: false };
for (;;) {
  mailbox.enter();
  tellAll();
  replayAll();
  while (jobs.take(job)) {
    mailbox.enter();
    const object = objects.get(job.nodeid);
    if (object !== undefined) pushRange(object, job);
  }
  mailbox.leave();
  jobs.wait();
}
