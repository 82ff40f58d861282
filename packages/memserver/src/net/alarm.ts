// Calls at a time, finer than Node's timers, which know whole milliseconds: the last of them is
// waited for turn by turn of the event loop. One for each receiver and each server of a process.

/** What Node's timers are early or late by. */
const TIMER_MS = 1;

export class Alarm {
  readonly #ring: () => void;
  readonly #clock: () => number;
  #atMs = Number.POSITIVE_INFINITY;
  #timer: NodeJS.Timeout | undefined;
  #timerAtMs = Number.POSITIVE_INFINITY;
  #turn: NodeJS.Immediate | undefined;

  constructor(of: { clock: () => number; ring: () => void }) {
    this.#clock = of.clock;
    this.#ring = of.ring;
  }

  /** Rings once, at this time and no other. Infinity: not at all. */
  set(atMs: number): void {
    this.#atMs = atMs;
    // A timer that is too early is left: it looks at the time when it goes off. Most are put off
    // again and again, once for each datagram.
    if (atMs - this.#clock() < TIMER_MS) this.#turn ??= setImmediate(this.#turned);
    else if (atMs < this.#timerAtMs) this.#setTimer(atMs);
  }

  stop(): void {
    this.#atMs = Number.POSITIVE_INFINITY;
    clearTimeout(this.#timer);
    clearImmediate(this.#turn);
    this.#timer = undefined;
    this.#turn = undefined;
    this.#timerAtMs = Number.POSITIVE_INFINITY;
  }

  #setTimer(atMs: number): void {
    clearTimeout(this.#timer);
    this.#timerAtMs = atMs;
    this.#timer = setTimeout(this.#timedOut, Math.floor(atMs - this.#clock()));
  }

  readonly #timedOut = (): void => {
    this.#timer = undefined;
    this.#timerAtMs = Number.POSITIVE_INFINITY;
    this.#look();
  };

  readonly #turned = (): void => {
    this.#turn = undefined;
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
