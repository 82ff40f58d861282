// One stream of datagrams that the server paces: the group's, or the unicast to one receiver. Holds
// what waits to be sent on it, what was sent of late and its sequence numbers; sends nothing (`page-server.ts`).

import { CHANNEL, type Channel, URGENCY, type Urgency } from '../wire/datagrams.js';
import { NO_SEQUENCE, nextSequence } from '../wire/sequence.js';
import type { KnownReceiver } from './known-receivers.js';
import { type NewPage, PageQueue, QUEUE_PAGES_MAX, type QueuedPage } from './page-queue.js';
import { SENT_PAGES_MAX, SENT_PAGES_OF_ONE_MAX, SentPages } from './sent-pages.js';
import { TokenBucket } from './token-bucket.js';

export class Flow {
  /** `undefined`: to the group. */
  readonly receiver: KnownReceiver | undefined;
  readonly bucket: TokenBucket;
  /** By urgency. */
  readonly queues: readonly [PageQueue<KnownReceiver>, PageQueue<KnownReceiver>];
  readonly sent: SentPages;
  /** Of the last datagram. */
  sequence = NO_SEQUENCE;
  /** When pacing last held something back. */
  limitedAtMs = Number.NEGATIVE_INFINITY;
  /** Its datagrams may be as large as the server's link carries. */
  isLarge = false;
  /** Is in the server's round of flows that have something to send. */
  isActive = false;

  constructor(of: {
    receiver: KnownReceiver | undefined;
    bytesPerSecond: number;
    nowMs: number;
  }) {
    this.receiver = of.receiver;
    this.bucket = new TokenBucket(of);
    const isGroup = of.receiver === undefined;
    this.sent = new SentPages(isGroup ? SENT_PAGES_MAX : SENT_PAGES_OF_ONE_MAX);
    this.queues = [new PageQueue(), new PageQueue()];
  }

  get channel(): Channel {
    return this.receiver === undefined ? CHANNEL.group : CHANNEL.unicast;
  }

  get size(): number {
    return this.queues[URGENCY.demand].size + this.queues[URGENCY.prefetch].size;
  }

  /** A page in demand waits in front, whoever asked for it before. */
  add(urgency: Urgency, page: NewPage<KnownReceiver>): 'added' | 'merged' | 'full' {
    const [demand, prefetch] = this.queues;
    const isInDemand = demand.has(page.layer, page.page);
    if (urgency === URGENCY.prefetch && !isInDemand) return prefetch.add(page);
    if (!isInDemand && demand.size >= QUEUE_PAGES_MAX) return 'full';
    const before = prefetch.remove(page.layer, page.page);
    if (before !== undefined) demand.add(before);
    return demand.add(page);
  }

  has(layer: number, page: number): boolean {
    return this.queues.some((queue) => queue.has(layer, page));
  }

  take(urgency: Urgency, page: QueuedPage<KnownReceiver>): void {
    this.queues[urgency].remove(page.layer, page.page);
    if (this.receiver === undefined) page.asker.queuedPages--;
  }

  takeSequence(): number {
    this.sequence = nextSequence(this.sequence);
    return this.sequence;
  }
}
