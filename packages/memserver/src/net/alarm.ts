// Calls at a time. Node's timers know whole milliseconds: who is told of no finer way to wait is
// called up to one late, who is, is called in time. One for each receiver and each server of a
// process.

export class Alarm {
  readonly #clock: () => number;
  readonly #ring: () => void;
  readonly #wait: ((ms: number) => void) | undefined;
  #atMs = Number.POSITIVE_INFINITY;
  #timer: NodeJS.Timeout | undefined;
  #timerAtMs = Number.POSITIVE_INFINITY;
  #turn: NodeJS.Immediate | undefined;

  /**
   * `wait` blocks for at most so long, less than a millisecond, and returns early when there is
   * something to do for the process.
   */
  constructor(of: {
    readonly clock: () => number;
    readonly ring: () => void;
    readonly wait?: (ms: number) => void;
  }) {
    this.#clock = of.clock;
    this.#ring = of.ring;
    this.#wait = of.wait;
  }

  /** Rings once, at this time and no other. Infinity: not at all. */
  set(atMs: number): void {
    this.#atMs = atMs;
    if (atMs === Number.POSITIVE_INFINITY) return;
    const waitMs = atMs - this.#clock();
    // A timer that is too early is left: it looks at the time when it goes off. Most are put off
    // again and again, once for each datagram.
    if (waitMs <= 0 || (this.#wait !== undefined && waitMs < 1)) {
      this.#turn ??= setImmediate(this.#turned);
    } else if (atMs < this.#timerAtMs) {
      this.#setTimer(atMs, waitMs);
    }
  }

  stop(): void {
    this.#atMs = Number.POSITIVE_INFINITY;
    clearTimeout(this.#timer);
    clearImmediate(this.#turn);
    this.#timer = undefined;
    this.#turn = undefined;
    this.#timerAtMs = Number.POSITIVE_INFINITY;
  }

  #setTimer(atMs: number, waitMs: number): void {
    clearTimeout(this.#timer);
    this.#timerAtMs = atMs;
    const timerMs = this.#wait === undefined ? Math.ceil(waitMs) : Math.floor(waitMs);
    this.#timer = setTimeout(this.#timedOut, timerMs);
  }

  /** What came meanwhile is read first: a page in the socket's buffer is not late. */
  readonly #timedOut = (): void => {
    this.#timer = undefined;
    this.#timerAtMs = Number.POSITIVE_INFINITY;
    this.#turn ??= setImmediate(this.#turned);
  };

  readonly #turned = (): void => {
    this.#turn = undefined;
    const waitMs = this.#atMs - this.#clock();
    if (waitMs > 0 && waitMs < 1) this.#wait?.(waitMs);
    this.#look();
  };

  #look(): void {
    if (this.#atMs > this.#clock()) {
      this.set(this.#atMs);
      return;
    }
    this.#atMs = Number.POSITIVE_INFINITY;
    this.#ring();
  }
}
