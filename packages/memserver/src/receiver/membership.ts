// Whether this host is in the snapshot's group, and whether pages are asked for by the group or by
// unicast. Found out by what comes, not set: where nothing comes by multicast when the server was
// asked for it, or too little, the same goes by unicast. Decides; the receiver tells the server and
// the caller.

import { CHANNEL, type Channel, type ChannelReport } from '../wire/datagrams.js';

/** With more than this share lost, the group is faster than this host can take. */
const LEAVE_LOSS = 0.4;
/** The group's rate follows its receivers, but not at once. */
const LEAVE_REPORTS = 20;
const SAMPLE_MIN = 20;
/** Until the next try, doubled after each that fails. */
const STAY_OUT_MS_MIN = 2000;
const STAY_OUT_MS_MAX = 60_000;
/** The server is asked to show itself to the group, so often and so long. */
const HELLOS_MAX = 3;
const HELLO_MS = 10;
/** Pages come by the group again after so many datagrams of it. */
const RETURN_DATAGRAMS = 2;

export class Membership {
  /** In the group. */
  isMember = true;
  delivery: Channel;
  #hellosLeft: number;
  #helloAtMs: number;
  #badReports = 0;
  /** Datagrams of the group since the last trouble with it. */
  #heard = 0;
  #stayOutMs = STAY_OUT_MS_MIN;
  #returnAtMs = Number.POSITIVE_INFINITY;

  constructor(of: { readonly hasGroup: boolean; readonly nowMs: number }) {
    this.delivery = of.hasGroup ? CHANNEL.group : CHANNEL.unicast;
    this.#hellosLeft = of.hasGroup ? HELLOS_MAX : 0;
    this.#helloAtMs = of.hasGroup ? of.nowMs : Number.POSITIVE_INFINITY;
  }

  /** When `advance` or `greet` may have something to do. */
  get nextMs(): number {
    return Math.min(this.#returnAtMs, this.#helloAtMs);
  }

  /** It is too early to say whether multicast reaches this host: what can wait should. */
  get isUndecided(): boolean {
    return this.#helloAtMs !== Number.POSITIVE_INFINITY;
  }

  /**
   * `hello`: the server is to be asked to show itself to the group. `silent`: it was, often enough.
   */
  greet(nowMs: number): 'hello' | 'silent' | undefined {
    if (nowMs < this.#helloAtMs) return undefined;
    if (this.#hellosLeft > 0) {
      this.#hellosLeft--;
      this.#helloAtMs = nowMs + HELLO_MS;
      return 'hello';
    }
    this.#helloAtMs = Number.POSITIVE_INFINITY;
    this.groupIsSilent();
    return 'silent';
  }

  /** Something came by the group. */
  groupIsHeard(): void {
    this.#helloAtMs = Number.POSITIVE_INFINITY;
  }

  /** Pages were asked for again and again, and nothing at all came by the group. */
  groupIsSilent(): void {
    this.delivery = CHANNEL.unicast;
    this.#heard = 0;
  }

  /** `true` when the group must be left. */
  report(group: ChannelReport, nowMs: number): boolean {
    if (!this.isMember || group.received === 0) return false;
    if (group.expected >= SAMPLE_MIN && group.received < group.expected * (1 - LEAVE_LOSS)) {
      this.#badReports++;
      if (this.#badReports < LEAVE_REPORTS && this.delivery === CHANNEL.group) return false;
      this.#leave(nowMs);
      return true;
    }
    this.#badReports = 0;
    this.#heard += group.received;
    if (this.#heard >= RETURN_DATAGRAMS) this.delivery = CHANNEL.group;
    return false;
  }

  /** `true` when the group is to be joined again, to see how it goes. */
  advance(nowMs: number): boolean {
    if (nowMs < this.#returnAtMs) return false;
    this.#returnAtMs = Number.POSITIVE_INFINITY;
    this.isMember = true;
    return true;
  }

  #leave(nowMs: number): void {
    this.isMember = false;
    this.delivery = CHANNEL.unicast;
    this.#badReports = 0;
    this.#heard = 0;
    this.#returnAtMs = nowMs + this.#stayOutMs;
    this.#stayOutMs = Math.min(this.#stayOutMs * 2, STAY_OUT_MS_MAX);
  }
}
