// The bodies of the five datagrams. Encodes and decodes; a decoder answers `undefined` to whatever
// is not exactly as drawn, and throws nothing. Sealed by `sealing.ts`, so a wrong body is a
// member's. Little endian. Layers are numbered as in the snapshot's descriptor, through all of its
// objects.
//
// REQUEST, receiver to server
//  0         1          2            4        8              12           16 …
// +---------+----------+------------+--------+--------------+------------+------------
// | urgency | delivery | run count  | seen   | round trip   | 0          | runs …
// +---------+----------+------------+--------+--------------+------------+------------
//   run:  page u32 | pages u16 | layer u16 | pieces u8 | piece count u8 | 0 u16
//   seen: highest sequence that came by the way it wants; round trip: µs, as the receiver measured it.
//   pieces: the bits of those that lack, of pages cut in `piece count`; both 0: whole pages.
//   All runs together are 1 to 1,024 pages.
//
// PAGES, server to group or receiver: whole pages, and pages that have no data
//  0           4         5             6         8            10 …          … end
// +-----------+---------+-------------+---------+------------+-------------+------------------+
// | sequence  | channel | receivers   | layer   | run count  | runs …      | data pages …     |
// +-----------+---------+-------------+---------+------------+-------------+------------------+
//   run: page u32 | pages u16 | kind u16.  receivers: log2 of those that the group has.
//   data page: as it is, or of a packed run: bytes u16 | LZ4 block.
//   No run at all: a sign of life. All runs together are at most 1,024 pages.
//
// PIECE, server to group or receiver: a part of a page
//  0           4         5             6         8          12      13            14 …
// +-----------+---------+-------------+---------+----------+-------+-------------+-------------+
// | sequence  | channel | receivers   | layer   | page     | piece | piece count | data …      |
// +-----------+---------+-------------+---------+----------+-------+-------------+-------------+
//
// PROBE, server to group or receiver: as long as a datagram may get, if it comes whole
//  0         1 …
// +---------+------------------+
// | channel | zeros …          |
// +---------+------------------+
//
// REPORT, receiver to server: what came by each channel since the last report
//  0          1    2             4                   8                            24
// +----------+----+-------------+-------------------+----------------------------+-----------+
// | delivery | 0  | interval ms | largest, of each  | group                      | unicast   |
// +----------+----+-------------+-------------------+----------------------------+-----------+
//   largest: length of the largest datagram u16, group and unicast; 0: none
//   channel: highest sequence u32 | datagrams that should have come u32 | that came u32 | bytes u32

import { PAGE_BYTES } from '../page-map.js';

export const REQUEST_HEAD_BYTES = 16;
export const REQUEST_RUN_BYTES = 12;
export const PAGES_HEAD_BYTES = 10;
export const RUN_BYTES = 8;
export const PIECE_HEAD_BYTES = 14;
export const REPORT_BYTES = 40;
/** In all runs of a REQUEST or of PAGES: whoever gets it looks at each. A receiver waits for no more. */
export const DATAGRAM_PAGES_MAX = 1024;
export const REPORT_MS_MAX = 65_535;
/** Before the bytes of a packed page: how many. */
export const PACKED_HEAD_BYTES = 2;
/** A request names pieces by the bits of a byte. */
export const PIECES_MAX = 8;
const PAGES_PER_LAYER = 2 ** 32;

const REQUEST = { urgency: 0, delivery: 1, runCount: 2, seen: 4, roundTrip: 8, zero: 12 } as const;
const REQUEST_RUN = { page: 0, count: 4, layer: 6, pieces: 8, pieceCount: 9, zero: 10 } as const;
const PAGES = { sequence: 0, channel: 4, receivers: 5, layer: 6, runCount: 8 } as const;
const RUN = { page: 0, count: 4, kind: 6 } as const;
const PIECE = { page: 8, piece: 12, pieceCount: 13 } as const;
const PROBE = { channel: 0 } as const;
const REPORT = {
  delivery: 0,
  zero: 1,
  interval: 2,
  largestGroup: 4,
  largestUnicast: 6,
  group: 8,
  unicast: 24,
} as const;
const CHANNEL_REPORT = { highest: 0, expected: 4, received: 8, bytes: 12 } as const;

