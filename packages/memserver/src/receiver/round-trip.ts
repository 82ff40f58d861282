// How long it takes from asking for a page until it is here, smoothed (RFC 6298), and so how long
// to wait before asking again. Fed with pages that were asked for once only (Karn). Used by the
// receiver: one for demand, one for prefetch, which waits behind demand.

const SMOOTHING = 1 / 8;
const VARIANCE_SMOOTHING = 1 / 4;
/** Before anything was measured. */
const TIMEOUT_START_MS = 50;
const TIMEOUT_MAX_MS = 1000;

export class RoundTrip {
  /** 0: not measured yet. */
  smoothedMs = 0;
  /** The least ever measured: the path when nothing waits in it. */
  leastMs = Number.POSITIVE_INFINITY;
  #varianceMs = 0;
  readonly #timeoutMinMs: number;

  constructor(timeoutMinMs: number) {
    this.#timeoutMinMs = timeoutMinMs;
  }

  sample(ms: number): void {
    this.leastMs = Math.min(this.leastMs, ms);
    if (this.smoothedMs === 0) {
      this.smoothedMs = ms;
      this.#varianceMs = ms / 2;
      return;
    }
    const differenceMs = Math.abs(ms - this.smoothedMs);
    this.#varianceMs += (differenceMs - this.#varianceMs) * VARIANCE_SMOOTHING;
    this.smoothedMs += (ms - this.smoothedMs) * SMOOTHING;
  }

  timeoutMs(): number {
    if (this.smoothedMs === 0) return TIMEOUT_START_MS;
    const timeoutMs = this.smoothedMs + 4 * this.#varianceMs;
    return Math.min(Math.max(timeoutMs, this.#timeoutMinMs), TIMEOUT_MAX_MS);
  }
}
