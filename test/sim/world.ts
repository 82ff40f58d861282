// The simulator: a memory server, its receivers, a network between them, and what must hold at
// every step. The protocol's own code runs; only time, randomness and the network are made here.

import assert from 'node:assert/strict';
import {
  type Address,
  bodySizesFor,
  newSenderId,
  PAGE_BYTES,
  PageReceiver,
  PageServer,
  QUEUE_PAGES_MAX,
  RECEIVER_QUEUED_PAGES_MAX,
  RECEIVERS_MAX,
  type SnapshotKey,
  snapshotKey,
  TokenBucket,
  type WantedPage,
} from '@snowfork/memserver';
import { Clockwork } from './clockwork.js';
import { FAIR, type Host, Network, type Weather } from './network.js';
import { Origin } from './origin.js';
import { Puller } from './puller.js';
import { Seeded } from './seeded.js';

export const GIGABIT = 125_000_000;
const RANDOM_BYTES = 8;

export interface WorldOptions {
  readonly seed: number;
  readonly pageCount: number;
  readonly zeroShare?: number;
  /** So much of a page can't be packed. Without it nothing can. */
  readonly noiseBytes?: (page: number) => number;
  readonly mtuBytes?: number;
  /** The server has no page before it was wanted for so long, or less: it is a neighbour. */
  readonly fetchMs?: number;
  /** What the server takes its link for. */
  readonly linkBytesPerSecond?: number;
  /** Of the server's own link. */
  readonly weather?: Partial<Weather>;
}

export interface ReceiverOptions {
  readonly weather?: Partial<Weather>;
  readonly bytesPerSecond?: number;
  /** Otherwise it is served by unicast alone. */
  readonly hasGroup?: boolean;
  readonly lostAfterMs?: number;
}

/** Something that has its own time: when it wants to be called next. */
interface Actor {
  readonly advance: () => number;
  wakeAtMs: number;
}

export class World {
  readonly clockwork = new Clockwork();
  readonly seeded: Seeded;
  readonly network: Network;
  readonly origin: Origin;
  readonly pullers: Puller[] = [];
  readonly serverHost: Host;
  readonly key: SnapshotKey;
  server: PageServer;
  readonly #mtuBytes: number;
  readonly #linkBytesPerSecond: number;
  readonly #fetchMs: number | undefined;
  /** Pages that the server has said it wants. */
  wantedPages = 0;
  readonly #clock = (): number => this.clockwork.nowMs;
  readonly #byName = new Map<string, Host>();
  #serverActor: Actor;

  constructor(options: WorldOptions) {
    this.seeded = new Seeded(options.seed);
    this.network = new Network(this.clockwork, this.seeded);
    const { pageCount, zeroShare = 0, noiseBytes = () => PAGE_BYTES } = options;
    this.origin = new Origin({ pageCount, zeroShare, noiseBytes, seeded: this.seeded });
    this.key = snapshotKey(this.seeded.bytes(32));
    this.#mtuBytes = options.mtuBytes ?? 1500;
    this.#linkBytesPerSecond = options.linkBytesPerSecond ?? GIGABIT;
    this.#fetchMs = options.fetchMs;
    if (this.#fetchMs !== undefined) this.origin.awaited.fill(1);
    this.serverHost = this.network.addHost({
      name: 'server',
      bytesPerSecond: GIGABIT,
      weather: { ...FAIR, ...options.weather },
      receive: (datagram, from) => this.#serverTakes(datagram, from),
    });
    this.server = this.#newServer();
    this.#serverActor = this.#newServerActor();
  }

  addReceiver(options: ReceiverOptions = {}): Puller {
    const puller = new Puller(this.origin, this.#clock);
    const { pullers } = this;
    const host = this.network.addHost({
      name: `receiver ${pullers.length}`,
      bytesPerSecond: options.bytesPerSecond ?? GIGABIT,
      weather: { ...FAIR, ...options.weather },
      receive: (datagram) => {
        if (puller.isHung) return;
        puller.receiver.receive(datagram);
        this.#wake(actor);
      },
    });
    host.isMember = options.hasGroup ?? true;
    this.#byName.set(host.name, host);
    puller.host = host;
    puller.receiver = new PageReceiver({
      key: this.key,
      senderId: this.#senderId(),
      sink: puller,
      send: (datagram) => this.network.send(host, this.serverHost, Buffer.from(datagram)),
      clock: this.#clock,
      random: this.seeded.next,
      lostAfterMs: options.lostAfterMs ?? 30_000,
      hasGroup: options.hasGroup ?? true,
    });
    const actor = {
      wakeAtMs: Number.POSITIVE_INFINITY,
      advance: () => this.#advancePuller(puller),
    };
    this.#actors.set(puller, actor);
    pullers.push(puller);
    return puller;
  }

  readonly #actors = new Map<Puller, Actor>();

  /** After something was asked of a puller from outside. */
  poke(puller: Puller): void {
    this.#wake(this.#actors.get(puller)!);
  }

  /** Another process on the same layers: the old one's knowledge is gone. */
  restartServer(): void {
    this.server = this.#newServer();
    this.#serverActor = this.#newServerActor();
  }

  /** Runs until `isDone`, or throws when that is not so by `limitMs`. */
  run(isDone: () => boolean, limitMs: number): void {
    while (!isDone()) {
      assert(this.clockwork.step(), 'nothing happens any more, and it is not done');
      assert(this.clockwork.nowMs < limitMs, `not done after ${limitMs} ms`);
    }
  }

  /** Runs for so long. */
  runFor(ms: number): void {
    let isOver = false;
    this.clockwork.at(this.clockwork.nowMs + ms, () => {
      isOver = true;
    });
    this.run(() => isOver, Number.POSITIVE_INFINITY);
  }

  /** Runs until all receivers that do not hang have every page. */
  runUntilAllHeld(limitMs: number): void {
    let next = 0;
    this.run(() => {
      for (; next < this.pullers.length; next++) {
        const { hasAll, isHung } = this.pullers[next]!;
        if (!hasAll && !isHung) return false;
      }
      return true;
    }, limitMs);
  }

  #advancePuller(puller: Puller): number {
    if (puller.isHung) return Number.POSITIVE_INFINITY;
    puller.fault();
    const nextMs = puller.receiver.advance();
    puller.check();
    return nextMs;
  }

  #serverTakes(datagram: Buffer, from: Host): void {
    this.server.receive(datagram, { host: from.name, port: 1 });
    this.#wake(this.#serverActor);
  }

