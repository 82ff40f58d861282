// A process's connection to one origin: a receiver with its alarm. Calls the receiver on when
// something came, was asked for, or is due. Made by `PageNetwork.connect`; the pager asks it for
// pages.

import { randomBytes } from 'node:crypto';
import type { ReceiverCounts } from '../counts.js';
import { PageReceiver } from '../receiver/page-receiver.js';
import type { Channel } from '../wire/datagrams.js';
import { newSenderId, type SnapshotKey } from '../wire/sealing.js';
import { Alarm } from './alarm.js';
import type { OriginSink } from './page-network.js';

const SENDER_RANDOM_BYTES = 8;
const clock = (): number => performance.now();

export class OriginClient {
  readonly #receiver: PageReceiver;
  readonly #alarm: Alarm;
  readonly #closed: () => Promise<void>;
  /** The receiver is at work: what its sink asks for is seen to after that. */
  #isBusy = false;
  #isClosed = false;

  constructor(of: {
    readonly key: SnapshotKey;
    readonly sink: OriginSink;
    readonly lostAfterMs: number;
    readonly hasGroup: boolean;
    readonly send: (datagram: Buffer) => void;
    readonly setMembership: (isMember: boolean) => void;
    readonly closed: () => Promise<void>;
  }) {
    const { sink } = of;
    this.#closed = of.closed;
    this.#alarm = new Alarm({ clock, ring: () => this.advance() });
    this.#receiver = new PageReceiver({
      key: of.key,
      senderId: newSenderId(randomBytes(SENDER_RANDOM_BYTES)),
      sink: {
        onPage: sink.onPage.bind(sink),
        onZeroPage: sink.onZeroPage.bind(sink),
        onLost: sink.onLost.bind(sink),
        isHeld: sink.isHeld.bind(sink),
        onMembership: of.setMembership,
      },
      send: of.send,
      clock,
      random: Math.random,
      lostAfterMs: of.lostAfterMs,
      hasGroup: of.hasGroup,
    });
  }

  /** As `PageReceiver.demand`; the request is on its way when this returns. */
  demand(layer: number, page: number): boolean {
    if (this.#isClosed) return false;
    const isTaken = this.#receiver.demand(layer, page);
    this.advance();
    return isTaken;
  }

  /** As `PageReceiver.prefetch`. */
  prefetch(layer: number, firstPage: number, count: number): boolean {
    if (this.#isClosed) return false;
    const isTaken = this.#receiver.prefetch(layer, firstPage, count);
    this.#alarm.set(clock());
    return isTaken;
  }

  stopPrefetch(): void {
    this.#receiver.stopPrefetch();
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

  /** A datagram that names its key. Then call `advance`, when there are no more for now. */
  take(datagram: Buffer): void {
    if (this.#isClosed) return;
    this.#isBusy = true;
    this.#receiver.receive(datagram);
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
    const nextMs = this.#receiver.advance();
    this.#isBusy = false;
    this.#alarm.set(nextMs);
  }
}
