// The order in which pages are fetched that clones elsewhere touched first: the first ones as they
// were touched, as a program that starts waits for each; the many behind them in sweeps, so that a
// whole working set is few requests. Called by the pager.

import { BLOCK_PAGES } from './push-windows.js';

/** Pages that other hosts are told of: 512 MiB. */
export const LIKELY_PAGES_MAX = 131_072;
/** 16 MiB: what a program touches until it runs. */
const IN_ORDER_PAGES = 4096;
/** What was pushed beside a touched page was never asked for: such a block is wanted whole. */
const BLOCK_TOUCHES_MIN = 5;

/** @param touched without duplicates */
export function inSweeps(touched: readonly number[]): number[] {
  const first = touched.slice(0, IN_ORDER_PAGES);
  const wanted = new Set(touched.slice(IN_ORDER_PAGES));
  const touches = new Map<number, number>();
  for (const page of touched) {
    const block = Math.floor(page / BLOCK_PAGES);
    touches.set(block, (touches.get(block) ?? 0) + 1);
  }
  for (const [block, count] of touches) {
    if (count < BLOCK_TOUCHES_MIN) continue;
    for (let index = 0; index < BLOCK_PAGES; index += 1) wanted.add(block * BLOCK_PAGES + index);
  }
  for (const page of first) wanted.delete(page);
  return [...first, ...[...wanted].sort((a, b) => a - b)];
}
