// Which of a sender's datagrams were taken already: a sliding window over their counters, as in
// IPsec (RFC 4303, 3.4.3). One for each sender, in `sealing.ts`; allocates nothing per datagram.

/** How far a datagram may be overtaken by others and still be taken: 20 ms at 100,000 a second. */
export const REPLAY_WINDOW_DATAGRAMS = 2048;

export class ReplayWindow {
  readonly #taken = new Uint32Array(REPLAY_WINDOW_DATAGRAMS / 32);
  /** Counters begin with 1. */
  #highest = 0;

  verdict(counter: number): 'new' | 'replayed' | 'old' {
    if (counter > this.#highest) return 'new';
    if (counter <= this.#highest - REPLAY_WINDOW_DATAGRAMS) return 'old';
    const bit = counter % REPLAY_WINDOW_DATAGRAMS;
    return (this.#taken[bit >>> 5]! & (1 << (bit & 31))) === 0 ? 'new' : 'replayed';
  }

  /** Only for a datagram that is proven to be the sender's, and `new`. */
  take(counter: number): void {
    const ahead = counter - this.#highest;
    if (ahead >= REPLAY_WINDOW_DATAGRAMS) this.#taken.fill(0);
    else {
      for (let skipped = this.#highest + 1; skipped < counter; skipped++) this.#clear(skipped);
    }
    if (ahead > 0) this.#highest = counter;
    const bit = counter % REPLAY_WINDOW_DATAGRAMS;
    this.#taken[bit >>> 5]! |= 1 << (bit & 31);
  }

  #clear(counter: number): void {
    const bit = counter % REPLAY_WINDOW_DATAGRAMS;
    this.#taken[bit >>> 5]! &= ~(1 << (bit & 31));
  }
}
