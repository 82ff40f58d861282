// `npm run bench -- safety`: what it costs that a fork can be trusted, and how long deaths are felt, on
// real VMs of this machine, by an agent of the bench's own. `docs/benchmarks.md` says what each figure
// means. The parts are in `safety/`; each starts and ends its agent, and they run one after another.

import os from 'node:os';
import {
  type AdoptionResult,
  adoptionTable,
  benchAdoption,
  checkAdoption,
} from './safety/adoption.js';
import { benchPager, checkPager, type PagerResult, pagerTable } from './safety/pager.js';
import { benchRepair, checkRepair, type RepairResult, repairTable } from './safety/repair.js';
import { benchRunning, checkRunning, type RunningResult, runningTable } from './safety/running.js';
import { buildImages, endHost, say, startHost } from './support/bench-host.js';
import type { BenchContext } from './support/context.js';
import { type MachineFacts, machineFacts, Quiet } from './support/machine.js';
import { benchOptions } from './support/options.js';
import { type Check, checkTable, headLine } from './support/report.js';
import { type Summary, summarise } from './support/statistics.js';

const PARTS = ['repair', 'pager', 'adoption', 'running'] as const;
type Part = (typeof PARTS)[number];

interface SafetyReport {
  readonly bench: 'safety';
  readonly quick: boolean;
  readonly at: string;
  readonly durationS: number;
  /** Each part, with the agent's start and end. */
  readonly partsS: Partial<Record<Part, number>>;
  readonly machine: MachineFacts;
  /** The part of the processors that others used when measurements began. */
  readonly busyParts: Summary;
  readonly checks: readonly Check[];
  readonly repair: RepairResult | undefined;
  readonly pager: PagerResult | undefined;
  readonly adoption: AdoptionResult | undefined;
  readonly running: RunningResult[] | undefined;
}

const loadAverage = os.loadavg();
const options = benchOptions(PARTS);
const context: BenchContext = { options, quiet: new Quiet(options.quick), say };
const report = await run();
process.stdout.write(options.json ? `${JSON.stringify(report)}\n` : tables(report));

async function run(): Promise<SafetyReport> {
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
  const repair = await measure('repair', benchRepair);
  const pager = await measure('pager', benchPager);
  const adoption = await measure('adoption', benchAdoption);
  const running = await measure('running', benchRunning);
  return {
    bench: 'safety',
    quick: options.quick,
    at: new Date().toISOString(),
    durationS: Math.round((performance.now() - startedAt) / 1000),
    partsS,
    machine,
    busyParts: summarise(context.quiet.busyParts),
    checks: [
      ...(repair === undefined ? [] : checkRepair(repair)),
      ...(pager === undefined ? [] : checkPager(pager)),
      ...(adoption === undefined ? [] : checkAdoption(adoption)),
      ...(running === undefined ? [] : checkRunning(running)),
    ],
    ...{ repair, pager, adoption, running },
  };
}

async function prepare(): Promise<MachineFacts> {
  const host = await startHost({ warmPoolSize: 0 });
  try {
    await buildImages(host, [256]);
    return await machineFacts(host, loadAverage);
  } finally {
    await endHost(host);
  }
}

function tables(report: SafetyReport): string {
  return [
    headLine(report),
    ...(report.repair === undefined ? [] : [repairTable(report.repair)]),
    ...(report.pager === undefined ? [] : [pagerTable(report.pager)]),
    ...(report.adoption === undefined ? [] : [adoptionTable(report.adoption)]),
    ...(report.running === undefined ? [] : [runningTable(report.running)]),
    checkTable(report.checks),
  ].join('\n');
}