export const URGENCY = { demand: 0, prefetch: 1 } as const;
export type Urgency = (typeof URGENCY)[keyof typeof URGENCY];
/** How a receiver wants its pages, and by which of the two a datagram comes. */
export const CHANNEL = { group: 0, unicast: 1 } as const;
export type Channel = (typeof CHANNEL)[keyof typeof CHANNEL];
/** `absent`: the server does not hold the page, and will not. */
export const PAGE_KIND = { data: 0, zero: 1, absent: 2, packed: 3 } as const;
export type PageKind = (typeof PAGE_KIND)[keyof typeof PAGE_KIND];

export interface RequestRun {
  readonly layer: number;
  readonly page: number;
  count: number;
  /** 0, or the bits of the pieces that lack. */
  readonly pieces: number;
  readonly pieceCount: number;
}

export interface Request {
  readonly urgency: Urgency;
  readonly delivery: Channel;
  readonly seen: number;
  readonly roundTripUs: number;
  readonly runs: readonly RequestRun[];
}

export interface PageRun {
  readonly page: number;
  count: number;
  readonly kind: PageKind;
}

/** What PAGES and PIECE begin with. */
export interface PagesHead {
  readonly sequence: number;
  readonly channel: Channel;
  readonly receiversLog2: number;
  readonly layer: number;
}

export interface Pages extends PagesHead {
  readonly runs: readonly PageRun[];
  /** The pages of data and packed runs, one after another (`dataEnd`). */
  readonly data: Buffer;
}

export interface Piece extends PagesHead {
  readonly page: number;
  readonly piece: number;
  readonly pieceCount: number;
  readonly data: Buffer;
}

export interface ChannelReport {
  readonly highest: number;
  readonly expected: number;
  readonly received: number;
  readonly bytes: number;
  /** Length of the largest datagram that came, probes too; 0: none came. */
  readonly largest: number;
}

export interface Report {
  readonly delivery: Channel;
  /** At most REPORT_MS_MAX. */
  readonly intervalMs: number;
  readonly group: ChannelReport;
  readonly unicast: ChannelReport;
}

/** Bytes of each piece of a page but the last, which has the rest. */
export function pieceBytes(pieceCount: number): number {
  return Math.ceil(PAGE_BYTES / pieceCount);
}

export function encodeRequest(request: Request): Buffer {
  const body = Buffer.alloc(REQUEST_HEAD_BYTES + request.runs.length * REQUEST_RUN_BYTES);
  body[REQUEST.urgency] = request.urgency;
  body[REQUEST.delivery] = request.delivery;
  body.writeUInt16LE(request.runs.length, REQUEST.runCount);
  body.writeUInt32LE(request.seen, REQUEST.seen);
  body.writeUInt32LE(request.roundTripUs, REQUEST.roundTrip);
  let offset = REQUEST_HEAD_BYTES;
  for (const run of request.runs) {
    body.writeUInt32LE(run.page, offset + REQUEST_RUN.page);
    body.writeUInt16LE(run.count, offset + REQUEST_RUN.count);
    body.writeUInt16LE(run.layer, offset + REQUEST_RUN.layer);
    body[offset + REQUEST_RUN.pieces] = run.pieces;
    body[offset + REQUEST_RUN.pieceCount] = run.pieceCount;
    offset += REQUEST_RUN_BYTES;
  }
  return body;
}

export function decodeRequest(body: Buffer): Request | undefined {
  if (body.length < REQUEST_HEAD_BYTES + REQUEST_RUN_BYTES) return undefined;
  const urgency = urgencyOf(body[REQUEST.urgency]!);
  const delivery = channelOf(body[REQUEST.delivery]!);
  const runCount = body.readUInt16LE(REQUEST.runCount);
  if (urgency === undefined || delivery === undefined) return undefined;
  if (body.length !== REQUEST_HEAD_BYTES + runCount * REQUEST_RUN_BYTES) return undefined;
  if (body.readUInt32LE(REQUEST.zero) !== 0) return undefined;
  const runs: RequestRun[] = [];
  let pages = 0;
  for (let offset = REQUEST_HEAD_BYTES; offset < body.length; offset += REQUEST_RUN_BYTES) {
    const run = decodeRequestRun(body, offset);
    if (run === undefined) return undefined;
    runs.push(run);
    pages += run.count;
    if (pages > DATAGRAM_PAGES_MAX) return undefined;
  }
  const seen = body.readUInt32LE(REQUEST.seen);
  return { urgency, delivery, seen, roundTripUs: body.readUInt32LE(REQUEST.roundTrip), runs };
}

