// Whom a receiver asks: a neighbour where multicast does not reach, its origin when that does not
// answer, and the neighbour again when it does.

import { CHANNEL } from '@snowfork/memserver';
import { describe, expect, it } from 'vitest';
import { AskedHost } from '../../packages/memserver/src/net/asked-host.js';

const ORIGIN = { host: '10.0.0.1', port: 1 };
const NEIGHBOUR = { host: '10.0.0.2', port: 1 };
const LOST_AFTER_MS = 60_000;

/** A page is wanted from the first moment on, and nothing was heard since. */
const waiting = { heardMs: Number.NEGATIVE_INFINITY, wantedMs: 0 };
const unicast = { delivery: CHANNEL.unicast, isUndecided: false, waiting };
const group = { ...unicast, delivery: CHANNEL.group };

function newAskedHost(): AskedHost {
  return new AskedHost({ origin: ORIGIN, neighbour: NEIGHBOUR, lostAfterMs: LOST_AFTER_MS });
}

/** When copies of requests go to the neighbour, of one request each 250 ms. */
function triedAt(asked: AskedHost, untilMs: number): number[] {
  const times: number[] = [];
  for (let nowMs = 0; nowMs < untilMs; nowMs += 250) {
    asked.look(unicast, nowMs);
    if (asked.takeTried(unicast, nowMs) !== undefined) times.push(nowMs);
  }
  return times;
}

describe('the asked host', () => {
  it('is the neighbour only by unicast', () => {
    const asked = newAskedHost();
    expect(asked.address(unicast)).toEqual(NEIGHBOUR);
    expect(asked.address(group)).toEqual(ORIGIN);
    expect(asked.address({ ...unicast, isUndecided: true })).toEqual(ORIGIN);
  });

  it('is the origin while the neighbour is silent, which is tried ever more rarely', () => {
    const asked = newAskedHost();
    const times = triedAt(asked, 400_000);
    // Given up after a second; then 2 s, 4 s … a minute.
    expect(times.slice(0, 7)).toEqual([3000, 7000, 15_000, 31_000, 63_000, 123_000, 183_000]);
    expect(asked.address(unicast)).toEqual(ORIGIN);
  });

  it('is the origin when the neighbour is heard, and leaves a page out', () => {
    const asked = newAskedHost();
    const heard = (heardMs: number) => ({ ...unicast, waiting: { heardMs, wantedMs: 0 } });
    for (let nowMs = 0; nowMs < 4000; nowMs += 250) {
      expect(asked.look(heard(nowMs), nowMs)).toBe(false);
    }
    expect(asked.look(heard(4000), 4000)).toBe(true);
    expect(asked.address(heard(4000))).toEqual(ORIGIN);
  });

  it('is the neighbour again when it answers what it was tried with, and not before', () => {
    const asked = newAskedHost();
    asked.look(unicast, 0);
    expect(asked.look(unicast, 1000)).toBe(true);
    asked.neighbourAnswered();
    expect(asked.address(unicast)).toEqual(ORIGIN);
    expect(asked.takeTried(group, 3000)).toBeUndefined();
    expect(asked.takeTried(unicast, 3000)).toEqual(NEIGHBOUR);
    asked.neighbourAnswered();
    expect(asked.address(unicast)).toEqual(NEIGHBOUR);
    expect(asked.takeTried(unicast, 9000)).toBeUndefined();
    // It has time to answer anew.
    expect(asked.look(unicast, 9000)).toBe(false);
    expect(asked.look(unicast, 9500)).toBe(false);
    expect(asked.look(unicast, 10_000)).toBe(true);
  });

  it('stays the origin when the neighbour says that it has let go', () => {
    const asked = newAskedHost();
    expect(asked.giveUp(0)).toBe(true);
    expect(asked.takeTried(unicast, 2000)).toEqual(NEIGHBOUR);
    expect(asked.giveUp(2001)).toBe(false);
    asked.neighbourAnswered();
    expect(asked.address(unicast)).toEqual(ORIGIN);
    expect(asked.takeTried(unicast, 5999)).toBeUndefined();
    expect(asked.takeTried(unicast, 6000)).toEqual(NEIGHBOUR);
  });
});
