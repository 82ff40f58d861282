// The order in which pages are fetched that clones elsewhere touched first: the first ones as they
// were touched, as a program that starts waits for each; the many behind them in sweeps, so that a
// whole working set is few requests. Called by the pager.

/** Pages that other hosts are told of: 512 MiB. */
export const LIKELY_PAGES_MAX = 131_072;
/** 16 MiB: what a program touches until it runs. */
const IN_ORDER_PAGES = 4096;

/** @param touched without duplicates */
export function inSweeps(touched: readonly number[]): number[] {
  const first = touched.slice(0, IN_ORDER_PAGES);
  const rest = touched.slice(IN_ORDER_PAGES);
  return [...first, ...rest.sort((a, b) => a - b)];
}
