// What came by one channel, and by the gaps in its sequence numbers what did not: for reports. Two
// in each receiver, group and unicast.

import type { ChannelReport } from '../wire/datagrams.js';
import { aheadOf, NO_SEQUENCE } from '../wire/sequence.js';

export class ChannelWatch {
  highest = NO_SEQUENCE;
  /** The greatest of its sender's counters of datagrams. */
  #counter = 0;
  #reportedHighest = NO_SEQUENCE;
  #received = 0;
  #bytes = 0;
  #largest = 0;

  came(sequence: number, counter: number, bytes: number): void {
    // Sent later, under a lower number: a server that had not heard this host for long counts anew.
    const isAnew = counter > this.#counter && aheadOf(sequence, this.highest) <= 0;
    if (isAnew && this.highest !== NO_SEQUENCE) this.reset();
    this.#counter = Math.max(this.#counter, counter);
    if (this.highest === NO_SEQUENCE) this.#reportedHighest = (sequence - 1) >>> 0;
    if (this.highest === NO_SEQUENCE || aheadOf(sequence, this.highest) > 0)
      this.highest = sequence;
    this.#received++;
    this.#bytes += bytes;
    this.cameWhole(bytes);
  }

  /** A datagram of so many bytes, which need not be one with a sequence number. */
  cameWhole(bytes: number): void {
    this.#largest = Math.max(this.#largest, bytes);
  }

  /** Since the last report. */
  takeReport(): ChannelReport {
    const expected = Math.max(0, aheadOf(this.highest, this.#reportedHighest));
    const report = {
      highest: this.highest,
      expected,
      received: this.#received,
      bytes: this.#bytes,
      largest: this.#largest,
    };
    this.#reportedHighest = this.highest;
    this.#received = 0;
    this.#bytes = 0;
    this.#largest = 0;
    return report;
  }

  /** Another server, or back in the group: what was missed is no loss. */
  reset(): void {
    this.highest = NO_SEQUENCE;
    this.#counter = 0;
    this.takeReport();
  }
}
