// Who got which pages: counted by process, by all threads of the pager, in a bounded memory.

import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  newReaderCountsMemory,
  processOf,
  ReaderCounts,
  Source,
} from '../../packages/clone-agent/src/pager/reader-counts.js';

/** Many times as many as the table has places. */
const MANY = 20_000;

describe('readers', () => {
  it('are counted by process and source, whichever thread of the pager counts', () => {
    const memory = newReaderCountsMemory();
    const [one, other] = [new ReaderCounts(memory), new ReaderCounts(memory)];
    one.count(7, Source.zero, 3);
    other.count(7, Source.zero, 4);
    other.count(8, Source.local, 1);
    one.count(7, Source.demand, 1);
    const expected = new Map([
      [7, [7, 0, 0, 1]],
      [8, [0, 1, 0, 0]],
    ]);
    for (const counts of [one, other]) expect(counts.all()).toEqual(expected);
  });

  it('make room when they are gone, and leave nothing behind', () => {
    const alive = new Set<number>();
    const counts = new ReaderCounts(newReaderCountsMemory(), (pid) => alive.has(pid));
    for (let pid = 1; pid <= MANY; pid++) {
      alive.clear();
      alive.add(pid);
      counts.count(pid, Source.zero, pid);
      counts.count(pid, Source.local, 1);
      expect(counts.all().get(pid)).toEqual([pid, 1, 0, 0]);
    }
  });

  it('that are too many are not counted, and cost the others nothing', () => {
    const counts = new ReaderCounts(newReaderCountsMemory(), () => true);
    for (let pid = 1; pid <= MANY; pid++) counts.count(pid, Source.local, pid);
    const all = [...counts.all()];
    expect(all.length).toBeGreaterThan(500);
    expect(all.length).toBeLessThanOrEqual(1024);
    expect(all).toEqual(all.map(([pid]) => [pid, [0, pid, 0, 0]]));
  });
});

describe('the process of a thread', () => {
  it('is the one that all of its threads name', () => {
    const threads = readdirSync('/proc/self/task').map(Number);
    expect(threads.length).toBeGreaterThan(1);
    expect(threads.map(processOf)).toEqual(threads.map(() => process.pid));
  });

  it('is nobody when the thread has no name here, or is gone', () => {
    expect(processOf(0)).toBeUndefined();
    // Larger than any id that Linux gives.
    expect(processOf(2 ** 23)).toBeUndefined();
  });
});
