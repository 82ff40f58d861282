// What the agent knows of a guest's clock, against a guest whose clock the test makes up: it shows
// `host + shift` while it runs.

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  clockOrigin,
  GuestClock,
  nanoseconds,
  readMonotonic,
} from '../../packages/clone-agent/src/guest/clock.js';

/** A look that took `forwardMs` to the guest and `backMs` back. */
function look(shift: number, at: number, forwardMs: number, backMs: number) {
  return {
    monotonicMs: at + forwardMs + shift,
    sentAtMs: at,
    receivedAtMs: at + forwardMs + backMs,
  };
}

describe('GuestClock', () => {
  test('knows nothing before the first look', () => {
    expect(new GuestClock().at(5)).toBeUndefined();
  });

  test('the truth lies between its bounds, whatever the looks took', () => {
    const delay = fc.double({ min: 0, max: 500, noNaN: true });
    const looks = fc.array(fc.tuple(fc.double({ min: 1, max: 1e5, noNaN: true }), delay, delay), {
      minLength: 1,
      maxLength: 20,
    });
    fc.assert(
      fc.property(looks, fc.double({ min: -1e6, max: 1e6, noNaN: true }), (given, shift) => {
        const clock = new GuestClock();
        let at = 0;
        for (const [pauseMs, forwardMs, backMs] of given) {
          at += pauseMs + forwardMs + backMs;
          clock.observe(look(shift, at - forwardMs - backMs, forwardMs, backMs));
        }
        const { monotonicMs, lowMs, highMs } = clock.at(at)!;
        const rounding = 1e-6;
        expect(lowMs).toBeLessThanOrEqual(at + shift + rounding);
        expect(highMs).toBeGreaterThanOrEqual(at + shift - rounding);
        expect(monotonicMs).toBeGreaterThanOrEqual(lowMs - rounding);
        expect(monotonicMs).toBeLessThanOrEqual(highMs + rounding);
      }),
    );
  });

  test('a slow look spoils nothing that is known', () => {
    const clock = new GuestClock();
    clock.observe(look(7, 100, 0.5, 0.5));
    const before = clock.at(1000)!;
    clock.observe(look(7, 200, 300, 400));
    expect(clock.at(1000)!.monotonicMs).toBeCloseTo(before.monotonicMs, 6);
  });

  test('an answer that lay about tells no less than one that was read at once', () => {
    const clock = new GuestClock();
    clock.observe(look(7, 100, 1, 600));
    expect(clock.at(1000)!.monotonicMs).toBeCloseTo(1007, 6);
  });

  test('what contradicts it takes its place: the guest has set its clock otherwise', () => {
    const clock = new GuestClock();
    clock.observe(look(7, 100, 1, 1));
    clock.observe(look(9000, 200, 1, 1));
    expect(clock.at(1000)!.monotonicMs).toBeCloseTo(10_000, 6);
  });

  test('a clone goes on from where its parent stood', () => {
    const parent = new GuestClock();
    parent.observe(look(7, 100, 1, 1));
    const stood = parent.at(500)!;
    const clone = new GuestClock();
    clone.start(800, { reading: stood, virtualMs: 30 });
    expect(clone.at(1000)!.monotonicMs).toBeCloseTo(stood.monotonicMs + 200, 6);
  });

  test('the machine tells how long it ran, however late its stop is heard of', () => {
    const clock = new GuestClock();
    expect(clock.stoppedAt(40)).toBeUndefined();
    clock.start(800, { virtualMs: 30 });
    expect(clock.stoppedAt(42.5)).toBe(812.5);
    expect(clock.stoppedAt(undefined)).toBeUndefined();
    expect(clock.at(900)).toBeUndefined();
    clock.start(900, { virtualMs: undefined });
    expect(clock.stoppedAt(50)).toBeUndefined();
  });
});

test('the origin is the wall clock without the reading', () => {
  const now = performance.now();
  const reading = { monotonicMs: 4000, lowMs: 4000, highMs: 4000 };
  expect(Math.abs(clockOrigin(reading, now) + 4000 - Date.now())).toBeLessThan(1000);
});

test('times of the port are nanoseconds', () => {
  expect(nanoseconds(1_795_403_607_784.25)).toBe('1795403607784250000');
  expect(readMonotonic('6019445556')).toBe(6019.445556);
});

test.each([undefined, '', 'x', '-1', '1.5', '9'.repeat(19)])('%j is no reading', (text) => {
  expect(readMonotonic(text)).toBeUndefined();
});
