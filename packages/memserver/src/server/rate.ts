// How fast a receiver can take what is sent to it, from its reports. Losses are no proof of a link
// that is too slow: a path may lose a tenth of everything at any rate. So the least loss of late is
// what the path costs, and only what is lost beyond that is overload. One for each receiver and
// channel.

/** A path that loses more than this share, at any rate, is taken for overloaded. */
export const LOSS_OF_PATH_MAX = 0.15;
/** Assumed before anything is known: the first repairs are likely to be of use to others. */
const LOSS_START = 0.05;
/**
 * Lost beyond the path's own, this share is overload; more when few datagrams leave it to chance.
 */
const OVERLOAD_LOSS = 0.05;
const CHANCE = 0.6;
/** How much of a report's loss the path's own goes up by. */
const PATH_LOSS_RISE = 0.02;
/** Fewer datagrams say nothing: reports are added up until there are so many. */
const SAMPLE_MIN = 20;
/**
 * A report of so many datagrams replaces half of what was known of the loss; a smaller one less.
 */
const SAMPLE_FULL = 100;
/** Until the first overload, and after it. */
const RAISE_QUICK = 2;
const RAISE = 1.05;
/** Of what arrived while there was too much: lets the queues on the path run empty. */
const HEADROOM = 0.9;
/** No report makes it slower than this at once. */
const CUT_MAX = 0.5;
/** Nobody is sent less than this. */
export const RATE_MIN = 250_000;

/** What a receiver says of a channel. */
export interface Arrivals {
  /** Datagrams that should have come, and that came. */
  expected: number;
  received: number;
  /** Of those that came, as a link counts them. */
  wireBytes: number;
  ms: number;
}

export class ReceiverRate {
  /** Bytes per second. */
  ceiling: number;
  /** Share of datagrams that did not come, smoothed. */
  loss = LOSS_START;
  #pathLoss = LOSS_OF_PATH_MAX;
  #raise = RAISE_QUICK;
  #arrivals: Arrivals = { expected: 0, received: 0, wireBytes: 0, ms: 0 };
  readonly #ceilingMax: number;

  constructor(of: { start: number; max: number }) {
    this.ceiling = of.start;
    this.#ceilingMax = of.max;
  }

  /** `wasLimited`: pacing held something back, so a higher rate would have been used. */
  report(of: Arrivals & { readonly wasLimited: boolean }): void {
    const sum = this.#arrivals;
    sum.expected += of.expected;
    sum.received += of.received;
    sum.wireBytes += of.wireBytes;
    sum.ms += of.ms;
    if (sum.expected < SAMPLE_MIN) return;
    this.#arrivals = { expected: 0, received: 0, wireBytes: 0, ms: 0 };
    const loss = Math.max(0, 1 - sum.received / sum.expected);
    this.loss += (loss - this.loss) * Math.min(sum.expected / SAMPLE_FULL, 1) * 0.5;
    const overload = loss - this.#pathLoss;
    if (overload > OVERLOAD_LOSS + CHANCE / Math.sqrt(sum.expected)) {
      const arrived = (sum.wireBytes * 1000) / sum.ms / (1 - this.#pathLoss);
      const lower = Math.min(this.ceiling, arrived * HEADROOM);
      this.ceiling = Math.max(lower, this.ceiling * CUT_MAX, RATE_MIN);
      this.#raise = RAISE;
    } else if (of.wasLimited) {
      this.ceiling = Math.min(this.ceiling * this.#raise, this.#ceilingMax);
    }
    if (overload < 0) this.#pathLoss = loss;
    else this.#pathLoss = Math.min(this.#pathLoss + overload * PATH_LOSS_RISE, LOSS_OF_PATH_MAX);
  }
}
