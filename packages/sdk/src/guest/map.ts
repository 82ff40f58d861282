// `sf.map`: a parallel map whose workers are clones of this VM. Closures and all that they hold are
// there in the clones, as the whole memory is; only results travel. Built upon `calls.ts` alone.
//
//   item    0 1 2 3 4 5 6 7        clone k of m takes the items k-1, k-1+m, k-1+2m, …
//   clone   1 2 3 1 2 3 1 2        and exits with one settled result for each

import { SnowforkError } from '../api/errors.js';
import { encodeValue } from '../api/value.js';
import { assertCloneCount } from './answers.js';
import { type CloneResult, exit, fork, join, kill } from './calls.js';

/** Items that an error's message names; its details have all. */
const ITEMS_NAMED_MAX = 20;

export interface MapOptions {
  /** Clones at most: 1 to 256; never more than there are items. */
  readonly clones: number;
  /** Gives up: the clones are killed, and the call rejects with SF_ABORTED. */
  readonly signal?: AbortSignal | undefined;
}

type MapFunction<T, R> = (item: T, index: number) => R | Promise<R>;

/** An exception on its way from a clone. */
interface CarriedError {
  readonly name: string;
  readonly message: string;
  readonly stack?: string;
  /** Set on a SnowforkError. */
  readonly code?: string;
  readonly details?: unknown;
}

/** One item: `[value]`, or `[undefined, error]`. */
type CarriedItem = readonly [value: unknown, error?: CarriedError];

/**
 * Runs `fn` on every item, in clones of this VM, and returns the results in the order of the items.
 * `fn` sees all variables as they were at the call; what it changes stays in its clone.
 *
 * Rejects with what `fn` threw at the first item that failed (an error of the same name, message and
 * stack), or with SF_VM_GONE when a clone was lost: `details.items` are the indices without a result.
 * `mapSettled` gives the other results too.
 *
 * @throws SnowforkError SF_BAD_REQUEST, SF_NO_ROOM, SF_VM_GONE, SF_VALUE_TOO_LARGE, SF_ABORTED
 * @example
 * const prices = await sf.map(options, (option) => monteCarlo(option, model), { clones: 8 });
 */
export async function map<T, R>(
  items: readonly T[],
  fn: MapFunction<T, R>,
  options: MapOptions,
): Promise<R[]> {
  const settled = await mapSettled(items, fn, options);
  return settled.map((result) => {
    if (result.status === 'rejected') throw result.reason;
    return result.value;
  });
}

/**
 * `map`, with one settled result for each item, as `Promise.allSettled` has them.
 * @throws SnowforkError SF_BAD_REQUEST, SF_NO_ROOM, SF_ABORTED and others of `fork` and `join`
 */
export async function mapSettled<T, R>(
  items: readonly T[],
  fn: MapFunction<T, R>,
  { clones, signal }: MapOptions,
): Promise<PromiseSettledResult<R>[]> {
  assertCloneCount(clones);
  if (items.length === 0) return [];
  const { id, ticket } = await fork(Math.min(clones, items.length));
  const work = (cloneId: number) => runSlice(items, fn, cloneId, ticket.clones);
  if (id > 0) return exitWith(() => work(id));
  // No room for even one clone.
  if (ticket.clones === 0) return (await runSlice(items, fn, 1, 1)).map(settleItem<R>);
  const results = await joinOrKill(ticket.id, signal);
  return settle<R>(items.length, ticket.clones, results);
}

async function joinOrKill(ticket: string, signal: AbortSignal | undefined) {
  try {
    return await join<CarriedItem[]>(ticket, { signal });
  } catch (error) {
    // Without the one who wants their results the clones have no purpose.
    await kill(ticket).catch(() => {});
    throw error;
  }
}

/** Runs in the clone. It must not return: what follows the call of `map` is the parent's to do. */
async function exitWith(work: () => Promise<CarriedItem[]>): Promise<never> {
  try {
    return await exit(encodable(await work()));
  } catch (error) {
    console.error('sf.map: this clone could not hand over its results:', error);
    process.exit(1);
  }
}

