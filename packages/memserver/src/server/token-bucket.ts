// Paces what is sent: bytes at a rate, with a burst. May go into debt by one datagram, so that a
// large one is never stuck. One for a link, one for each flow. Takes the time as an argument.

/**
 * What may be sent at once after a rest; and so what demand may have to wait for in the link's
 * queue.
 */
const BURST_MS = 0.5;
const BURST_BYTES_MIN = 20_000;

export class TokenBucket {
  #bytesPerSecond: number;
  #tokens: number;
  #filledAtMs: number;

  constructor(of: { bytesPerSecond: number; nowMs: number }) {
    this.#bytesPerSecond = of.bytesPerSecond;
    this.#tokens = this.#burstBytes;
    this.#filledAtMs = of.nowMs;
  }

  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  setRate(bytesPerSecond: number, nowMs: number): void {
    this.#fill(nowMs);
    this.#bytesPerSecond = bytesPerSecond;
  }

  /** 0 when something may be sent. */
  waitMs(nowMs: number): number {
    this.#fill(nowMs);
    return this.#tokens > 0 ? 0 : ((1 - this.#tokens) * 1000) / this.#bytesPerSecond;
  }

  take(bytes: number): void {
    this.#tokens -= bytes;
  }

  get #burstBytes(): number {
    return Math.max((this.#bytesPerSecond * BURST_MS) / 1000, BURST_BYTES_MIN);
  }

  #fill(nowMs: number): void {
    const filled = this.#tokens + ((nowMs - this.#filledAtMs) * this.#bytesPerSecond) / 1000;
    this.#tokens = Math.min(filled, this.#burstBytes);
    this.#filledAtMs = nowMs;
  }
}
