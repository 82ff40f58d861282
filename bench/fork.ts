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
import { type Check, checkTable } from './support/report.js';
import { type Summary, summarise } from './support/statistics.js';

const PARTS = ['pause', 'clones', 'memory', 'fill', 'alone'] as const;
type Part = (typeof PARTS)[number];

interface ForkReport {
  readonly bench: 'fork';
  readonly quick: boolean;
  readonly at: string;
  readonly durationS: number;
  readonly machine: MachineFacts;
  /** The part of the processors that others used when measurements began. */
  readonly busyParts: Summary;
  checks: Check[];
  pause?: PauseResult[];
  clones?: ClonesPart;
  memory?: MemoryResult[];
  fill?: FillResult[];
  alone?: AloneResult;
}

const loadAverage = os.loadavg();
const options = benchOptions(PARTS);
const context: BenchContext = { options, quiet: new Quiet(options.quick), say };
const report = await run();
process.stdout.write(options.json ? `${JSON.stringify(report)}\n` : tables(report));

async function run(): Promise<ForkReport> {
  const startedAt = performance.now();
  const machine = await prepare();
  const wanted = (part: Part) => options.only.length === 0 || options.only.includes(part);
  const measured: Partial<ForkReport> = {};
  if (wanted('pause')) measured.pause = await benchPause(context);
  if (wanted('clones')) measured.clones = await benchClones(context);
  if (wanted('memory')) measured.memory = await benchMemory(context);
  if (wanted('fill')) measured.fill = await benchFill(context);
  if (wanted('alone')) measured.alone = await benchAlone(context);
  return {
    bench: 'fork',
    quick: options.quick,
    at: new Date().toISOString(),
    durationS: Math.round((performance.now() - startedAt) / 1000),
    machine,
    busyParts: summarise(context.quiet.busyParts),
    checks: [
      ...(measured.pause === undefined ? [] : checkPause(measured.pause)),
      ...(measured.clones === undefined ? [] : checkClones(measured.clones)),
      ...(measured.memory === undefined ? [] : checkMemory(measured.memory)),
      ...(measured.fill === undefined ? [] : checkFill(measured.fill)),
      ...(measured.alone === undefined ? [] : checkAlone(measured.alone)),
    ],
    ...measured,
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

function tables({ machine, ...report }: ForkReport): string {
  const { processors, processorModel, kernel, qemu, accelerator, node } = machine;
  const head =
    `Snowfork ${machine.snowfork}, ${report.at}, ${report.durationS} s: ` +
    `${processors} × ${processorModel}, Linux ${kernel}, QEMU ${qemu} (${accelerator}), ` +
    `Node ${node}, load ${machine.loadAverage.map((load) => load.toFixed(2)).join(' ')}\n`;
  return [
    head,
    ...(report.pause === undefined ? [] : [pauseTable(report.pause)]),
    ...(report.clones === undefined ? [] : [clonesTables(report.clones)]),
    ...(report.memory === undefined ? [] : [memoryTable(report.memory)]),
    ...(report.fill === undefined ? [] : [fillTable(report.fill)]),
    ...(report.alone === undefined ? [] : [aloneTable(report.alone)]),
    checkTable(report.checks),
  ].join('\n');
}
