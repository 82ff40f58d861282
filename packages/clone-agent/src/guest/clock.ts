// What the agent knows of a guest's clock. A time that the agent sends is late by however long the
// guest takes to read it: half a second when 32 clones start at once. So it is not sent alone: the
// guest's monotonic clock stands still with the VM and goes on with it, and what it showed then is
// carried from a VM to its clones. QEMU says when it goes on, and by the machine's own clock (virtual
// clock, in the device state) how long it went. Called by the channel, the freeze and the start of
// clones; `sf-guestd` sets the clock by the origin that comes of it.
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
const NANOSECONDS_PER_MS = 1_000_000;

export class GuestClock {
  #known: { readonly reading: ClockReading; readonly hostMs: number } | undefined;
  #started: { readonly virtualMs: number; readonly hostMs: number } | undefined;

  /**
   * The guest runs since `hostMs`.
   * @param reading what its clock showed then, if that is known
   * @param virtualMs what the machine's showed
   */
  start(
    hostMs: number,
    { reading, virtualMs }: { reading?: ClockReading | undefined; virtualMs: number | undefined },
  ): void {
    if (reading !== undefined) this.#known = { reading, hostMs };
    this.#started = virtualMs === undefined ? undefined : { virtualMs, hostMs };
  }

  /**
   * When the machine stood still, of which the virtual clock showed `virtualMs` then; undefined when
   * it is not known since when it ran. The host's times of a stop are worse: QEMU says it late.
   */
  stoppedAt(virtualMs: number | undefined): number | undefined {
    if (virtualMs === undefined || this.#started === undefined) return undefined;
    return this.#started.hostMs + virtualMs - this.#started.virtualMs;
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
    const passedMs = hostMs - this.#known.hostMs;
    const driftMs = (Math.abs(passedMs) * DRIFT_PPM_MAX) / 1e6;
    const { monotonicMs, lowMs, highMs } = this.#known.reading;
    return {
      monotonicMs: monotonicMs + passedMs,
      lowMs: lowMs + passedMs - driftMs,
      highMs: highMs + passedMs + driftMs,
    };
  }
}

/** The wall clock's time at which the guest's monotonic clock would have shown zero. */
export function clockOrigin(reading: ClockReading, hostMs: number): number {
  return Date.now() - (performance.now() - hostMs) - reading.monotonicMs;
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

function narrow(known: ClockReading, fresh: ClockReading): ClockReading {
  const lowMs = Math.max(known.lowMs, fresh.lowMs);
  const highMs = Math.min(known.highMs, fresh.highMs);
  if (lowMs > highMs) return fresh;
  return { monotonicMs: Math.min(Math.max(known.monotonicMs, lowMs), highMs), lowMs, highMs };
}
