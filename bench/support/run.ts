// Runs the parts of a bench one after another and prints what they found: one JSON object, or tables.
// Knows nothing of what a part measures. Called by each bench's own file.

import os from 'node:os';
import { buildImages, endHost, say, startHost } from './bench-host.js';
import type { BenchContext } from './context.js';
import { type MachineFacts, machineFacts, Quiet } from './machine.js';
import { benchOptions } from './options.js';
import { type Check, checkTable, headLine } from './report.js';
import { type Summary, summarise } from './statistics.js';

interface BenchReport {
  readonly bench: string;
  readonly quick: boolean;
  readonly at: string;
  readonly durationS: number;
  /** Each part, with the agent's start and end. */
  readonly partsS: Readonly<Record<string, number>>;
  readonly machine: MachineFacts;
  /** The part of the processors that others used when measurements began. */
  readonly busyParts: Summary;
  readonly checks: readonly Check[];
}

interface PartResult {
  /** Stands in the report under the part's name. */
  readonly result: unknown;
  readonly checks: Check[];
  readonly table: string;
}

type Part = (context: BenchContext) => Promise<PartResult>;

/** A part of a bench, from what it measures, what it promises and how it is shown. */
export function part<Result>(
  measure: (context: BenchContext) => Promise<Result>,
  check: (result: Result) => Check[],
  table: (result: Result) => string,
): Part {
  return async (context) => {
    const result = await measure(context);
    return { result, checks: check(result), table: table(result) };
  };
}

export interface BenchDefinition {
  readonly bench: string;
  /** Of the images that are built before the first part; all when not given. */
  readonly sizesMib?: readonly number[];
  /** By name, in the order in which they run; each starts and ends its own agent. */
  readonly parts: Readonly<Record<string, Part>>;
}

/** Measures what the command line asks for, and prints it. */
export async function runBench({ bench, sizesMib, parts }: BenchDefinition): Promise<void> {
  const loadAverage = os.loadavg();
  const options = benchOptions(Object.keys(parts));
  const context: BenchContext = { options, quiet: new Quiet(options.quick), say };
  const startedAt = performance.now();
  const machine = await prepare(loadAverage, sizesMib);
  const partsS: Record<string, number> = {};
  const found: [string, PartResult][] = [];
  for (const [name, run] of Object.entries(parts)) {
    if (options.only.length > 0 && !options.only.includes(name)) continue;
    const partStartedAt = performance.now();
    found.push([name, await run(context)]);
    partsS[name] = Math.round((performance.now() - partStartedAt) / 1000);
  }
  const report: BenchReport = {
    bench,
    quick: options.quick,
    at: new Date().toISOString(),
    durationS: Math.round((performance.now() - startedAt) / 1000),
    partsS,
    machine,
    busyParts: summarise(context.quiet.busyParts),
    checks: found.flatMap(([, { checks }]) => checks),
  };
  const results = Object.fromEntries(found.map(([name, { result }]) => [name, result]));
  const tables = [headLine(report), ...found.map(([, { table }]) => table)];
  process.stdout.write(
    options.json
      ? `${JSON.stringify({ ...report, ...results })}\n`
      : [...tables, checkTable(report.checks)].join('\n'),
  );
}

async function prepare(
  loadAverage: number[],
  sizesMib: readonly number[] | undefined,
): Promise<MachineFacts> {
  const host = await startHost({ warmPoolSize: 0 });
  try {
    await buildImages(host, sizesMib);
    return await machineFacts(host, loadAverage);
  } finally {
    await endHost(host);
  }
}
