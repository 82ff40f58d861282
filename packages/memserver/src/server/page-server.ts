// The memory server of one snapshot: takes requests and reports, and sends pages, paced, to the
// group or by unicast. Decides who gets what and when; `docs/internals/multicast.md` says why. Has
// no clock, no socket and no file of its own: `receive` what came, `advance` when it says so.

import { newServerCounts, type ServerCounts } from '../counts.js';
import { pageKey } from '../page-key.js';
import {
  CHANNEL,
  decodeReport,
  decodeRequest,
  type Request,
  type RequestRun,
  URGENCY,
  type Urgency,
} from '../wire/datagrams.js';
import { allPieces, type BodySizes } from '../wire/geometry.js';
import { DATAGRAM, Opener, Sealer, type SnapshotKey } from '../wire/sealing.js';
import { aheadOf } from '../wire/sequence.js';
import { Flow } from './flow.js';
import {
  ACTIVE_MS,
  type Address,
  applyReport,
  type KnownReceiver,
  KnownReceivers,
  noteLargest,
  RECEIVERS_MAX,
  takesLarge,
} from './known-receivers.js';
import { Outgoing, type Send } from './outgoing.js';
import type { PageSource } from './page-loader.js';
import type { NewPage, QueuedPage } from './page-queue.js';
import type { SentPage } from './sent-pages.js';
import type { TokenBucket } from './token-bucket.js';
import { WaitingPages, type WantedPage } from './waiting-pages.js';

/** So many pages may one receiver have waiting in a flow; it asks again for the rest. */
export const RECEIVER_QUEUED_PAGES_MAX = 2048;
/** A page counts as under way for so many round trips of the one that asks, and this on top. */
const UNDER_WAY_ROUND_TRIPS = 1.5;
const UNDER_WAY_SLACK_MS = 2;
const UNDER_WAY_MS_MAX = 1000;
/**
 * While the group is sent more, those who lack a page learn so from what comes after it: until they
 * do, it waits in their sockets.
 */
const FOLLOWED_MS_MAX = 250;
/**
 * Unicast when fewer receivers than this, beside the one that asks, are likely to lack the page.
 */
const END_GAME_OTHERS = 0.25;
const SURVEY_MS = 20;
/** After a receiver came: those that follow soon must know how many they are. */
const SURVEY_NEW_MS = 1;
/** Lets receivers find out that multicast reaches them, and that the last datagrams were lost. */
const SIGN_OF_LIFE_MS = 200;
/** After a receiver came: those that come with it are greeted with it. */
const GREET_MS = 1;
/** A path in use is probed so often: it may be another one by now. */
const PROBE_MS = 250;
/** A report speaks for pacing of so long ago. */
const LIMITED_MS = 200;
/** What is assumed of a receiver, as a share of the link's rate, before it reports. */
const RATE_START = 0.1;

export interface PageServerOptions {
  readonly key: SnapshotKey;
  /** As `newSenderId` makes it. */
  readonly senderId: number;
  readonly source: PageSource;
  readonly send: Send;
  /** Milliseconds, never goes back. */
  readonly clock: () => number;
  /** Room for a datagram's body on the path. */
  readonly bodySizes: BodySizes;
  /** Paces all that leaves by a link: shared by the servers of a process. */
  readonly link: TokenBucket;
  /** Where the source has pages that are awaited: told which of them, in batches. */
  readonly wanted?: ((pages: readonly WantedPage[]) => void) | undefined;
}

export class PageServer {
  readonly counts: ServerCounts = newServerCounts();
  readonly #clock: () => number;
  readonly #opener: Opener;
  readonly #outgoing: Outgoing;
  readonly #link: TokenBucket;
  readonly #receivers: KnownReceivers;
  readonly #group: Flow;
  /** Of those that were sent something by unicast; they go with their receiver. */
  readonly #unicast = new WeakMap<KnownReceiver, Flow>();
  /** Something has gone by them, or is about to, since their paths were last probed. */
  readonly #toProbe = new Set<Flow>();
  readonly #waiting: WaitingPages | undefined;
  /** Flows that have something to send, and which of them is next. */
  readonly #active: Flow[] = [];
  #turn = 0;
  #groupSentMs: number;
  #surveyAtMs = Number.POSITIVE_INFINITY;
  #heardMs = Number.NEGATIVE_INFINITY;
  #greetAtMs = Number.POSITIVE_INFINITY;
  #probedMs = Number.NEGATIVE_INFINITY;
  #probeAtMs = Number.POSITIVE_INFINITY;