function decodeRequestRun(body: Buffer, offset: number): RequestRun | undefined {
  const page = body.readUInt32LE(offset + REQUEST_RUN.page);
  const count = body.readUInt16LE(offset + REQUEST_RUN.count);
  const pieces = body[offset + REQUEST_RUN.pieces]!;
  const pieceCount = body[offset + REQUEST_RUN.pieceCount]!;
  if (!isRun(page, count) || body.readUInt16LE(offset + REQUEST_RUN.zero) !== 0) return undefined;
  if (pieceCount > PIECES_MAX || pieces >= 1 << pieceCount) return undefined;
  if ((pieces === 0) !== (pieceCount === 0)) return undefined;
  return { layer: body.readUInt16LE(offset + REQUEST_RUN.layer), page, count, pieces, pieceCount };
}

/** Writes PAGES up to its data, and returns where they go. `into` is at least as long. */
export function writePages(into: Buffer, head: PagesHead, runs: readonly PageRun[]): number {
  writePagesHead(into, head);
  into.writeUInt16LE(runs.length, PAGES.runCount);
  let offset = PAGES_HEAD_BYTES;
  for (const run of runs) {
    into.writeUInt32LE(run.page, offset + RUN.page);
    into.writeUInt16LE(run.count, offset + RUN.count);
    into.writeUInt16LE(run.kind, offset + RUN.kind);
    offset += RUN_BYTES;
  }
  return offset;
}

export function decodePages(body: Buffer): Pages | undefined {
  if (body.length < PAGES_HEAD_BYTES) return undefined;
  const channel = channelOf(body[PAGES.channel]!);
  const dataStart = PAGES_HEAD_BYTES + body.readUInt16LE(PAGES.runCount) * RUN_BYTES;
  if (channel === undefined || body.length < dataStart) return undefined;
  const runs: PageRun[] = [];
  let dataOffset = dataStart;
  let pages = 0;
  for (let offset = PAGES_HEAD_BYTES; offset < dataStart; offset += RUN_BYTES) {
    const page = body.readUInt32LE(offset + RUN.page);
    const count = body.readUInt16LE(offset + RUN.count);
    const kind = pageKindOf(body.readUInt16LE(offset + RUN.kind));
    if (kind === undefined || !isRun(page, count)) return undefined;
    pages += count;
    if (pages > DATAGRAM_PAGES_MAX) return undefined;
    if (kind === PAGE_KIND.data) dataOffset += count * PAGE_BYTES;
    if (kind === PAGE_KIND.packed) dataOffset = packedEnd(body, dataOffset, count);
    if (dataOffset > body.length) return undefined;
    runs.push({ page, count, kind });
  }
  if (dataOffset !== body.length) return undefined;
  return { ...pagesHead(body, channel), runs, data: body.subarray(dataStart) };
}

/** Where the data of a page of this kind end that begin at `start`. */
export function dataEnd(kind: PageKind, data: Buffer, start: number): number {
  if (kind === PAGE_KIND.data) return start + PAGE_BYTES;
  return kind === PAGE_KIND.packed ? packedEnd(data, start, 1) : start;
}

/** Beyond the end of `data` when they are not so many. */
function packedEnd(data: Buffer, start: number, count: number): number {
  let offset = start;
  for (let page = 0; page < count; page++) {
    if (offset + PACKED_HEAD_BYTES > data.length) return Number.POSITIVE_INFINITY;
    offset += PACKED_HEAD_BYTES + data.readUInt16LE(offset);
  }
  return offset;
}

/** Writes PIECE up to its data, and returns where they go. */
export function writePiece(
  into: Buffer,
  head: PagesHead,
  of: { page: number; piece: number; pieceCount: number },
): number {
  writePagesHead(into, head);
  into.writeUInt32LE(of.page, PIECE.page);
  into[PIECE.piece] = of.piece;
  into[PIECE.pieceCount] = of.pieceCount;
  return PIECE_HEAD_BYTES;
}

