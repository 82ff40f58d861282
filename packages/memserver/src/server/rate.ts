// How fast a receiver can take what is sent to it, from its reports. Losses are no proof of a link that
// is too slow: a path may lose a tenth of everything at any rate. So some loss is put up with, and when
// there is more, the rate goes towards the one that did arrive. One for each receiver and channel.

/** Loss up to this share is no reason to be slower. */
export const LOSS_TOLERATED = 0.15;
/** Assumed before anything is known: the first repairs are likely to be of use to others. */
const LOSS_START = 0.05;
/** Fewer datagrams in a report say nothing. */
const SAMPLE_MIN = 20;
const RAISE = 1.25;
/** No report makes it slower than this at once. */
const CUT_MAX = 0.7;
/** Nobody is sent less than this. */
export const RATE_MIN = 250_000;
/** A report of so many datagrams replaces half of what was known of the loss; a smaller one less. */
const SAMPLE_FULL = 100;

export class ReceiverRate {
  /** Bytes per second. */
  ceiling: number;
  /** Share of datagrams that did not come, smoothed. */
  loss = LOSS_START;
  readonly #ceilingMax: number;

  constructor(of: { start: number; max: number }) {
    this.ceiling = of.start;
    this.#ceilingMax = of.max;
  }

  /** `wasLimited`: pacing held something back, so a higher rate would have been used. */
  report(of: {
    expected: number;
    received: number;
    bytesPerSecond: number;
    wasLimited: boolean;
  }): void {
    if (of.expected < SAMPLE_MIN) return;
    const loss = Math.max(0, 1 - of.received / of.expected);
    this.loss += (loss - this.loss) * Math.min(of.expected / SAMPLE_FULL, 1) * 0.5;
    if (this.loss > LOSS_TOLERATED && loss > LOSS_TOLERATED) {
      const lower = Math.min(this.ceiling, of.bytesPerSecond);
      this.ceiling = Math.max(lower, this.ceiling * CUT_MAX, RATE_MIN);
    } else if (of.wasLimited) {
      this.ceiling = Math.min(this.ceiling * RAISE, this.#ceilingMax);
    }
  }
}