  constructor(options: PageServerOptions) {
    const { key, senderId, source, send, bodySizes, wanted } = options;
    this.#clock = options.clock;
    this.#groupSentMs = this.#clock();
    this.#link = options.link;
    this.#opener = new Opener({ key, ownId: senderId, sendersMax: RECEIVERS_MAX });
    const sealer = new Sealer(key, senderId);
    const { counts } = this;
    this.#outgoing = new Outgoing({ source, sealer, send, counts, bodySizes });
    const rateMax = this.#link.bytesPerSecond;
    this.#receivers = new KnownReceivers({ rateStart: rateMax * RATE_START, rateMax });
    this.#group = this.#newFlow(undefined);
    this.#waiting = wanted && new WaitingPages({ source, wanted });
  }

  /** Pages that wait to be sent to the group, and to single receivers. */
  get queuedPages(): { group: number; unicast: number } {
    let unicast = 0;
    for (const flow of this.#active) if (flow !== this.#group) unicast += flow.size;
    return { group: this.#group.size, unicast };
  }

  /** Pages wait to be sent. */
  get isSending(): boolean {
    return this.#active.length > 0;
  }

  get knownReceivers(): number {
    return this.#receivers.size;
  }

  /** Takes a datagram; whatever it is, it throws nothing. Then call `advance`. */
  receive(datagram: Buffer, from: Address): void {
    const opened = this.#opener.open(datagram);
    if (typeof opened === 'string') {
      this.counts.dropped[opened]++;
      return;
    }
    const { kind, senderId, body } = opened;
    const request = kind === DATAGRAM.request ? decodeRequest(body) : undefined;
    const report = kind === DATAGRAM.report ? decodeReport(body) : undefined;
    const delivery = request?.delivery ?? report?.delivery;
    if (delivery === undefined) {
      this.counts.dropped[kind >= DATAGRAM.pages ? 'kind' : 'body']++;
      return;
    }
    const nowMs = this.#clock();
    const groupSequence = this.#group.sequence;
    const of = { from, delivery, nowMs, groupSequence };
    const before = this.#receivers.size;
    const receiver = this.#receivers.heard(senderId, of);
    if (receiver === undefined) {
      this.counts.receiversRefused++;
      return;
    }
    this.#heardMs = nowMs;
    if (this.#receivers.size > before) {
      this.#surveyAtMs = Math.min(this.#surveyAtMs, nowMs + SURVEY_NEW_MS);
    }
    // One that has just come must not wait for the next survey to get what it asks for.
    if (delivery === CHANNEL.group && !takesLarge(receiver, delivery, nowMs)) {
      this.#group.isLarge = false;
    }
    if (request !== undefined) this.#takeRequest(request, receiver, nowMs);
    if (report !== undefined) {
      this.counts.reports++;
      // It has only come, and wants to know whether the group reaches it.
      if (report.group.expected === 0 && report.unicast.expected === 0) this.#greet(nowMs);
      const group = nowMs - this.#group.limitedAtMs < LIMITED_MS;
      const unicast = nowMs - (this.#unicast.get(receiver)?.limitedAtMs ?? 0) < LIMITED_MS;
      applyReport(receiver, report, { group, unicast });
      const { largestBytes } = this.#outgoing;
      if (largestBytes > 0) noteLargest(receiver, report, { nowMs, largestBytes });
    }
  }

  /** Sends what may be sent now. Call it again at the time that it returns, or after `receive`. */
  advance(): number {
    const nowMs = this.#clock();
    this.#waiting?.advance(nowMs, this.#came);
    if (nowMs >= this.#surveyAtMs) this.#survey(nowMs);
    const now = { ms: nowMs, receiversLog2: this.#receiversLog2 };
    if (nowMs >= this.#signOfLifeAtMs) {
      this.#outgoing.sendSignOfLife(this.#group, now);
      this.#groupSentMs = nowMs;
      this.#greetAtMs = Number.POSITIVE_INFINITY;
    }
    if (nowMs >= this.#probeAtMs) this.#probe(nowMs);
    for (;;) {
      const linkWaitMs = this.#link.waitMs(nowMs);
      if (linkWaitMs > 0) return this.#nextMs(nowMs + linkWaitMs);
      const chosen = this.#choose(nowMs);
      if (typeof chosen === 'number') return this.#nextMs(chosen);
      this.#sendFrom(chosen.flow, chosen.urgency, now);
    }
  }

  #takeRequest(request: Request, receiver: KnownReceiver, nowMs: number): void {
    this.counts.requests++;
    for (const run of request.runs) {
      for (let page = run.page; page < run.page + run.count; page++) {
        this.counts.pagesAsked++;
        const outcome = this.#ask(receiver, request, run, page, nowMs);
        if (outcome === 'under way' || outcome === 'merged') this.counts.pagesSuppressed++;
        if (outcome === 'full') this.counts.pagesRefused++;
      }
    }
  }

  #ask(
    receiver: KnownReceiver,
    request: Request,
    run: RequestRun,
    page: number,
    nowMs: number,
  ): 'added' | 'merged' | 'full' | 'under way' {
    const { layer } = run;
    const { urgency } = request;
    const waits = this.#waiting?.take({ layer, page, urgency, asker: receiver }, nowMs);
    if (waits !== undefined) return waits;
    const isAlone = request.delivery === CHANNEL.unicast;
    const flow = isAlone ? this.#flowOf(receiver) : this.#group;
    let pieces = this.#piecesOf(run);
    let isRepair = false;
    const sent = flow.sent.find(pageKey(layer, page));
    if (sent !== undefined) {
      if (this.#isUnderWay(flow, sent, request, nowMs)) pieces &= ~sent.pieces;
      if (pieces === 0) return 'under way';
      isRepair = !isAlone && aheadOf(sent.sequence, receiver.joinedSequence) > 0;
    }
    const queuedPages = isAlone ? flow.size : receiver.queuedPages;
    if (queuedPages >= RECEIVER_QUEUED_PAGES_MAX && !flow.has(layer, page)) return 'full';
    const asked = { layer, page, pieces, asker: receiver, isRepair };
    const outcome = this.#enqueue(flow, request.urgency, asked);
    if (outcome === 'added' && !isAlone) receiver.queuedPages++;
    return outcome;
  }

  /** Not lost, as far as the one that asks can know: nothing that was sent later has come to it. */
  #isUnderWay(flow: Flow, sent: SentPage, request: Request, nowMs: number): boolean {
    const slackMs = flow === this.#group ? this.#slackMs : UNDER_WAY_SLACK_MS;
    const windowMs = (request.roundTripUs / 1000) * UNDER_WAY_ROUND_TRIPS + slackMs;
    const isFollowed = sent.sequence !== flow.sequence;
    const leastMs = isFollowed ? FOLLOWED_MS_MAX : 0;
    const isRecent = nowMs - sent.sentMs < Math.min(Math.max(windowMs, leastMs), UNDER_WAY_MS_MAX);
    return isRecent && aheadOf(sent.sequence, request.seen) > 0;
  }

  /** A page that was awaited: to each who asked for it. */
  readonly #came = ({ layer, page, urgency }: WantedPage, asker: KnownReceiver): void => {
    const pieces = allPieces(this.#outgoing.pieceCount);
    const of = { layer, page, pieces, asker, isRepair: false };
    this.#enqueue(this.#flowOf(asker), urgency, of);
  };

  /** How late a request may come: the more receivers there are, the more of them come at once. */
  get #slackMs(): number {
    return UNDER_WAY_SLACK_MS * (1 + this.#receiversLog2 / 2);
  }

  get #receiversLog2(): number {
    return Math.ceil(Math.log2(Math.max(this.counts.now.groupReceivers, 1)));
  }

  #piecesOf(run: RequestRun): number {
    const { pieceCount } = this.#outgoing;
    return run.pieceCount === pieceCount ? run.pieces : allPieces(pieceCount);
  }

  #enqueue(
    flow: Flow,
    urgency: Urgency,
    page: NewPage<KnownReceiver>,
  ): 'added' | 'merged' | 'full' {
    const outcome = flow.add(urgency, page);
    if (outcome === 'added' && !flow.isActive) {
      flow.isActive = true;
      if (flow !== this.#group) {
        flow.isLarge = takesLarge(flow.receiver!, CHANNEL.unicast, this.#clock());
      }
      this.#active.push(flow);
    }
    return outcome;
  }

  /** Demand of all flows in turn, then prefetch of all flows in turn; or when one may go on. */
  #choose(nowMs: number): { flow: Flow; urgency: Urgency } | number {
    let earliestMs = Number.POSITIVE_INFINITY;
    const { length } = this.#active;
    for (const urgency of [URGENCY.demand, URGENCY.prefetch] as const) {
      for (let step = 0; step < length; step++) {
        const index = (this.#turn + step) % length;
        const flow = this.#active[index]!;
        if (flow.queues[urgency].size === 0) continue;
        const waitMs = flow.bucket.waitMs(nowMs);
        if (waitMs === 0) {
          this.#turn = index + 1;
          return { flow, urgency };
        }
        flow.limitedAtMs = nowMs;
        earliestMs = Math.min(earliestMs, nowMs + waitMs);
      }
    }
    return earliestMs;
  }

  #sendFrom(flow: Flow, urgency: Urgency, now: { ms: number; receiversLog2: number }): void {
    const queue = flow.queues[urgency];
    const first = queue.first()!;
    if (flow === this.#group && this.#isEndGame(first)) {
      flow.take(urgency, first);
      this.counts.pagesEndGame++;
      this.#enqueue(this.#flowOf(first.asker), urgency, first);
      this.#rest(flow);
      return;
    }
    const bytes = this.#outgoing.sendNext(flow, urgency, now);
    flow.bucket.take(bytes);
    this.#link.take(bytes);
    if (flow === this.#group) this.#groupSentMs = now.ms;
    if (this.#outgoing.largestBytes > 0) this.#probeSoon(flow, now.ms);
    this.#rest(flow);
  }

  /** Shows itself to the group, and soon what size of datagram comes. */
  #greet(nowMs: number): void {
    this.#greetAtMs = Math.min(this.#greetAtMs, nowMs + GREET_MS);
    if (this.#outgoing.largestBytes > 0) this.#probeSoon(this.#group, nowMs);
  }

  #probeSoon(flow: Flow, nowMs: number): void {
    this.#toProbe.add(flow);
    const atMs = Math.max(this.#probedMs + PROBE_MS, nowMs + GREET_MS);
    this.#probeAtMs = Math.min(this.#probeAtMs, atMs);
  }

  /** Finds out what size of datagram comes whole, by every flow that is in use. */
  #probe(nowMs: number): void {
    this.#probedMs = nowMs;
    this.#probeAtMs = Number.POSITIVE_INFINITY;
    for (const flow of this.#toProbe) this.#link.take(this.#outgoing.sendProbe(flow));
    this.#toProbe.clear();
  }

  /** Takes a flow that has nothing left out of the round. */
  #rest(flow: Flow): void {
    if (flow.size > 0) return;
    flow.isActive = false;
    this.#active.splice(this.#active.indexOf(flow), 1);
  }

  /** Whether a page that only one receiver asks for is best sent to it alone. */
  #isEndGame(page: QueuedPage<KnownReceiver>): boolean {
    if (page.isShared || !page.isRepair) return false;
    const times = this.#group.sent.find(pageKey(page.layer, page.page))?.times;
    if (times === undefined) return false;
    const { groupReceivers, groupLoss } = this.counts.now;
    return (groupReceivers - 1) * groupLoss ** times < END_GAME_OTHERS;
  }

  #flowOf(receiver: KnownReceiver): Flow {
    const known = this.#unicast.get(receiver);
    if (known !== undefined) return known;
    const flow = this.#newFlow(receiver);
    this.#unicast.set(receiver, flow);
    return flow;
  }

