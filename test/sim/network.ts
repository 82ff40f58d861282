// The simulator's network: hosts with a link each to one switch that multicasts. Links have a rate
// and a queue that overflows; datagrams are lost, doubled, delayed and overtaken; hosts are cut off,
// and the network falls into parts. Knows nothing of what the datagrams say.

import type { Clockwork } from './clockwork.js';
import type { Seeded } from './seeded.js';

/** What every datagram may suffer between switch and host. */
export interface Weather {
  /** Shares of datagrams. */
  loss: number;
  duplicates: number;
  delayMs: number;
  /** Up to so much on top, drawn for each: datagrams overtake each other. */
  jitterMs: number;
  /** Larger packets are lost, and nobody is told. */
  mtuBytes: number;
}

export const FAIR: Readonly<Weather> = {
  loss: 0,
  duplicates: 0,
  delayMs: 0.05,
  jitterMs: 0.01,
  mtuBytes: 9000,
};

export interface Host {
  readonly name: string;
  readonly bytesPerSecond: number;
  /** To all others: loses everything while set. */
  isCutOff: boolean;
  /** Of a network that is partitioned: reaches and hears those of its own part only. */
  part: number;
  isMember: boolean;
  weather: Weather;
  readonly receive: (datagram: Buffer, from: Host) => void;
  /** When its link has sent, and taken, all that waits. */
  upFreeAtMs: number;
  downFreeAtMs: number;
  bytesSent: number;
}

/** Headers of Ethernet, IP and UDP, checksum, preamble and gap: what a datagram costs a link. */
const OVERHEAD_BYTES = 66;
/** Headers of IP and UDP: they count in an MTU. */
const PACKET_OVERHEAD_BYTES = 28;
/** What a link's queue holds: 10 ms. */
const QUEUE_MS = 10;

export class Network {
  readonly hosts: Host[] = [];
  readonly #clockwork: Clockwork;
  readonly #seeded: Seeded;

  constructor(clockwork: Clockwork, seeded: Seeded) {
    this.#clockwork = clockwork;
    this.#seeded = seeded;
  }

  addHost(of: Pick<Host, 'name' | 'bytesPerSecond' | 'weather' | 'receive'>): Host {
    const idle = { upFreeAtMs: 0, downFreeAtMs: 0, bytesSent: 0 };
    const host = { ...of, ...idle, isCutOff: false, part: 0, isMember: false };
    this.hosts.push(host);
    return host;
  }

  /** `to` is `undefined` for the group. */
  send(from: Host, to: Host | undefined, datagram: Buffer): void {
    const { nowMs } = this.#clockwork;
    from.bytesSent += datagram.length;
    const sentMs = pass(from.upFreeAtMs, from.bytesPerSecond, datagram, nowMs);
    if (sentMs === undefined) return;
    from.upFreeAtMs = sentMs;
    if (from.isCutOff) return;
    if (to !== undefined) this.#deliver(from, to, datagram, sentMs);
    else {
      for (const host of this.hosts) {
        if (host.isMember && host !== from) this.#deliver(from, host, datagram, sentMs);
      }
    }
  }

  #deliver(from: Host, to: Host, datagram: Buffer, sentMs: number): void {
    const { loss, duplicates, delayMs, jitterMs, mtuBytes } = to.weather;
    if (datagram.length + PACKET_OVERHEAD_BYTES > mtuBytes) return;
    const copies = this.#seeded.chance(duplicates) ? 2 : 1;
    for (let copy = 0; copy < copies; copy++) {
      if (to.isCutOff || from.part !== to.part || this.#seeded.chance(loss)) continue;
      const takenMs = pass(to.downFreeAtMs, to.bytesPerSecond, datagram, sentMs);
      if (takenMs === undefined) continue;
      to.downFreeAtMs = takenMs;
      const arrivesMs = takenMs + delayMs + this.#seeded.between(0, jitterMs);
      this.#clockwork.at(arrivesMs, () => to.receive(datagram, from));
    }
  }
}

/** When a datagram is through a link; `undefined` when its queue is full. */
function pass(
  freeAtMs: number,
  bytesPerSecond: number,
  datagram: Buffer,
  nowMs: number,
): number | undefined {
  if (freeAtMs - nowMs > QUEUE_MS) return undefined;
  const tookMs = ((datagram.length + OVERHEAD_BYTES) * 1000) / bytesPerSecond;
  return Math.max(freeAtMs, nowMs) + tookMs;
}
