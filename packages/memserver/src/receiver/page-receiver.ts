// Fetches the pages of one snapshot from one memory server: asks, asks again, puts pages together,
// and hands over what came, asked for or not. Keeps no pages: that is the caller's part
// (`PageSink`). Has no clock, no randomness and no socket of its own: `receive` what came,
// `advance` when it says so. `docs/internals/multicast.md` says why it asks as it does.

import { countDatagram, newReceiverCounts, type ReceiverCounts } from '../counts.js';
import { pageKey } from '../page-key.js';
import { PAGE_BYTES } from '../page-map.js';
import {
  CHANNEL,
  type Channel,
  dataEnd,
  decodePages,
  decodePiece,
  decodeProbe,
  encodeReport,
  encodeRequest,
  PACKED_HEAD_BYTES,
  PAGE_KIND,
  type PageRun,
  type Pages,
  type PagesHead,
  type Piece,
  REPORT_MS_MAX,
  URGENCY,
  type Urgency,
} from '../wire/datagrams.js';
import { unpackPage } from '../wire/packing.js';
import {
  DATAGRAM,
  type DatagramKind,
  HEADER_BYTES,
  type Opened,
  Opener,
  Sealer,
  type SnapshotKey,
  TAG_BYTES,
} from '../wire/sealing.js';
import { AskingState } from './asking-state.js';
import { ChannelWatch } from './channel-watch.js';
import { Membership } from './membership.js';
import { PrefetchQueue } from './prefetch-queue.js';
import { Reassembly } from './reassembly.js';
import { REQUEST_BYTES_MAX, RequestRuns } from './requests.js';
import { RoundTrip } from './round-trip.js';

/** Pages in demand at a time; the kernel has fewer READs under way. */
export const DEMANDS_MAX = 1024;
/** The server, those before it, and hosts that serve their neighbours. */
const SENDERS_MAX = 64;
/** Timers and threads are not finer. */
const DEMAND_TIMEOUT_MIN_MS = 4;
/** Demand overtakes it in the server's queues. */
const PREFETCH_TIMEOUT_MIN_MS = 20;
const RETRY_MS_MAX = 1000;
/**
 * A page is lost when one that was asked for so much later has come: the server keeps to the order.
 */
const OVERTAKEN_MS = 1;
/**
 * A host that has no time to take what came asks for nothing again: but for so long only, as others
 * can make it busy.
 */
const BEHIND_MS_MAX = 100;
const BEHIND_LOOK_MS = 1;
/** Shares out retries of hosts that lost the same datagram, so that the first answer serves all. */
const RETRY_JITTER = 0.25;
/**
 * After so many times of asking, with nothing from the group for so long, it is asked by unicast.
 */
const SILENT_ATTEMPTS = 2;
const SILENT_MS = 100;
const REPORT_MS = 20;
/** Larger groups report more rarely, so that the server gets 3,200 reports a second. */
const REPORT_GROUP_LOG2 = 6;
const EXPIRE_MS = 500;
/** Of a large group only so many ask for prefetch at a time: all get the answers. */
const ASKERS_LOG2 = 3;
const DRAW_AGAIN_MS_MIN = 5;
/**
 * Others are followed when so much of a window comes for nothing in that time: a quarter of 1
 * Gbit/s.
 */
const FOLLOW_SHARE = 1 / 8;

/** Why a page was handed over. */
export type Reason = 'demand' | 'prefetch' | 'others';
/** `timeout`: no answer for `lostAfterMs`. `absent`: the server says that it does not hold it. */
export type LostReason = 'timeout' | 'absent';

/** Takes what came. Nothing here may call the receiver back. */
export interface PageSink {
  /** A page's bytes are at `offset`, until this returns. */
  onPage(layer: number, page: number, bytes: Buffer, offset: number, reason: Reason): void;
  onZeroPage(layer: number, page: number, reason: Reason): void;
  /**
   * A page that was asked for will not come. It is the caller who says what becomes of its fault.
   */
  onLost(layer: number, page: number, lost: LostReason, reason: Reason): void;
  /** Whether the caller has the page, so that it need not come again. */
  isHeld(layer: number, page: number): boolean;
  /** Join the group, or leave it. At the start it is joined. */
  onMembership(isMember: boolean): void;
}

export interface PrefetchOptions {
  /** Before whatever else is to be fetched when nobody waits. */
  readonly isFirst?: boolean;
}