  #newFlow(receiver: KnownReceiver | undefined): Flow {
    const bytesPerSecond = receiver?.unicast.ceiling ?? this.#link.bytesPerSecond * RATE_START;
    return new Flow({ receiver, bytesPerSecond, nowMs: this.#clock() });
  }

  /** Sets the rates anew, from what receivers have reported. */
  #survey(nowMs: number): void {
    const group = this.#receivers.survey(nowMs, (receiver) => {
      const flow = this.#unicast.get(receiver);
      if (flow?.isActive) this.#active.splice(this.#active.indexOf(flow), 1);
    });
    this.#group.bucket.setRate(group.bytesPerSecond, nowMs);
    this.#group.isLarge = group.isLarge;
    for (const flow of this.#active) {
      const { bucket, receiver } = flow;
      if (receiver === undefined) continue;
      bucket.setRate(receiver.unicast.ceiling, nowMs);
      flow.isLarge = takesLarge(receiver, CHANNEL.unicast, nowMs);
    }
    const { now } = this.counts;
    now.receivers = this.#receivers.size;
    now.groupReceivers = group.receivers;
    now.groupBytesPerSecond = group.bytesPerSecond;
    now.groupLoss = group.loss;
    now.groupBodyBytes = this.#outgoing.bodyBytes(this.#group);
    this.#surveyAtMs = now.receivers > 0 ? nowMs + SURVEY_MS : Number.POSITIVE_INFINITY;
  }

  /** When the group was silent for long, while somebody listens. */
  get #signOfLifeAtMs(): number {
    const atMs = Math.min(this.#groupSentMs + SIGN_OF_LIFE_MS, this.#greetAtMs);
    return atMs < this.#heardMs + ACTIVE_MS ? atMs : Number.POSITIVE_INFINITY;
  }

  #nextMs(sendMs: number): number {
    const waitingMs = this.#waiting?.nextMs ?? Number.POSITIVE_INFINITY;
    const signOfLifeMs = this.#signOfLifeAtMs;
    return Math.min(sendMs, this.#surveyAtMs, signOfLifeMs, this.#probeAtMs, waitingMs);
  }
}
