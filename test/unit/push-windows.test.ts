// Which pages the pager pushes ahead of a guest that fills fresh memory.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  BLOCK_PAGES,
  isMarker,
  newPushWindowsMemory,
  PushWindows,
  WINDOW_PAGES,
} from '../../packages/clone-agent/src/pager/push-windows.js';

const PAGES = 8 * WINDOW_PAGES;

/** A guest that touches pages in an order; returns how many of them it had to ask for. */
function fill(pages: Iterable<number>, windows = newWindows(PAGES), nowMs = 1): number {
  const cached = new Set<number>();
  let asked = 0;
  for (const page of pages) {
    if (cached.has(page)) continue;
    cached.add(page);
    asked += 1;
    if (!windows.touch(page, nowMs)) continue;
    for (let pushed = windows.firstPage; pushed < windows.firstPage + windows.count; pushed += 1) {
      if (!isMarker(pushed)) cached.add(pushed);
    }
  }
  return asked;
}

function newWindows(pageCount: number): PushWindows {
  return new PushWindows(newPushWindowsMemory(pageCount), pageCount);
}

const ascending = Array.from({ length: PAGES }, (_, page) => page);
const descending = ascending.toReversed();
/** Huge pages one after another, each from its end. */
const hugePages = ascending.map((page) => page - 2 * (page % WINDOW_PAGES) + WINDOW_PAGES - 1);

test.each([
  ['from the beginning', ascending],
  ['from the end', descending],
  ['by huge pages', hugePages],
])('memory that is filled %s costs few READs', (_, pages) => {
  expect(new Set(pages).size).toBe(PAGES);
  // While it grows, then two for each window.
  expect(fill(pages)).toBeLessThan(8 + 2 * (PAGES / WINDOW_PAGES));
});

test('a stray touch pushes one block, also the last one of an object', () => {
  const pageCount = 5 * BLOCK_PAGES + 3;
  const windows = newWindows(pageCount);
  expect(windows.touch(2 * BLOCK_PAGES + 1, 1)).toBe(true);
  expect(windows).toMatchObject({ firstPage: 2 * BLOCK_PAGES, count: BLOCK_PAGES });
  expect(windows.touch(pageCount - 1, 1)).toBe(true);
  expect(windows).toMatchObject({ firstPage: 5 * BLOCK_PAGES, count: 3 });
});

test('a window is pushed once, and again when the kernel has dropped it', () => {
  const windows = newWindows(PAGES);
  expect(windows.touch(20, 5)).toBe(true);
  expect(windows.touch(21, 6)).toBe(false);
  expect(windows.touch(21, 5000)).toBe(true);
  windows.forget();
  expect(windows.touch(22, 5001)).toBe(true);
});

test('with patience stray touches push nothing, and a stream nearly all', () => {
  const patient = () => new PushWindows(newPushWindowsMemory(PAGES), PAGES, 4);
  const windows = patient();
  for (const page of [0, 3, 7, 9, 40, 41]) expect(windows.touch(page, 1)).toBe(false);
  expect(windows.touch(12, 1)).toBe(true);
  expect(windows).toMatchObject({ firstPage: 0, count: BLOCK_PAGES });
  // Beside what was pushed, at once.
  expect(windows.touch(BLOCK_PAGES, 1)).toBe(true);
  for (const pages of [ascending, descending, hugePages]) {
    expect(fill(pages, patient())).toBeLessThan(12 + 2 * (PAGES / WINDOW_PAGES));
  }
});

test('two streams at once do not disturb each other', () => {
  const half = PAGES / 2;
  const both = ascending.slice(0, half).flatMap((page) => [page, half + page]);
  expect(fill(both)).toBeLessThan(2 * (8 + (2 * half) / WINDOW_PAGES));
});

test('whatever is touched in whatever order, what is pushed lies within the object', () => {
  const property = fc.property(
    fc.integer({ min: 1, max: 3000 }),
    fc.array(fc.tuple(fc.nat(), fc.nat({ max: 700 })), { maxLength: 200 }),
    (pageCount, touches) => {
      const windows = newWindows(pageCount);
      let nowMs = 1;
      for (const [anywhere, passedMs] of touches) {
        nowMs += passedMs;
        const page = anywhere % pageCount;
        if (!windows.touch(page, nowMs)) continue;
        expect(windows.firstPage).toBeGreaterThanOrEqual(0);
        expect(windows.firstPage + windows.count).toBeLessThanOrEqual(pageCount);
        expect(windows.count).toBeLessThanOrEqual(2 * WINDOW_PAGES);
      }
    },
  );
  fc.assert(property);
});