async function runSlice<T, R>(
  items: readonly T[],
  fn: MapFunction<T, R>,
  cloneId: number,
  clones: number,
): Promise<CarriedItem[]> {
  const carried: CarriedItem[] = [];
  for (let index = cloneId - 1; index < items.length; index += clones) {
    try {
      carried.push([await fn(items[index]!, index)]);
    } catch (error) {
      carried.push([undefined, carry(error)]);
    }
  }
  return carried;
}

/** The results, with an error for each that can't travel; if all are too large, for every one. */
function encodable(carried: CarriedItem[]): CarriedItem[] {
  try {
    encodeValue(carried);
    return carried;
  } catch (error) {
    if ((error as SnowforkError).code !== 'SF_BAD_REQUEST') return allFailed(carried, error);
  }
  const checked = carried.map((item): CarriedItem => {
    try {
      encodeValue(item);
      return item;
    } catch (error) {
      return [undefined, carry(error)];
    }
  });
  try {
    encodeValue(checked);
    return checked;
  } catch (error) {
    return allFailed(carried, error);
  }
}

function allFailed(carried: CarriedItem[], error: unknown): CarriedItem[] {
  return carried.map(() => [undefined, carry(error)]);
}

function carry(error: unknown): CarriedError {
  if (!(error instanceof Error)) return { name: 'Error', message: String(error) };
  const { name, message, stack } = error;
  const common = { name, message, ...(stack === undefined ? {} : { stack }) };
  return error instanceof SnowforkError ? { ...common, ...error.toJSON() } : common;
}

function uncarry(carried: CarriedError): Error {
  const ours = typeof carried.code === 'string';
  const error = ours ? SnowforkError.fromJSON(carried) : new Error(carried.message);
  if (!ours) Object.defineProperty(error, 'name', { value: carried.name, configurable: true });
  // The stack in the clone says where it happened; the parent's says nothing.
  if (typeof carried.stack === 'string') error.stack = carried.stack;
  return error;
}

function settle<R>(
  itemCount: number,
  clones: number,
  results: readonly CloneResult<unknown>[],
): PromiseSettledResult<R>[] {
  const settled = new Array<PromiseSettledResult<R>>(itemCount);
  const missing: number[] = [];
  const reasons: string[] = [];
  for (const result of results) {
    const slice = result.status === 'fulfilled' ? settleSlice<R>(result.value) : undefined;
    if (slice === undefined) reasons.push(whyMissing(result));
    for (let index = result.id - 1, at = 0; index < itemCount; index += clones, at += 1) {
      const item = slice?.[at];
      if (item === undefined) missing.push(index);
      else settled[index] = item;
    }
  }
  if (missing.length === 0) return settled;
  const reason = lostError(missing, reasons);
  for (const index of missing) settled[index] = { status: 'rejected', reason };
  return settled;
}

/** Nothing when the value is none of ours: `fn` called `sf.exit` itself. */
function settleSlice<R>(carried: unknown): PromiseSettledResult<R>[] | undefined {
  if (!Array.isArray(carried) || !carried.every(isCarriedItem)) return undefined;
  return carried.map(settleItem<R>);
}

function isCarriedItem(item: unknown): item is CarriedItem {
  return Array.isArray(item) && (item.length === 1 || item.length === 2);
}

function settleItem<R>([value, error]: CarriedItem): PromiseSettledResult<R> {
  if (error === undefined || error === null) return { status: 'fulfilled', value: value as R };
  return { status: 'rejected', reason: uncarry(error) };
}

function whyMissing(result: CloneResult): string {
  if (result.status === 'rejected') return result.reason.message;
  return `clone ${result.id} exited before its work was done`;
}

function lostError(items: number[], reasons: string[]): SnowforkError {
  items.sort((a, b) => a - b);
  const named = items.slice(0, ITEMS_NAMED_MAX).join(', ');
  const more = items.length > ITEMS_NAMED_MAX ? ` and ${items.length - ITEMS_NAMED_MAX} more` : '';
  return new SnowforkError(
    'SF_VM_GONE',
    `there is no result for the items ${named}${more}: ${reasons.join('; ')}`,
    { details: { items, reasons } },
  );
}
