// Makes datagrams of the pages that wait in a flow, and cuts into pieces what does not fit whole.
// Decides nothing about who gets what and when (`page-server.ts`).

import { countDatagram, type ServerCounts } from '../counts.js';
import { pageKey } from '../page-key.js';
import { PAGE_BYTES } from '../page-map.js';
import {
  DATAGRAM_PAGES_MAX,
  PAGE_KIND,
  PAGES_HEAD_BYTES,
  type PageKind,
  type PageRun,
  pieceBytes,
  RUN_BYTES,
  type Urgency,
  writePages,
  writePiece,
  writeProbe,
} from '../wire/datagrams.js';
import {
  allPieces,
  type BodySizes,
  datagramBytesFor,
  pieceCountFor,
  WIRE_OVERHEAD_BYTES,
} from '../wire/geometry.js';
import { DATAGRAM, type DatagramKind, type Sealer } from '../wire/sealing.js';
import type { Flow } from './flow.js';
import type { Address, KnownReceiver } from './known-receivers.js';
import { PageLoader, type PageSource } from './page-loader.js';
import type { QueuedPage } from './page-queue.js';

/** `to` is `undefined` for the group. The datagram's bytes are the sender's again after that. */
export type Send = (datagram: Buffer, to: Address | undefined) => void;

/** A datagram of zero pages costs reading them all. */
const RUNS_MAX = 64;

export class Outgoing {
  /** Of a page in datagrams of the usual size; in large ones it goes whole. */
  readonly pieceCount: number;
  readonly #loader: PageLoader;
  readonly #sealer: Sealer;
  readonly #send: Send;
  readonly #counts: ServerCounts;
  readonly #usualBytes: number;
  /** 0: the server's own link carries nothing larger. */
  readonly #largeBytes: number;
  readonly #body: Buffer;
  readonly #datagram: Buffer;
  /** Pages' data, before it is known where in the body they go. */
  readonly #data: Buffer;

  constructor(of: {
    source: PageSource;
    sealer: Sealer;
    send: Send;
    counts: ServerCounts;
    bodySizes: BodySizes;
  }) {
    this.#loader = new PageLoader(of.source);
    this.#sealer = of.sealer;
    this.#send = of.send;
    this.#counts = of.counts;
    const { usual, large } = of.bodySizes;
    const bodyBytesMax = large ?? usual;
    this.#usualBytes = usual;
    this.#largeBytes = large ?? 0;
    this.#body = Buffer.alloc(bodyBytesMax);
    this.#datagram = Buffer.alloc(datagramBytesFor(bodyBytesMax));
    this.#data = Buffer.alloc(bodyBytesMax);
    this.pieceCount = pieceCountFor(usual);
  }