export interface PageReceiverOptions {
  readonly key: SnapshotKey;
  /** As `newSenderId` makes it. */
  readonly senderId: number;
  readonly sink: PageSink;
  /** To the server. The datagram's bytes are the receiver's again after that. */
  readonly send: (datagram: Buffer, isRequest: boolean) => void;
  /** Milliseconds, never goes back. */
  readonly clock: () => number;
  /** From 0 to 1. */
  readonly random: () => number;
  /** A page that has not come for so long is lost. */
  readonly lostAfterMs: number;
  /** There is a group, which may reach this host or not. */
  readonly hasGroup: boolean;
  /** Datagrams have come that were not handed over yet: what lacks may be among them. */
  readonly isBehind?: () => boolean;
}

/** A page that was asked for. */
interface Want {
  readonly layer: number;
  readonly page: number;
  urgency: Urgency;
  attempts: number;
  /** Times that it was asked for and nothing at all came from the server. */
  silences: number;
  wantedMs: number;
  askedMs: number;
  deadlineMs: number;
}

export class PageReceiver {
  readonly counts: ReceiverCounts = newReceiverCounts();
  /** For other threads that ask in its name; they tell it by `demand`. */
  readonly asking = new AskingState();
  readonly #options: PageReceiverOptions;
  readonly #sealer: Sealer;
  readonly #opener: Opener;
  readonly #datagram = Buffer.alloc(HEADER_BYTES + REQUEST_BYTES_MAX + TAG_BYTES);
  readonly #unpacked = Buffer.alloc(PAGE_BYTES);
  readonly #wants = new Map<number, Want>();
  #demands = 0;
  /** In demand since the last `advance`. */
  #fresh: Want[] = [];
  readonly #prefetch = new PrefetchQueue();
  readonly #reassembly = new Reassembly();
  readonly #membership: Membership;
  readonly #group = new ChannelWatch();
  readonly #unicast = new ChannelWatch();
  /** By urgency. */
  readonly #roundTrips = [
    new RoundTrip(DEMAND_TIMEOUT_MIN_MS),
    new RoundTrip(PREFETCH_TIMEOUT_MIN_MS),
  ] as const;
  readonly #requests = [new RequestRuns(), new RequestRuns()] as const;
  /** By urgency: when the last of the pages that came at the first attempt was asked for. */
  readonly #newestAskedMs: [number, number] = [0, 0];
  /** Came for others since it was last thought of asking. */
  #unaskedPages = 0;
  #serverId = -1;
  #receiversLog2 = 0;
  #heardMs = Number.NEGATIVE_INFINITY;
  #groupHeardMs = Number.NEGATIVE_INFINITY;
  #deadlineMs = Number.POSITIVE_INFINITY;
  /** Since when it has no time to take what came. */
  #behindSinceMs = Number.POSITIVE_INFINITY;
  #drawAtMs = 0;
  #reportedMs: number;
  #reportAtMs = Number.POSITIVE_INFINITY;
  #expireAtMs: number;

  constructor(options: PageReceiverOptions) {
    const { key, senderId } = options;
    this.#options = options;
    this.#sealer = new Sealer(key, senderId, this.asking);
    this.#opener = new Opener({ key, ownId: senderId, sendersMax: SENDERS_MAX });
    this.#reportedMs = options.clock();
    const { hasGroup } = options;
    this.#membership = new Membership({ hasGroup, nowMs: this.#reportedMs });
    this.#expireAtMs = this.#reportedMs + EXPIRE_MS;
  }

  get delivery(): Channel {
    return this.#membership.delivery;
  }

  /** It is too early to say how pages come. */
  get isUndecided(): boolean {
    return this.#membership.isUndecided;
  }

  /** When a server was last heard, and since when the oldest page that was asked for is wanted. */
  get waiting(): { heardMs: number; wantedMs: number } {
    let wantedMs = Number.POSITIVE_INFINITY;
    for (const want of this.#wants.values()) wantedMs = Math.min(wantedMs, want.wantedMs);
    return { heardMs: this.#heardMs, wantedMs };
  }

  /** From a demand until its page is here, of late; 0: none was yet. */
  get demandRoundTripMs(): number {
    return this.#roundTrips[URGENCY.demand].smoothedMs;
  }

  /** What it waits for, and the pages that are in pieces. */
  get outstanding(): { demand: number; prefetch: number; assemblies: number } {
    const demand = this.#demands;
    return { demand, prefetch: this.#wants.size - demand, assemblies: this.#reassembly.size };
  }

  /**
   * Somebody waits for this page: it comes, or is reported lost. `false` when too many are waited
   * for; then ask again when one has come. Then call `advance`. `isAsked`: another thread has asked
   * for it just now.
   */
  demand(layer: number, page: number, isAsked = false): boolean {
    const key = pageKey(layer, page);
    const before = this.#wants.get(key);
    if (before?.urgency === URGENCY.demand) return true;
    if (this.#demands >= DEMANDS_MAX) {
      this.counts.demandsRefused++;
      return false;
    }
    const wantedMs = this.#options.clock();
    const want = newWant(layer, page, URGENCY.demand, wantedMs);
    this.#wants.set(key, want);
    this.#demands++;
    if (isAsked) this.#noteAsked(want, wantedMs);
    else this.#fresh.push(want);
    return true;
  }

  /** Fetch these pages when nobody waits, in this order; `false` when there are too many runs. */
  prefetch(layer: number, firstPage: number, count: number, of: PrefetchOptions = {}): boolean {
    const isTaken = of.isFirst
      ? this.#prefetch.addFirst(layer, firstPage, count)
      : this.#prefetch.add(layer, firstPage, count);
    if (!isTaken) this.counts.prefetchRunsRefused++;
    return isTaken;
  }

  /** Another way, all that was asked for by one that turned out not to lead here. */
  askAgain(): void {
    for (const want of this.#wants.values()) {
      want.deadlineMs = 0;
      want.silences = 0;
    }
    this.#deadlineMs = 0;
  }

  /** Forgets what of prefetch has not been asked for. */
  stopPrefetch(): void {
    this.#prefetch.clear();
  }

  /**
   * Takes a datagram; whatever it is, it throws nothing. Then call `advance`. Returns whether it was
   * a server's that holds the snapshot's key.
   */
  receive(datagram: Buffer): boolean {
    const opened = this.#opener.open(datagram);
    if (typeof opened === 'string') {
      this.counts.dropped[opened]++;
      return false;
    }
    const { kind, body } = opened;
    const pages = kind === DATAGRAM.pages ? decodePages(body) : undefined;
    const piece = kind === DATAGRAM.piece ? decodePiece(body) : undefined;
    const head = pages ?? piece;
    const probed = kind === DATAGRAM.probe ? decodeProbe(body) : undefined;
    if (probed !== undefined) {
      this.#takeProbe(probed, datagram.length);
      return true;
    }
    if (head === undefined) {
      this.counts.dropped[kind >= DATAGRAM.pages ? 'body' : 'kind']++;
      return false;
    }
    const nowMs = this.#options.clock();
    this.#noteHead(head, opened, datagram.length, nowMs);
    if (pages !== undefined) this.#takePages(pages, nowMs);
    if (piece !== undefined) this.#takePiece(piece, nowMs);
    return true;
  }

  /**
   * Asks for what is to be asked for now. Call it again at the time that it returns, at the latest.
   */
  advance(): number {
    const nowMs = this.#options.clock();
    const greeting = this.#membership.greet(nowMs);
    if (greeting === 'silent') this.askAgain();
    for (const want of this.#fresh) if (this.#isWanted(want)) this.#ask(want, nowMs);
    this.#fresh = [];
    if (nowMs >= this.#deadlineMs && !this.#isBehind(nowMs)) this.#retry(nowMs);
    if (nowMs >= this.#drawAtMs) this.#fillWindow(nowMs);
    this.#flush(URGENCY.demand);
    this.#flush(URGENCY.prefetch);
    if (greeting === 'hello' || nowMs >= this.#reportAtMs) this.#report(nowMs);
    if (nowMs >= this.#expireAtMs) this.#expire(nowMs);
    if (this.#membership.advance(nowMs)) {
      this.#group.reset();
      this.#options.sink.onMembership(true);
    }
    this.#shareAsking();
    return this.#nextMs();
  }

  // ---- what came

  #noteHead(head: PagesHead, from: Opened, bytes: number, nowMs: number): void {
    const { senderId, counter } = from;
    if (senderId !== this.#serverId) {
      this.#serverId = senderId;
      this.#group.reset();
      this.#unicast.reset();
    }
    this.#receiversLog2 = head.receiversLog2;
    const isGroup = head.channel === CHANNEL.group;
    (isGroup ? this.#group : this.#unicast).came(head.sequence, counter, bytes);
    const { received } = this.counts;
    countDatagram(isGroup ? received.group : received.unicast, bytes);
    this.#heardMs = nowMs;
    if (isGroup) {
      this.#groupHeardMs = nowMs;
      this.#membership.groupIsHeard();
    }
    this.#reportSoon(nowMs);
  }

  #takeProbe(channel: Channel, bytes: number): void {
    (channel === CHANNEL.group ? this.#group : this.#unicast).cameWhole(bytes);
    this.counts.probes++;
    this.#reportSoon(this.#options.clock());
  }

  #reportSoon(nowMs: number): void {
    if (this.#reportAtMs !== Number.POSITIVE_INFINITY) return;
    // Drawn from the whole time, or all receivers of a group would report at once.
    const rarer = 2 ** Math.max(0, this.#receiversLog2 - REPORT_GROUP_LOG2);
    this.#reportAtMs = nowMs + REPORT_MS * rarer * (0.5 + this.#options.random());
  }

  #takePages(pages: Pages, nowMs: number): void {
    const { layer, data } = pages;
    let end = 0;
    for (const run of pages.runs) {
      if (run.kind === PAGE_KIND.absent) {
        this.#takeAbsent(layer, run);
        continue;
      }
      for (let page = run.page; page < run.page + run.count; page++) {
        const start = end;
        end = dataEnd(run.kind, data, start);
        if (this.#isDuplicate(layer, page)) continue;
        if (run.kind === PAGE_KIND.zero) this.#handOver(layer, page, undefined, 0, nowMs);
        else if (run.kind === PAGE_KIND.data) this.#handOver(layer, page, data, start, nowMs);
        else this.#takePacked(layer, page, data.subarray(start + PACKED_HEAD_BYTES, end), nowMs);
      }
    }
  }

  /** One that can't be unpacked never came: it is asked for again. */
  #takePacked(layer: number, page: number, packed: Buffer, nowMs: number): void {
    if (unpackPage(packed, this.#unpacked)) this.#handOver(layer, page, this.#unpacked, 0, nowMs);
    else this.counts.dropped.body++;
  }

  #isDuplicate(layer: number, page: number): boolean {
    if (this.#wants.has(pageKey(layer, page))) return false;
    if (!this.#options.sink.isHeld(layer, page)) return false;
    this.counts.duplicatePieces++;
    return true;
  }

  #takeAbsent(layer: number, run: PageRun): void {
    for (let page = run.page; page < run.page + run.count; page++) {
      const want = this.#wants.get(pageKey(layer, page));
      if (want !== undefined) this.#lose(want, 'absent');
    }
  }

  #takePiece(piece: Piece, nowMs: number): void {
    const { layer, page } = piece;
    if (this.#isDuplicate(layer, page)) return;
    const key = pageKey(layer, page);
    const want = this.#wants.get(key);
    const outcome = this.#reassembly.put(key, piece, nowMs);
    if (outcome === 'duplicate') this.counts.duplicatePieces++;
    else if (outcome !== 'more') this.#handOver(layer, page, outcome, 0, nowMs);
    else if (want !== undefined) this.#expectRest(want, nowMs);
  }

  /** A page's pieces are sent one after another: what lacks soon is lost. */
  #expectRest(want: Want, nowMs: number): void {
    const soonMs = nowMs + this.#roundTrips[want.urgency].timeoutMs() / 2;
    if (soonMs >= want.deadlineMs) return;
    want.deadlineMs = soonMs;
    this.#deadlineMs = Math.min(this.#deadlineMs, soonMs);
  }

  #handOver(
    layer: number,
    page: number,
    bytes: Buffer | undefined,
    offset: number,
    nowMs: number,
  ): void {
    const { sink } = this.#options;
    const key = pageKey(layer, page);
    const want = this.#wants.get(key);
    const reason = want === undefined ? 'others' : reasonOf(want);
    if (want !== undefined) this.#settle(want);
    else this.#unaskedPages++;
    if (want?.attempts === 1) this.#measure(want, nowMs);
    this.#reassembly.drop(key);
    this.counts.pages[reason]++;
    if (bytes !== undefined) sink.onPage(layer, page, bytes, offset, reason);
    else {
      this.counts.zeroPages++;
      sink.onZeroPage(layer, page, reason);
    }
  }

  #measure(want: Want, nowMs: number): void {
    const tookMs = nowMs - want.askedMs;
    const roundTrip = this.#roundTrips[want.urgency];
    roundTrip.sample(tookMs);
    if (want.askedMs > this.#newestAskedMs[want.urgency]) {
      this.#newestAskedMs[want.urgency] = want.askedMs;
      this.#deadlineMs = Math.min(this.#deadlineMs, nowMs + OVERTAKEN_MS);
    }
    if (want.urgency === URGENCY.demand) {
      this.#prefetch.demandTook(tookMs, roundTrip.leastMs, nowMs);
    }
  }

  // ---- what is asked for

  #isWanted(want: Want): boolean {
    return this.#wants.get(pageKey(want.layer, want.page)) === want;
  }

  #ask(want: Want, nowMs: number): void {
    this.#noteAsked(want, nowMs);
    const runs = this.#requests[want.urgency];
    runs.add(want.layer, want.page, this.#reassembly.missing(pageKey(want.layer, want.page)));
    if (runs.isFull) this.#flush(want.urgency);
  }

  #noteAsked(want: Want, nowMs: number): void {
    // A server that is heard has only lost this page on the way; one that is not may be overloaded.
    if (want.attempts > 0 && this.#heardMs < want.askedMs) want.silences++;
    want.attempts++;
    want.askedMs = nowMs;
    const timeoutMs = this.#roundTrips[want.urgency].timeoutMs() * 2 ** want.silences;
    const jitter = 1 + RETRY_JITTER * this.#options.random();
    want.deadlineMs = nowMs + Math.min(timeoutMs, RETRY_MS_MAX) * jitter;
    this.#deadlineMs = Math.min(this.#deadlineMs, want.deadlineMs);
  }

  #flush(urgency: Urgency): void {
    const runs = this.#requests[urgency];
    if (runs.isEmpty) return;
    this.#shareAsking();
    const { delivery, seen, roundTripUs } = this.asking;
    const request = { urgency, delivery, seen, roundTripUs, runs: runs.take() };
    const bytes = this.#send(DATAGRAM.request, encodeRequest(request));
    countDatagram(this.counts.requestsSent, bytes);
  }

  #shareAsking(): void {
    const roundTripUs = Math.round(this.#networkRoundTripMs() * 1000);
    const { delivery } = this;
    const { highest } = delivery === CHANNEL.group ? this.#group : this.#unicast;
    this.asking.set(delivery, highest, roundTripUs);
  }

  /** Of a page that waits for nothing: in demand, or the fastest of prefetch. */
  #networkRoundTripMs(): number {
    const [demand, prefetch] = this.#roundTrips;
    if (demand.smoothedMs > 0) return demand.smoothedMs;
    return prefetch.smoothedMs > 0 ? prefetch.leastMs : demand.timeoutMs();
  }

  #isBehind(nowMs: number): boolean {
    if (this.#options.isBehind?.() !== true) {
      this.#behindSinceMs = Number.POSITIVE_INFINITY;
      return false;
    }
    this.#behindSinceMs = Math.min(this.#behindSinceMs, nowMs);
    if (nowMs - this.#behindSinceMs >= BEHIND_MS_MAX) return false;
    this.#deadlineMs = nowMs + BEHIND_LOOK_MS;
    return true;
  }

  #retry(nowMs: number): void {
    this.#deadlineMs = Number.POSITIVE_INFINITY;
    for (const want of this.#wants.values()) {
      const isOvertaken = want.askedMs + OVERTAKEN_MS < this.#newestAskedMs[want.urgency];
      if (want.deadlineMs > nowMs && !isOvertaken) {
        this.#deadlineMs = Math.min(this.#deadlineMs, want.deadlineMs);
      } else if (nowMs - want.wantedMs >= this.#options.lostAfterMs) {
        this.#lose(want, 'timeout');
      } else {
        const isSilent = nowMs - Math.max(this.#groupHeardMs, want.wantedMs) >= SILENT_MS;
        if (want.attempts >= SILENT_ATTEMPTS && isSilent) this.#membership.groupIsSilent();
        this.counts.pagesRetried++;
        this.#ask(want, nowMs);
      }
    }
  }

  #fillWindow(nowMs: number): void {
    this.#drawAtMs = 0;
    const { windowPages } = this.#prefetch;
    const room = windowPages - (this.#wants.size - this.#demands);
    if (this.#prefetch.runCount === 0 || room < windowPages / 2) return;
    if (this.#membership.isUndecided) {
      this.#drawAtMs = this.#membership.nextMs;
      return;
    }
    if (this.delivery === CHANNEL.group && !(this.#isLead(windowPages) && this.#drawsToAsk())) {
      const waitMs = Math.max(this.#networkRoundTripMs(), DRAW_AGAIN_MS_MIN);
      this.#drawAtMs = nowMs + waitMs * (0.5 + this.#options.random());
      return;
    }
    this.#prefetch.take(room, (layer, page) => this.#wantAhead(layer, page, nowMs));
  }

  /**
   * Whether to ask, and not to follow: while others make the server send what is wanted here too,
   * all of that is for nothing. One that comes late so gets the rest with the others, and then asks
   * for what it missed, like all that came late.
   */
  #isLead(windowPages: number): boolean {
    const isLead = this.#unaskedPages < windowPages * FOLLOW_SHARE;
    this.#unaskedPages = 0;
    return isLead;
  }

  #drawsToAsk(): boolean {
    return this.#options.random() < 2 ** (ASKERS_LOG2 - this.#receiversLog2);
  }

  #wantAhead(layer: number, page: number, nowMs: number): boolean {
    const key = pageKey(layer, page);
    if (this.#wants.has(key) || this.#options.sink.isHeld(layer, page)) return false;
    const want = newWant(layer, page, URGENCY.prefetch, nowMs);
    this.#wants.set(key, want);
    this.#ask(want, nowMs);
    return true;
  }

  #settle(want: Want): void {
    this.#wants.delete(pageKey(want.layer, want.page));
    if (want.urgency === URGENCY.demand) this.#demands--;
  }

  #lose(want: Want, lost: LostReason): void {
    this.#settle(want);
    this.#reassembly.drop(pageKey(want.layer, want.page));
    this.counts.pagesLost[lost]++;
    this.#options.sink.onLost(want.layer, want.page, lost, reasonOf(want));
  }

  // ---- what is told, and kept in order

  #report(nowMs: number): void {
    this.#reportAtMs = Number.POSITIVE_INFINITY;
    const group = this.#group.takeReport();
    const unicast = this.#unicast.takeReport();
    const intervalMs = Math.min(Math.max(1, Math.round(nowMs - this.#reportedMs)), REPORT_MS_MAX);
    this.#reportedMs = nowMs;
    if (this.#membership.report(group, nowMs)) {
      this.counts.timesLeftGroup++;
      this.#options.sink.onMembership(false);
    }
    const report = { delivery: this.delivery, intervalMs, group, unicast };
    countDatagram(this.counts.reportsSent, this.#send(DATAGRAM.report, encodeReport(report)));
  }

  #expire(nowMs: number): void {
    this.#expireAtMs = nowMs + EXPIRE_MS;
    this.#reassembly.expire(nowMs, (key) => this.#wants.has(key));
    const { counts } = this;
    counts.assembliesEvicted = this.#reassembly.evicted;
    counts.assembliesExpired = this.#reassembly.expired;
    counts.now.roundTripMs = this.#roundTrips[URGENCY.demand].smoothedMs;
    counts.now.prefetchWindowPages = this.#prefetch.windowPages;
  }

  #nextMs(): number {
    const drawAtMs = this.#drawAtMs > 0 ? this.#drawAtMs : Number.POSITIVE_INFINITY;
    const expireAtMs = this.#reassembly.size > 0 ? this.#expireAtMs : Number.POSITIVE_INFINITY;
    const returnAtMs = this.#membership.nextMs;
    return Math.min(this.#deadlineMs, drawAtMs, this.#reportAtMs, expireAtMs, returnAtMs);
  }

  #send(kind: DatagramKind, body: Buffer): number {
    const length = this.#sealer.sealInto(this.#datagram, kind, body);
    this.#options.send(this.#datagram.subarray(0, length), kind === DATAGRAM.request);
    return length;
  }
}

function newWant(layer: number, page: number, urgency: Urgency, wantedMs: number): Want {
  const never = { attempts: 0, silences: 0, askedMs: wantedMs, deadlineMs: wantedMs };
  return { layer, page, urgency, wantedMs, ...never };
}

function reasonOf(want: Want): Reason {
  return want.urgency === URGENCY.demand ? 'demand' : 'prefetch';
}
