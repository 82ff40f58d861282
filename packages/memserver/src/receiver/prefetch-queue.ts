// Runs of pages to fetch when there is time, in order, and how many of them may be under way: fewer
// when pages in demand come late, more when they do not. Asks for nothing itself; one in each
// receiver.

/** Runs, not pages: a layer that is pulled whole is one, what clones touched first may be many. */
export const PREFETCH_RUNS_MAX = 65_536;
/** Runs that are done with are let go when there are so many. */
const DONE_RUNS_MAX = 1024;
/**
 * What a page in demand has to wait for at most, when it all waits in one queue: 1.3 ms of 100
 * Mbit/s.
 */
export const WINDOW_PAGES_MIN = 4;
/** 1 MiB: 8 ms of 1 Gbit/s. */
export const WINDOW_PAGES_MAX = 256;
const WINDOW_CUT = 0.7;
const WINDOW_RAISE_PAGES = 4;
/** A page in demand is late when it takes so much longer than the fastest, and this on top. */
const LATE_FACTOR = 2;
const LATE_SLACK_MS = 2;

interface Run {
  readonly layer: number;
  page: number;
  readonly end: number;
}

export class PrefetchQueue {
  windowPages = WINDOW_PAGES_MAX;
  #runs: Run[] = [];
  /** Of the first that is not done with. */
  #first = 0;
  #cutAtMs = Number.NEGATIVE_INFINITY;

  get runCount(): number {
    return this.#runs.length - this.#first;
  }

  /** `false` when there are too many runs. */
  add(layer: number, page: number, count: number): boolean {
    if (this.runCount >= PREFETCH_RUNS_MAX) return false;
    this.#runs.push({ layer, page, end: page + count });
    return true;
  }

  /** Before all others: somebody asks for it now. */
  addFirst(layer: number, page: number, count: number): boolean {
    if (this.runCount >= PREFETCH_RUNS_MAX) return false;
    const run = { layer, page, end: page + count };
    if (this.#first > 0) this.#runs[--this.#first] = run;
    else this.#runs.unshift(run);
    return true;
  }

  /** Hands the next pages to `want`, in order, until it has taken `count` of them. */
  take(count: number, want: (layer: number, page: number) => boolean): void {
    let left = count;
    for (; this.#first < this.#runs.length; this.#first++) {
      const run = this.#runs[this.#first]!;
      while (left > 0 && run.page < run.end) if (want(run.layer, run.page++)) left--;
      if (run.page < run.end) break;
    }
    if (this.#first < DONE_RUNS_MAX && this.#first < this.#runs.length) return;
    this.#runs.splice(0, this.#first);
    this.#first = 0;
  }

  clear(): void {
    this.#runs = [];
    this.#first = 0;
  }

  /** A page in demand took so long. Cut at most once in the time that a page takes. */
  demandTook(ms: number, leastMs: number, nowMs: number): void {
    if (ms <= leastMs * LATE_FACTOR + LATE_SLACK_MS) {
      this.windowPages = Math.min(this.windowPages + WINDOW_RAISE_PAGES, WINDOW_PAGES_MAX);
    } else if (nowMs - this.#cutAtMs > ms) {
      this.#cutAtMs = nowMs;
      this.windowPages = Math.max(Math.floor(this.windowPages * WINDOW_CUT), WINDOW_PAGES_MIN);
    }
  }
}