  /**
   * Sends the queue's first page and what fits beside it: one datagram, or all pieces of one page
   * and a datagram of pages without data. Returns what that costs the link, in bytes.
   */
  sendNext(flow: Flow, urgency: Urgency, now: Now): number {
    const queue = flow.queues[urgency];
    const layer = queue.first()!.layer;
    const roomMax = this.bodyBytes(flow) - PAGES_HEAD_BYTES - RUN_BYTES;
    const loaded = this.#loader;
    const runs: PageRun[] = [];
    const taken: QueuedPage<KnownReceiver>[] = [];
    let dataBytes = 0;
    let bytes = 0;
    while (runs.length < RUNS_MAX && taken.length < DATAGRAM_PAGES_MAX) {
      const page = queue.first();
      if (page === undefined || page.layer !== layer) break;
      const room = roomMax - runs.length * RUN_BYTES - dataBytes;
      if (room < 0) break;
      // Some of its pieces are there: it was cut, as it does not pack.
      const isCut = page.pieces !== allPieces(this.pieceCount);
      loaded.load(layer, page.page, isCut ? 0 : roomMax);
      const isWhole = loaded.bytes <= roomMax;
      if (isWhole && loaded.bytes > room) break;
      flow.take(urgency, page);
      this.#countPage(loaded.kind);
      if (!isWhole) {
        bytes += this.#sendPieces(flow, page, now);
        break;
      }
      addToRuns(runs, page.page, loaded.kind);
      taken.push(page);
      loaded.putInto(this.#data, dataBytes);
      dataBytes += loaded.bytes;
    }
    if (runs.length > 0) bytes += this.#sendPages(flow, { layer, runs, taken, dataBytes }, now);
    return bytes;
  }

  /** Tells the group that the server is there, and how far it is. */
  sendSignOfLife(flow: Flow, now: Now): void {
    const length = writePages(this.#body, this.#head(flow, 0, now), []);
    const datagram = this.#seal(DATAGRAM.pages, length);
    countDatagram(this.#counts.sent.signsOfLife, datagram.length);
    this.#send(datagram, undefined);
  }

  /** Shows whether the largest datagrams come. Returns what that costs the link, in bytes. */
  sendProbe(flow: Flow): number {
    const body = this.#body.subarray(0, this.#largeBytes);
    writeProbe(body, flow.channel);
    const datagram = this.#seal(DATAGRAM.probe, body.length);
    countDatagram(this.#counts.sent.probes, datagram.length);
    this.#send(datagram, flow.receiver?.address);
    return datagram.length + WIRE_OVERHEAD_BYTES;
  }

  /** What a datagram's body may have, in a flow. */
  bodyBytes(flow: Flow): number {
    return flow.isLarge ? this.#largeBytes : this.#usualBytes;
  }

  /** Length of the largest datagram; 0: none is larger than usual. */
  get largestBytes(): number {
    return this.#largeBytes === 0 ? 0 : datagramBytesFor(this.#largeBytes);
  }

  #sendPieces(flow: Flow, of: QueuedPage<KnownReceiver>, now: Now): number {
    const { pieceCount } = this;
    const step = pieceBytes(pieceCount);
    let bytes = 0;
    for (let piece = 0; piece < pieceCount; piece++) {
      if ((of.pieces & (1 << piece)) === 0) continue;
      const head = this.#head(flow, of.layer, now);
      const start = writePiece(this.#body, head, { page: of.page, piece, pieceCount });
      const from = piece * step;
      const end = Math.min(from + step, PAGE_BYTES);
      const length = start + this.#loader.page.copy(this.#body, start, from, end);
      bytes += this.#sealAndSend(flow, DATAGRAM.piece, length);
    }
    this.#note(flow, of, now);
    return bytes;
  }

  #sendPages(
    flow: Flow,
    of: {
      layer: number;
      runs: readonly PageRun[];
      taken: readonly QueuedPage<KnownReceiver>[];
      dataBytes: number;
    },
    now: Now,
  ): number {
    const start = writePages(this.#body, this.#head(flow, of.layer, now), of.runs);
    this.#data.copy(this.#body, start, 0, of.dataBytes);
    for (const page of of.taken) {
      page.pieces = allPieces(this.pieceCount);
      this.#note(flow, page, now);
    }
    return this.#sealAndSend(flow, DATAGRAM.pages, start + of.dataBytes);
  }

  #sealAndSend(flow: Flow, kind: DatagramKind, length: number): number {
    const datagram = this.#seal(kind, length);
    const { sent } = this.#counts;
    countDatagram(flow.receiver === undefined ? sent.group : sent.unicast, datagram.length);
    this.#send(datagram, flow.receiver?.address);
    return datagram.length + WIRE_OVERHEAD_BYTES;
  }

  #seal(kind: DatagramKind, length: number): Buffer {
    const body = this.#body.subarray(0, length);
    return this.#datagram.subarray(0, this.#sealer.sealInto(this.#datagram, kind, body));
  }

  #head(flow: Flow, layer: number, now: Now) {
    const { receiversLog2 } = now;
    return { sequence: flow.takeSequence(), channel: flow.channel, receiversLog2, layer };
  }

  #note(flow: Flow, page: QueuedPage<KnownReceiver>, now: Now): void {
    const { sequence } = flow;
    const { pieces, isRepair } = page;
    const key = pageKey(page.layer, page.page);
    flow.sent.note(key, { sequence, sentMs: now.ms, pieces, isRepair });
  }

  #countPage(kind: PageKind): void {
    const { pagesSent } = this.#counts;
    if (kind === PAGE_KIND.packed) pagesSent.packed++;
    if (kind === PAGE_KIND.data || kind === PAGE_KIND.packed) pagesSent.data++;
    else if (kind === PAGE_KIND.zero) pagesSent.zero++;
    else pagesSent.absent++;
  }
}

export interface Now {
  readonly ms: number;
  readonly receiversLog2: number;
}

function addToRuns(runs: PageRun[], page: number, kind: PageKind): void {
  const last = runs.at(-1);
  if (last !== undefined && last.kind === kind && last.page + last.count === page) last.count++;
  else runs.push({ page, count: 1, kind });
}