export function decodePiece(body: Buffer): Piece | undefined {
  if (body.length <= PIECE_HEAD_BYTES) return undefined;
  const channel = channelOf(body[PAGES.channel]!);
  const piece = body[PIECE.piece]!;
  const pieceCount = body[PIECE.pieceCount]!;
  if (channel === undefined || pieceCount < 2 || pieceCount > PIECES_MAX) return undefined;
  if (piece >= pieceCount) return undefined;
  const wholeBytes = pieceBytes(pieceCount);
  const dataBytes = Math.min(wholeBytes, PAGE_BYTES - piece * wholeBytes);
  if (body.length !== PIECE_HEAD_BYTES + dataBytes) return undefined;
  // Not by `pagesHead`: a copy of its fields would take as long as all the rest.
  return {
    sequence: body.readUInt32LE(PAGES.sequence),
    channel,
    receiversLog2: body[PAGES.receivers]!,
    layer: body.readUInt16LE(PAGES.layer),
    page: body.readUInt32LE(PIECE.page),
    piece,
    pieceCount,
    data: body.subarray(PIECE_HEAD_BYTES),
  };
}

export function encodeReport(report: Report): Buffer {
  const body = Buffer.alloc(REPORT_BYTES);
  body[REPORT.delivery] = report.delivery;
  body.writeUInt16LE(report.intervalMs, REPORT.interval);
  body.writeUInt16LE(report.group.largest, REPORT.largestGroup);
  body.writeUInt16LE(report.unicast.largest, REPORT.largestUnicast);
  writeChannelReport(body, REPORT.group, report.group);
  writeChannelReport(body, REPORT.unicast, report.unicast);
  return body;
}

export function decodeReport(body: Buffer): Report | undefined {
  if (body.length !== REPORT_BYTES) return undefined;
  const delivery = channelOf(body[REPORT.delivery]!);
  const intervalMs = body.readUInt16LE(REPORT.interval);
  if (delivery === undefined || intervalMs === 0) return undefined;
  if (body[REPORT.zero] !== 0) return undefined;
  const group = channelReport(body, REPORT.group, REPORT.largestGroup);
  const unicast = channelReport(body, REPORT.unicast, REPORT.largestUnicast);
  return { delivery, intervalMs, group, unicast };
}

/** Fills the body. */
export function writeProbe(body: Buffer, channel: Channel): void {
  body.fill(0);
  body[PROBE.channel] = channel;
}

/** By which channel it came. */
export function decodeProbe(body: Buffer): Channel | undefined {
  if (body.length === 0) return undefined;
  for (let offset = 1; offset < body.length; offset++) if (body[offset] !== 0) return undefined;
  return channelOf(body[PROBE.channel]!);
}

function writePagesHead(into: Buffer, head: PagesHead): void {
  into.writeUInt32LE(head.sequence, PAGES.sequence);
  into[PAGES.channel] = head.channel;
  into[PAGES.receivers] = head.receiversLog2;
  into.writeUInt16LE(head.layer, PAGES.layer);
}

function pagesHead(body: Buffer, channel: Channel): PagesHead {
  return {
    sequence: body.readUInt32LE(PAGES.sequence),
    channel,
    receiversLog2: body[PAGES.receivers]!,
    layer: body.readUInt16LE(PAGES.layer),
  };
}

function writeChannelReport(body: Buffer, offset: number, of: ChannelReport): void {
  body.writeUInt32LE(of.highest, offset + CHANNEL_REPORT.highest);
  body.writeUInt32LE(of.expected, offset + CHANNEL_REPORT.expected);
  body.writeUInt32LE(of.received, offset + CHANNEL_REPORT.received);
  body.writeUInt32LE(of.bytes, offset + CHANNEL_REPORT.bytes);
}

function channelReport(body: Buffer, offset: number, largest: number): ChannelReport {
  return {
    highest: body.readUInt32LE(offset + CHANNEL_REPORT.highest),
    expected: body.readUInt32LE(offset + CHANNEL_REPORT.expected),
    received: body.readUInt32LE(offset + CHANNEL_REPORT.received),
    bytes: body.readUInt32LE(offset + CHANNEL_REPORT.bytes),
    largest: body.readUInt16LE(largest),
  };
}

function isRun(page: number, count: number): boolean {
  return count > 0 && page + count <= PAGES_PER_LAYER;
}

// Each is numbered from 0 on, without a gap.

function urgencyOf(byte: number): Urgency | undefined {
  return byte <= URGENCY.prefetch ? (byte as Urgency) : undefined;
}

function channelOf(byte: number): Channel | undefined {
  return byte <= CHANNEL.unicast ? (byte as Channel) : undefined;
}

function pageKindOf(value: number): PageKind | undefined {
  return value <= PAGE_KIND.packed ? (value as PageKind) : undefined;
}
