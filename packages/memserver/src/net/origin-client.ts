// A process's connection to one origin: a receiver with its alarm. Calls the receiver on when
// something came, was asked for, or is due. Made by `PageNetwork.connect`; the pager asks it for
// pages.

import { randomBytes } from 'node:crypto';
import { countDatagram, type ReceiverCounts } from '../counts.js';
import {
  PageReceiver,
  type PageSink,
  type PrefetchOptions,
  type Reason,
} from '../receiver/page-receiver.js';
import type { Address } from '../server/known-receivers.js';
import type { Channel } from '../wire/datagrams.js';
import { newSenderId, type SnapshotKey } from '../wire/sealing.js';
import { Alarm } from './alarm.js';
import type { AskedHost } from './asked-host.js';
import { LINGER_MS } from './linger.js';
import { ASKED_BYTES, type AskingTerms } from './page-asker.js';

const SENDER_RANDOM_BYTES = 8;
/** Demands that the receiver would not take yet are tried again. */
const DEMAND_AGAIN_MS = 1;
const clock = (): number => performance.now();

/** Takes what came: groups are joined and left for it. */
export type OriginSink = Omit<PageSink, 'onMembership'>;

export class OriginClient {
  readonly #receiver: PageReceiver;
  readonly #alarm: Alarm;
  readonly #asked: AskedHost;
  readonly #linger: () => void;
  readonly #closed: () => Promise<void>;
  /** For other threads, which may ask in its name until it is closed. */
  readonly asking: AskingTerms;
  /** The receiver is at work: what its sink asks for is seen to after that. */
  #isBusy = false;
  /** What is taken now comes from the neighbour. */
  #isNeighboursWord = false;
  #isClosed = false;

  constructor(of: {
    readonly key: SnapshotKey;
    readonly sink: OriginSink;
    readonly lostAfterMs: number;
    readonly hasGroup: boolean;
    readonly asked: AskedHost;
    readonly send: (datagram: Buffer, to: Address) => void;
    /** By which `send` does that: for other threads. */
    readonly descriptor: number;
    /** Waits for what comes without going to sleep, for so long. */
    readonly linger: () => void;
    readonly isBehind: () => boolean;
    readonly setMembership: (isMember: boolean) => void;
    readonly closed: () => Promise<void>;
  }) {
    const { sink, asked } = of;
    this.#asked = asked;
    this.#linger = of.linger;
    this.#closed = of.closed;
    this.#alarm = new Alarm({ clock, ring: () => this.advance() });
    const senderId = newSenderId(randomBytes(SENDER_RANDOM_BYTES));
    this.#receiver = new PageReceiver({
      key: of.key,
      senderId,
      sink: {
        onPage: sink.onPage.bind(sink),
        onZeroPage: sink.onZeroPage.bind(sink),
        onLost: (layer, page, lost, reason) => {
          if (lost === 'absent' && this.#isNeighboursWord) this.#askOrigin(layer, page, reason);
          else sink.onLost(layer, page, lost, reason);
        },
        isHeld: sink.isHeld.bind(sink),
        onMembership: of.setMembership,
      },
      send: (datagram, isRequest) => {
        of.send(datagram, asked.address(this.#receiver));
        const tried = isRequest ? asked.takeTried(this.#receiver, clock()) : undefined;
        if (tried !== undefined) of.send(datagram, tried);
      },
      clock,
      random: Math.random,
      lostAfterMs: of.lostAfterMs,
      hasGroup: of.hasGroup,
      isBehind: of.isBehind,
    });
    const { memory } = this.#receiver.asking;
    const { key } = of;
    const senderKey = new Uint8Array(key.senderKey(senderId));
    const { descriptor } = of;
    const { addresses } = asked;
    this.asking = { descriptor, addresses, keyId: key.id, senderId, senderKey, memory };
  }

  /**
   * As `PageReceiver.demand`; the request is on its way when this returns, and the page may have come
   * when another thread had asked for it.
   */
  demand(layer: number, page: number, isAsked = false): boolean {
    if (this.#isClosed) return false;
    // Whom the other thread has asked is not whom it should have tried.
    const isAskedAll = isAsked && !this.#asked.isTryDue(this.#receiver, clock());
    const isTaken = this.#receiver.demand(layer, page, isAskedAll);
    if (isAsked) countDatagram(this.counts.requestsSent, ASKED_BYTES);
    this.advance();
    // The processor of the clone that waits has nothing to do.
    if (isAsked && this.#receiver.demandRoundTripMs <= LINGER_MS) this.#linger();
    return isTaken;
  }

  /** As `PageReceiver.prefetch`. */
  prefetch(layer: number, firstPage: number, count: number, of: PrefetchOptions = {}): boolean {
    if (this.#isClosed) return false;
    const isTaken = this.#receiver.prefetch(layer, firstPage, count, of);
    this.#alarm.set(clock());
    return isTaken;
  }

  stopPrefetch(): void {
    this.#receiver.stopPrefetch();
  }

  /** Pages come from a neighbour now, not from the origin. */
  get asksNeighbour(): boolean {
    return this.#asked.isNeighbour(this.#receiver);
  }

  get counts(): ReceiverCounts {
    return this.#receiver.counts;
  }

  /** What it waits for, and the pages that are in pieces. */
  get outstanding(): { demand: number; prefetch: number; assemblies: number } {
    return this.#receiver.outstanding;
  }

  /** Whether pages come by the group or by unicast, as it has turned out. */
  get delivery(): Channel {
    return this.#receiver.delivery;
  }

  /**
   * A datagram that names its key, and who sent it. Then call `advance`, when there are no more for
   * now.
   */
  take(datagram: Buffer, from: Address): void {
    if (this.#isClosed) return;
    this.#isBusy = true;
    this.#isNeighboursWord = this.#asked.isNeighbourAt(from);
    const isServers = this.#receiver.receive(datagram);
    if (isServers && this.#isNeighboursWord) this.#asked.neighbourAnswered();
    this.#isNeighboursWord = false;
    this.#isBusy = false;
  }

  /** What it waits for is neither handed over nor reported lost. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#alarm.stop();
    await this.#closed();
  }

  /** Asks for what is to be asked for now. */
  advance(): void {
    if (this.#isBusy || this.#isClosed) return;
    this.#isBusy = true;
    if (this.#asked.look(this.#receiver, clock())) this.#receiver.askAgain();
    const nextMs = this.#receiver.advance();
    this.#receiver.asking.addressIndex = this.#asked.addressIndex(this.#receiver);
    this.#isBusy = false;
    this.#alarm.set(nextMs);
  }

  /** A neighbour has the page no more, and will not fetch it: it is not what it should be. */
  #askOrigin(layer: number, page: number, reason: Reason): void {
    const wasAsked = this.#asked.giveUp(clock());
    setImmediate(() => {
      if (this.#isClosed) return;
      if (wasAsked) this.#receiver.askAgain();
      if (reason === 'demand') this.#demandSoon(layer, page);
      else this.prefetch(layer, page, 1, { isFirst: true });
    });
  }

  /** As soon as there is room for it. */
  #demandSoon(layer: number, page: number): void {
    if (this.#isClosed || this.demand(layer, page)) return;
    setTimeout(() => this.#demandSoon(layer, page), DEMAND_AGAIN_MS);
  }
}
