// The receivers that the server has heard of: where they are, how they want their pages, and how
// fast they can take them. Bounded. Says what the whole group can take; sends nothing. Called by
// the server.

import { CHANNEL, type Channel, type Report } from '../wire/datagrams.js';
import { WIRE_OVERHEAD_BYTES } from '../wire/geometry.js';
import { ReceiverRate } from './rate.js';

export const RECEIVERS_MAX = 16_384;
/** One that is silent for so long has no say in the group's rate. */
export const ACTIVE_MS = 2000;
/** What came whole so long ago says nothing of what comes now. */
const PROVEN_MS = 1500;
/** And is forgotten after so long. */
export const FORGOTTEN_MS = 60_000;

/** Where datagrams go, in the words of the caller's network. */
export interface Address {
  readonly host: string;
  readonly port: number;
}

export interface KnownReceiver {
  readonly id: number;
  address: Address;
  delivery: Channel;
  /** The group's sequence when it came to the group: it never had what was sent before. */
  joinedSequence: number;
  heardMs: number;
  /** Pages in the group's queues that it was the first to ask for. */
  queuedPages: number;
  readonly group: ReceiverRate;
  readonly unicast: ReceiverRate;
  /** When a datagram of the largest size was last known to have come, by channel. */
  readonly largeCameMs: [number, number];
}

export interface GroupState {
  readonly receivers: number;
  readonly bytesPerSecond: number;
  readonly loss: number;
  /** All of them get datagrams of the largest size. */
  readonly isLarge: boolean;
}

export class KnownReceivers {
  readonly #byId = new Map<number, KnownReceiver>();
  readonly #rateStart: number;
  readonly #rateMax: number;

  constructor(of: { rateStart: number; rateMax: number }) {
    this.#rateStart = of.rateStart;
    this.#rateMax = of.rateMax;
  }

  get size(): number {
    return this.#byId.size;
  }

  /** `undefined` when there are too many. */
  heard(
    id: number,
    of: { from: Address; delivery: Channel; nowMs: number; groupSequence: number },
  ): KnownReceiver | undefined {
    let receiver = this.#byId.get(id);
    if (receiver === undefined) {
      if (this.#byId.size >= RECEIVERS_MAX) return undefined;
      receiver = this.#newReceiver(id, of);
      this.#byId.set(id, receiver);
    }
    receiver.address = of.from;
    receiver.heardMs = of.nowMs;
    if (receiver.delivery !== of.delivery) {
      receiver.delivery = of.delivery;
      receiver.joinedSequence = of.groupSequence;
    }
    return receiver;
  }

  /**
   * Forgets who is long gone, and says what the group can take: the mean of what its receivers can,
   * each with the same weight, so that one that is slow or hangs costs the others its share and no
   * more. It will not keep up; it leaves the group and is served by unicast.
   */
  survey(nowMs: number, onForgotten: (receiver: KnownReceiver) => void): GroupState {
    let receivers = 0;
    let ceilings = 0;
    let losses = 0;
    let isLarge = true;
    for (const receiver of this.#byId.values()) {
      const silentMs = nowMs - receiver.heardMs;
      if (silentMs > FORGOTTEN_MS) {
        this.#byId.delete(receiver.id);
        onForgotten(receiver);
      }
      if (silentMs > ACTIVE_MS || receiver.delivery !== CHANNEL.group) continue;
      receivers++;
      ceilings += receiver.group.ceiling;
      losses += receiver.group.loss;
      isLarge &&= takesLarge(receiver, CHANNEL.group, nowMs);
    }
    if (receivers === 0) {
      return { receivers, bytesPerSecond: this.#rateStart, loss: 0, isLarge: false };
    }
    const bytesPerSecond = ceilings / receivers;
    return { receivers, bytesPerSecond, loss: losses / receivers, isLarge };
  }

  #newReceiver(
    id: number,
    of: { from: Address; delivery: Channel; nowMs: number; groupSequence: number },
  ): KnownReceiver {
    const rate = { start: this.#rateStart, max: this.#rateMax };
    return {
      id,
      address: of.from,
      delivery: of.delivery,
      joinedSequence: of.groupSequence,
      heardMs: of.nowMs,
      queuedPages: 0,
      group: new ReceiverRate(rate),
      unicast: new ReceiverRate(rate),
      largeCameMs: [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY],
    };
  }
}

/** Whether the largest datagrams have come to it of late. */
export function takesLarge(receiver: KnownReceiver, channel: Channel, nowMs: number): boolean {
  return nowMs - receiver.largeCameMs[channel] < PROVEN_MS;
}

/** `largestBytes`: of a datagram of the largest size. */
export function noteLargest(
  receiver: KnownReceiver,
  report: Report,
  of: { readonly nowMs: number; readonly largestBytes: number },
): void {
  const { group, unicast } = report;
  if (group.largest >= of.largestBytes) receiver.largeCameMs[CHANNEL.group] = of.nowMs;
  if (unicast.largest >= of.largestBytes) receiver.largeCameMs[CHANNEL.unicast] = of.nowMs;
}

/** What a report says of a channel, as its rate wants it. */
export function applyReport(
  receiver: KnownReceiver,
  report: Report,
  wasLimited: { group: boolean; unicast: boolean },
): void {
  for (const channel of ['group', 'unicast'] as const) {
    const { expected, received, bytes } = report[channel];
    const wireBytes = bytes + received * WIRE_OVERHEAD_BYTES;
    const ms = report.intervalMs;
    receiver[channel].report({
      expected,
      received,
      wireBytes,
      ms,
      wasLimited: wasLimited[channel],
    });
  }
}
