// `npm run bench -- fork`: what a fork costs, on real VMs of this machine, by an agent of the bench's
// own. `docs/benchmarks.md` says what each figure means. The parts are in `fork/`; each starts and
// ends its agent, and they run one after another.

import os from 'node:os';
import { type AloneResult, aloneTable, benchAlone, checkAlone } from './fork/alone.js';
import { benchClones, type ClonesPart, checkClones, clonesTables } from './fork/clones.js';
import { benchFill, checkFill, type FillResult, fillTable } from './fork/fill.js';
import { benchMemory, checkMemory, type MemoryResult, memoryTable } from './fork/memory.js';
import { benchPause, checkPause, type PauseResult, pauseTable } from './fork/pause.js';
import { buildImages, endHost, say, startHost } from './support/bench-host.js';
import type { BenchContext } from './support/context.js';
import { type MachineFacts, machineFacts, Quiet } from './support/machine.js';
import { benchOptions } from './support/options.js';
import { type Check, checkTable, headLine } from './support/report.js';
import { type Summary, summarise } from './support/statistics.js';

const PARTS = ['pause', 'clones', 'memory', 'fill', 'alone'] as const;
type Part = (typeof PARTS)[number];

interface ForkReport {
  readonly bench: 'fork';
  readonly quick: boolean;
  readonly at: string;
  readonly durationS: number;
  /** Each part, with the agent's start and end. */
  readonly partsS: Partial<Record<Part, number>>;
  readonly machine: MachineFacts;
  /** The part of the processors that others used when measurements began. */
  readonly busyParts: Summary;
  readonly checks: readonly Check[];
  readonly pause: PauseResult[] | undefined;
  readonly clones: ClonesPart | undefined;
  readonly memory: MemoryResult[] | undefined;
  readonly fill: FillResult[] | undefined;
  readonly alone: AloneResult | undefined;
}

const loadAverage = os.loadavg();
const options = benchOptions(PARTS);
const context: BenchContext = { options, quiet: new Quiet(options.quick), say };
const report = await run();
process.stdout.write(options.json ? `${JSON.stringify(report)}\n` : tables(report));

async function run(): Promise<ForkReport> {
  const startedAt = performance.now();
  const machine = await prepare();
  const partsS: Partial<Record<Part, number>> = {};
  const measure = async <T>(part: Part, bench: (context: BenchContext) => Promise<T>) => {
    if (options.only.length > 0 && !options.only.includes(part)) return undefined;
    const partStartedAt = performance.now();
    const result = await bench(context);
    partsS[part] = Math.round((performance.now() - partStartedAt) / 1000);
    return result;
  };
  const pause = await measure('pause', benchPause);
  const clones = await measure('clones', benchClones);
  const memory = await measure('memory', benchMemory);
  const fill = await measure('fill', benchFill);
  const alone = await measure('alone', benchAlone);
  return {
    bench: 'fork',
    quick: options.quick,
    at: new Date().toISOString(),
    durationS: Math.round((performance.now() - startedAt) / 1000),
    partsS,
    machine,
    busyParts: summarise(context.quiet.busyParts),
    checks: [
      ...(pause === undefined ? [] : checkPause(pause)),
      ...(clones === undefined ? [] : checkClones(clones)),
      ...(memory === undefined ? [] : checkMemory(memory)),
      ...(fill === undefined ? [] : checkFill(fill)),
      ...(alone === undefined ? [] : checkAlone(alone)),
    ],
    ...{ pause, clones, memory, fill, alone },
  };
}

async function prepare(): Promise<MachineFacts> {
  const host = await startHost({ warmPoolSize: 0 });
  try {
    await buildImages(host);
    return await machineFacts(host, loadAverage);
  } finally {
    await endHost(host);
  }
}

function tables(report: ForkReport): string {
  return [
    headLine(report),
    ...(report.pause === undefined ? [] : [pauseTable(report.pause)]),
    ...(report.clones === undefined ? [] : [clonesTables(report.clones)]),
    ...(report.memory === undefined ? [] : [memoryTable(report.memory)]),
    ...(report.fill === undefined ? [] : [fillTable(report.fill)]),
    ...(report.alone === undefined ? [] : [aloneTable(report.alone)]),
    checkTable(report.checks),
  ].join('\n');
}
