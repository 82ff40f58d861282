// `sf top`: what the host and its VMs are doing, again and again. Called by `program.ts`.

import { InvalidArgumentError } from 'commander';
import type { VmInfo } from '../../api/schemas.js';
import type { Host } from '../../host/host.js';
import { pause } from '../../host/waits.js';
import { type CommandSpec, parseSeconds } from '../command.js';
import { withScreen } from '../screen.js';
import {
  countPages,
  type Rates,
  ratesBetween,
  renderTop,
  type Sample,
  type VmSample,
} from '../top.js';

const INTERVAL_MS = 1000;
/** Measuring one walks its page tables, so that not all are measured at once. */
const MEASURED_AT_ONCE = 4;

export const top: CommandSpec = {
  syntax: 'top',
  summary: 'VMs, pages by source and rates, live',
  details:
    'q or Ctrl-C leaves. READS are page faults that reached the pager; ZERO pages were free or ' +
    'zero in the parent, LAYER pages were read from a layer, FRESH, REPLAYED and AHEAD ones were ' +
    'pushed before anybody asked, REFUSED reads asked for more than was at hand. Where the ' +
    'output is no terminal, and with --json, one sample follows the other.',
  options: [
    {
      flags: '-i, --interval <seconds>',
      summary: 'time between samples; 1 when not given',
      parse: parseSeconds,
    },
    { flags: '-c, --count <number>', summary: 'end after so many samples', parse: parseCount },
  ],
  examples: [
    { line: 'sf top', says: 'q leaves' },
    { line: 'sf top -i 0.2', says: 'five times a second' },
    { line: 'sf top --json -c 2 | tail -n 1', says: 'what happened in one second' },
  ],
  async run(session, _args, { interval = INTERVAL_MS, count = Number.POSITIVE_INFINITY }) {
    const { output } = session;
    const host = await session.connect();
    return await withScreen(session, async (screen) => {
      const { signal } = screen;
      const info = await host.info({ signal });
      let before: Sample | undefined;
      for (let samples = 1; ; samples++) {
        const sample = await takeSample(host, signal, screen.rows);
        const rates = before === undefined ? undefined : ratesBetween(before, sample);
        if (output.json) output.document(jsonSample(sample, rates));
        else {
          const styleHead = (text: string) => output.style('bold', text);
          screen.draw(renderTop(info, sample, rates, screen.rows, styleHead));
        }
        if (samples >= (count as number)) return;
        before = sample;
        await pause(interval as number, signal);
      }
    });
  },
};

/** Of all VMs; only those that can be seen are measured. */
async function takeSample(
  host: Host,
  signal: AbortSignal,
  vmsMeasuredMax: number,
): Promise<Sample> {
  const [stats, vms] = await Promise.all([host.stats({ signal }), host.vms({ signal })]);
  const at = Date.now();
  const measured: VmSample[] = vms.map((vm) => ({ vm, stats: undefined }));
  const rest = vms.slice(0, vmsMeasuredMax).entries();
  const measure = async () => {
    for (const [index, vm] of rest) measured[index] = await measureVm(host, vm, signal);
  };
  await Promise.all(Array.from({ length: MEASURED_AT_ONCE }, measure));
  return { at, stats, vms: measured };
}

/** One that ends meanwhile has no figures. */
async function measureVm(host: Host, vm: VmInfo, signal: AbortSignal): Promise<VmSample> {
  try {
    return { vm, stats: await (await host.vm(vm.id, { signal })).stats({ signal }) };
  } catch {
    if (signal.aborted) throw signal.reason;
    return { vm, stats: undefined };
  }
}

function jsonSample({ at, stats, vms }: Sample, rates: Rates | undefined): unknown {
  const shown = vms.map(({ vm, stats }) => ({ ...vm, stats, rates: rates?.vms[vm.id] }));
  const pages = { ...countPages(stats), perSecond: rates?.pages };
  return {
    at,
    memory: stats.memory,
    pool: stats.pool,
    pages,
    latencyUs: rates?.latencyUs,
    vms: shown,
  };
}

function parseCount(text: string): number {
  const count = Number(text);
  if (Number.isInteger(count) && count > 0) return count;
  throw new InvalidArgumentError('A whole number above 0 is needed.');
}
