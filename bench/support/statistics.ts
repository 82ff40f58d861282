// What is reported of a number of measurements: the middle and the spread, never the best alone.

export interface Summary {
  readonly median: number;
  readonly lowerQuartile: number;
  readonly upperQuartile: number;
  readonly min: number;
  readonly max: number;
  readonly count: number;
}

/** @throws RangeError when there is nothing to summarise. */
export function summarise(values: readonly number[]): Summary {
  if (values.length === 0) throw new RangeError('nothing was measured');
  const sorted = values.toSorted((a, b) => a - b);
  return {
    median: round(quantile(sorted, 0.5)),
    lowerQuartile: round(quantile(sorted, 0.25)),
    upperQuartile: round(quantile(sorted, 0.75)),
    min: round(sorted[0]!),
    max: round(sorted.at(-1)!),
    count: sorted.length,
  };
}

export function median(values: readonly number[]): number {
  return summarise(values).median;
}

/** Of many measurements of one thing, where the rare slow ones matter. */
export interface Tail {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
  readonly count: number;
}

/** @throws RangeError when there is nothing to summarise. */
export function tailOf(values: readonly number[]): Tail {
  if (values.length === 0) throw new RangeError('nothing was measured');
  const sorted = values.toSorted((a, b) => a - b);
  const [p50, p99] = [round(quantile(sorted, 0.5)), round(quantile(sorted, 0.99))];
  return { p50, p99, max: round(sorted.at(-1)!), count: sorted.length };
}

/** The same field of many objects, each summarised; a field that some lack counts as 0 there. */
export function summariseFields(
  objects: readonly Readonly<Record<string, number>>[],
): Record<string, Summary> {
  const names = new Set(objects.flatMap((object) => Object.keys(object)));
  return Object.fromEntries(
    [...names].map((name) => [name, summarise(objects.map((object) => object[name] ?? 0))]),
  );
}

/** Linear between neighbours. */
function quantile(sorted: readonly number[], part: number): number {
  const at = part * (sorted.length - 1);
  const below = Math.floor(at);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below]! + (at - below) * (sorted[above]! - sorted[below]!);
}

function round(value: number): number {
  return Math.abs(value) >= 1000 ? Math.round(value) : Number(value.toPrecision(4));
}
