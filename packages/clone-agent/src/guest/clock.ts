// What the agent knows of a guest's clock. A time that the agent sends is late by however long the
// guest takes to read it: half a second when 32 clones start at once. So it is not sent alone: the
// guest's monotonic clock stands still with the VM and goes on with it, and what it showed then is
// carried from a VM to its clones. QEMU says between which two moments it goes on, and by the
// machine's own clock (virtual clock, in the device state) how long it went. Called by the channel,
// the freeze and the start of clones; `sf-guestd` sets the clock by the origin that comes of it.
//
//   host     --- sent --- received ---- stopped · · · · resumed ------ now
//   guest    ------ monotonicMs ------- reading ======= reading ------ reading + (now - resumed)
//
// Times of the host are `performance.now()`: the wall clock may step while a VM runs.

/** A look at the monotonic clock: it showed `monotonicMs` between two moments of the host's. */
export interface ClockSample {
  readonly monotonicMs: number;
  readonly sentAtMs: number;
  readonly receivedAtMs: number;
}

/** Between these two something happened; times of `performance.now()`. */
export interface Moment {
  readonly earliestMs: number;
  readonly latestMs: number;
}

/** What a monotonic clock showed at some moment: the best guess, and what it lies between. */
export interface ClockReading {
  readonly monotonicMs: number;
  readonly lowMs: number;
  readonly highMs: number;
}

/** The clocks of guest and host drift apart by less than this; seen: 10. */
const DRIFT_PPM_MAX = 100;
/** A guest that is awake has read a frame after this long; its answer may lie about for longer. */
const FORWARD_MS = 1;
/** The host's time of day, by which QEMU tells when things happened, is read to the millisecond. */
const TIME_OF_DAY_MS = 1;
const NANOSECONDS_PER_MS = 1_000_000;

export class GuestClock {
  #known: { readonly reading: ClockReading; readonly hostMs: number } | undefined;
  #started: (ClockStart & { readonly resumed: Moment }) | undefined;

  /** The guest runs since `resumed`. */
  start(resumed: Moment, start: ClockStart): void {
    const { reading } = start;
    if (reading !== undefined) {
      const { earliestMs, latestMs } = resumed;
      const lowMs = reading.lowMs - (latestMs - earliestMs);
      const highMs = reading.highMs + TIME_OF_DAY_MS;
      this.#known = { reading: { ...reading, lowMs, highMs }, hostMs: earliestMs };
    }
    this.#started = { ...start, resumed };
  }

  /**
   * What the clock showed when the machine stood still.
   * @param stopped when that was: QEMU says it late
   * @param virtualMs what the machine's clock showed then: worth more
   */
  whenStopped(stopped: Moment, virtualMs: number | undefined): ClockReading | undefined {
    const halfMs = (stopped.latestMs - stopped.earliestMs) / 2;
    const byHost = this.#during(stopped, halfMs);
    if (byHost === undefined || virtualMs === undefined) return byHost;
    if (this.#started?.virtualMs === undefined) return byHost;
    const { reading, resumed } = this.#started;
    const ranMs = virtualMs - this.#started.virtualMs;
    const { earliestMs, latestMs } = resumed;
    const ran = { earliestMs: earliestMs + ranMs, latestMs: latestMs + ranMs };
    const byMachine = narrow(this.#during(ran, 0)!, byHost);
    // However late it went on; but the longer it ran, the less this says and the more do looks.
    return reading ? narrow(later(reading, ranMs), byMachine) : byMachine;
  }

  /** The guest stood still, and it is not known how long. */
  forget(): void {
    this.#known = undefined;
    this.#started = undefined;
  }

  /** Narrows down what is known; a sample that contradicts it takes its place. */
  observe(sample: ClockSample): void {
    const { sentAtMs, receivedAtMs, monotonicMs } = sample;
    const highMs = monotonicMs + receivedAtMs - sentAtMs;
    const halfMs = (highMs - monotonicMs) / 2;
    const fresh = {
      monotonicMs: highMs - Math.min(halfMs, FORWARD_MS),
      lowMs: monotonicMs,
      highMs,
    };
    const known = this.at(receivedAtMs);
    this.#known = { reading: known ? narrow(known, fresh) : fresh, hostMs: receivedAtMs };
  }

  /** What the clock shows at `hostMs`, while the guest runs. */
  at(hostMs: number): ClockReading | undefined {
    if (this.#known === undefined) return undefined;
    return later(this.#known.reading, hostMs - this.#known.hostMs);
  }

  /** By how much the best guess may be wrong; undefined when nothing is known. */
  errorMsMax(): number | undefined {
    const reading = this.at(performance.now());
    if (reading === undefined) return undefined;
    const { monotonicMs, lowMs, highMs } = reading;
    return Math.max(highMs - monotonicMs, monotonicMs - lowMs);
  }

  /** The wall clock's time at which the guest's monotonic clock would have shown zero. */
  originMs(): number | undefined {
    const reading = this.at(performance.now());
    return reading && Date.now() - reading.monotonicMs;
  }

  /** The best guess is that something happened `afterMs` after the first. */
  #during({ earliestMs, latestMs }: Moment, afterMs: number): ClockReading | undefined {
    const reading = this.at(earliestMs);
    if (reading === undefined) return undefined;
    return {
      monotonicMs: reading.monotonicMs + afterMs,
      lowMs: reading.lowMs - TIME_OF_DAY_MS,
      highMs: reading.highMs + latestMs - earliestMs,
    };
  }
}

/** What is known of a machine when it goes on. */
export interface ClockStart {
  /** What the guest's clock showed. */
  readonly reading?: ClockReading | undefined;
  /** What the machine's showed. */
  readonly virtualMs: number | undefined;
}

/** Of a line of the port, in nanoseconds; nothing when the guest does not say. */
export function readMonotonic(text: string | undefined): number | undefined {
  if (text === undefined || !/^\d{1,18}$/.test(text)) return undefined;
  return Number(text) / NANOSECONDS_PER_MS;
}

/** As the port's lines have times. */
export function nanoseconds(timeMs: number): string {
  const wholeMs = Math.floor(timeMs);
  const rest = Math.floor((timeMs - wholeMs) * NANOSECONDS_PER_MS);
  return String(BigInt(wholeMs) * BigInt(NANOSECONDS_PER_MS) + BigInt(rest));
}

function later({ monotonicMs, lowMs, highMs }: ClockReading, passedMs: number): ClockReading {
  const driftMs = (Math.abs(passedMs) * DRIFT_PPM_MAX) / 1e6;
  return {
    monotonicMs: monotonicMs + passedMs,
    lowMs: lowMs + passedMs - driftMs,
    highMs: highMs + passedMs + driftMs,
  };
}

function narrow(known: ClockReading, fresh: ClockReading): ClockReading {
  const lowMs = Math.max(known.lowMs, fresh.lowMs);
  const highMs = Math.min(known.highMs, fresh.highMs);
  if (lowMs > highMs) return fresh;
  return { monotonicMs: Math.min(Math.max(known.monotonicMs, lowMs), highMs), lowMs, highMs };
}