  #newServer(): PageServer {
    const { bodySizes, nowMs } = { bodySizes: bodySizesFor(this.#mtuBytes), nowMs: this.#clock() };
    return new PageServer({
      key: this.key,
      senderId: this.#senderId(),
      source: this.origin,
      send: (datagram, to) => this.#serverSends(datagram, to),
      clock: this.#clock,
      bodySizes,
      link: new TokenBucket({ bytesPerSecond: this.#linkBytesPerSecond, nowMs }),
      ...(this.#fetchMs === undefined ? {} : { wanted: this.#fetch }),
    });
  }

  readonly #fetch = (pages: readonly WantedPage[]): void => {
    for (const { page } of pages) {
      this.wantedPages++;
      const tookMs = this.#fetchMs! * this.seeded.next();
      this.clockwork.at(this.clockwork.nowMs + tookMs, () => {
        this.origin.awaited[page] = 0;
      });
    }
  };

  #newServerActor(): Actor {
    const { server } = this;
    return {
      wakeAtMs: Number.POSITIVE_INFINITY,
      advance: () => {
        if (server !== this.server) return Number.POSITIVE_INFINITY;
        const nextMs = server.advance();
        this.#checkServer();
        return nextMs;
      },
    };
  }

  #serverSends(datagram: Buffer, to: Address | undefined): void {
    const host = to === undefined ? undefined : this.#byName.get(to.host)!;
    this.network.send(this.serverHost, host, Buffer.from(datagram));
  }

  #checkServer(): void {
    const { group, unicast } = this.server.queuedPages;
    assert(group <= 2 * QUEUE_PAGES_MAX, 'the group queue is longer than it may be');
    assert(unicast <= this.pullers.length * (RECEIVER_QUEUED_PAGES_MAX + QUEUE_PAGES_MAX));
    assert(this.server.knownReceivers <= RECEIVERS_MAX);
  }

  /** Lets an actor do what is due, now and when it says. */
  #wake(actor: Actor): void {
    const nextMs = actor.advance();
    assert(nextMs > this.clockwork.nowMs, 'what is due at once was not done at once');
    actor.wakeAtMs = nextMs;
    if (nextMs === Number.POSITIVE_INFINITY) return;
    this.clockwork.at(nextMs, () => {
      if (actor.wakeAtMs === nextMs) this.#wake(actor);
    });
  }

  #senderId(): number {
    return newSenderId(this.seeded.bytes(RANDOM_BYTES));
  }
}

/** The pages of a layer from `first` on. */
export function pagesFrom(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => first + index);
}

/** The value below which `share` of the values are. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((one, other) => one - other);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!;
}
