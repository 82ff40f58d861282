// The simulator's time: what happens at which millisecond. A heap; equal times in the order given.

interface Happening {
  readonly atMs: number;
  readonly order: number;
  readonly run: () => void;
}

export class Clockwork {
  nowMs = 0;
  #order = 0;
  readonly #heap: Happening[] = [];

  at(atMs: number, run: () => void): void {
    const happening = { atMs: Math.max(atMs, this.nowMs), order: this.#order++, run };
    const heap = this.#heap;
    let index = heap.length;
    heap.push(happening);
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!isBefore(happening, heap[parent]!)) break;
      heap[index] = heap[parent]!;
      index = parent;
    }
    heap[index] = happening;
  }

  /** Runs the next happening; `false` when there is none. */
  step(): boolean {
    const heap = this.#heap;
    const first = heap[0];
    if (first === undefined) return false;
    const last = heap.pop()!;
    if (heap.length > 0) this.#sink(last);
    this.nowMs = first.atMs;
    first.run();
    return true;
  }

  #sink(happening: Happening): void {
    const heap = this.#heap;
    let index = 0;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, happening)) break;
      heap[index] = heap[child]!;
      index = child;
    }
    heap[index] = happening;
  }
}

function isBefore(one: Happening, other: Happening): boolean {
  return one.atMs < other.atMs || (one.atMs === other.atMs && one.order < other.order);
}
