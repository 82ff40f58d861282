// What the agent knows of a guest's clock, against a guest whose clock the test makes up: it shows
// `host + shift` while it runs.

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
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
    clone.start({ earliestMs: 800, latestMs: 800 }, { reading: stood, virtualMs: 30 });
    expect(clone.at(1000)!.monotonicMs).toBeCloseTo(stood.monotonicMs + 200, 6);
  });

  test('a clone that went on late is known to have done so when it was looked at', () => {
    const reading = { monotonicMs: 4000, lowMs: 3999, highMs: 4001 };
    const clock = new GuestClock();
    clock.start({ earliestMs: 800, latestMs: 860 }, { reading, virtualMs: 30 });
    // It went on at 840.
    expect(clock.at(900)).toMatchObject({ monotonicMs: 4100 });
    expect(clock.at(900)!.lowMs).toBeLessThan(4060);
    clock.observe(look(3160, 1000, 0.5, 0.5));
    expect(clock.at(1100)!.monotonicMs).toBeGreaterThanOrEqual(4260);
    expect(clock.at(1100)!.monotonicMs).toBeLessThan(4260.6);
  });

  test('a look leaves the best guess alone that it does not contradict', () => {
    const reading = { monotonicMs: 4000, lowMs: 3999, highMs: 4001 };
    const clock = new GuestClock();
    clock.start({ earliestMs: 800, latestMs: 860 }, { reading, virtualMs: 30 });
    clock.observe(look(3200, 1000, 5, 3));
    expect(clock.at(1100)!.monotonicMs).toBeCloseTo(4300, 6);
  });

  const span = fc.double({ min: 0, max: 300, noNaN: true });
  const generations = fc.array(fc.record({ early: span, late: span, ran: span, forward: span }), {
    minLength: 1,
    maxLength: 8,
  });

  test('over generations the truth lies between the bounds, which do not grow', () => {
    fc.assert(
      fc.property(generations, fc.double({ min: 0, max: 1e5, noNaN: true }), (given, first) => {
        let monotonicMs = first;
        let stood = { monotonicMs: first, lowMs: first - 1, highMs: first + 1 };
        for (const { early, late, ran, forward } of given) {
          const clock = new GuestClock();
          const wentOn = 1000;
          const resumed = { earliestMs: wentOn - early, latestMs: wentOn + late };
          clock.start(resumed, { reading: stood, virtualMs: 50 });
          const shift = monotonicMs - wentOn;
          clock.observe(look(shift, wentOn + 400, forward, forward));
          monotonicMs += ran;
          const stopped = { earliestMs: wentOn + ran - early, latestMs: wentOn + ran + late };
          stood = clock.whenStopped(stopped, 50 + ran)!;
          expect(stood.lowMs).toBeLessThanOrEqual(monotonicMs);
          expect(stood.highMs).toBeGreaterThanOrEqual(monotonicMs);
        }
        expect(stood.highMs - stood.lowMs).toBeLessThan(3);
      }),
    );
  });

  test.each([
    ['the machine does not tell how long it ran', undefined],
    ['it is not known since when it ran', 50],
  ])('%s: it stood still between the command and its answer', (_, virtualMs) => {
    const clock = new GuestClock();
    const stopped = { earliestMs: 890, latestMs: 900 };
    expect(clock.whenStopped(stopped, virtualMs)).toBeUndefined();
    clock.observe(look(7, 100, 1, 1));
    const { monotonicMs, lowMs, highMs } = clock.whenStopped(stopped, virtualMs)!;
    expect(monotonicMs).toBeCloseTo(902, 6);
    expect(lowMs).toBeLessThan(897);
    expect(highMs).toBeGreaterThan(907);
  });

  test('the machine tells how long it ran, however late its stop is heard of', () => {
    const clock = new GuestClock();
    clock.start({ earliestMs: 800, latestMs: 800 }, { virtualMs: 30 });
    clock.observe(look(7, 810, 1, 1));
    const stopped = { earliestMs: 811, latestMs: 1400 };
    expect(clock.whenStopped(stopped, 42.5)!.monotonicMs).toBeCloseTo(819.5, 6);
  });

  test('of a clock that was forgotten nothing is known', () => {
    const clock = new GuestClock();
    clock.start({ earliestMs: 800, latestMs: 800 }, { virtualMs: 30 });
    clock.observe(look(7, 810, 1, 1));
    clock.forget();
    expect(clock.at(900)).toBeUndefined();
    expect(clock.errorMsMax()).toBeUndefined();
    expect(clock.originMs()).toBeUndefined();
  });

  test('the origin is the wall clock without the reading', () => {
    const clock = new GuestClock();
    const now = performance.now();
    const reading = { monotonicMs: 4000, lowMs: 3990, highMs: 4002 };
    clock.start({ earliestMs: now, latestMs: now }, { reading, virtualMs: 0 });
    expect(Math.abs(clock.originMs()! + 4000 - Date.now())).toBeLessThan(1000);
    expect(clock.errorMsMax()).toBeGreaterThanOrEqual(10);
  });
});

test('times of the port are nanoseconds', () => {
  expect(nanoseconds(1_795_403_607_784.25)).toBe('1795403607784250000');
  expect(readMonotonic('6019445556')).toBe(6019.445556);
});

test.each([undefined, '', 'x', '-1', '1.5', '9'.repeat(19)])('%j is no reading', (text) => {
  expect(readMonotonic(text)).toBeUndefined();
});
