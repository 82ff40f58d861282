// What `sf top` shows: a sample of the host and its VMs, what happened between two samples, and both
// as lines. It asks nobody and draws nothing (`commands/top.ts`).

import type { HostInfo, HostStats, VmInfo, VmStats } from '../api/schemas.js';
import { formatBytes, formatDuration, PAGE_BYTES } from './format.js';
import { formatTable } from './output.js';

export interface VmSample {
  readonly vm: VmInfo;
  /** Undefined when it was not measured, or ended meanwhile. */
  readonly stats: VmStats | undefined;
}

export interface Sample {
  /** Milliseconds since the epoch. */
  readonly at: number;
  readonly stats: HostStats;
  readonly vms: readonly VmSample[];
}

/** Where pages came from; `refused` are reads of more pages than were at hand. */
export interface PageCounts {
  readonly reads: number;
  readonly zero: number;
  readonly layer: number;
  readonly fresh: number;
  readonly replayed: number;
  readonly ahead: number;
  readonly refused: number;
}
const NO_PAGES: PageCounts = {
  reads: 0,
  zero: 0,
  layer: 0,
  fresh: 0,
  replayed: 0,
  ahead: 0,
  refused: 0,
};
const SOURCES = Object.keys(NO_PAGES) as (keyof PageCounts)[];

export interface VmRates {
  /** Of one processor: 2 vCPUs at work are 2. */
  readonly processors: number;
  /** Pages touched for the first time. */
  readonly touchedPerSecond: number;
}

export interface Rates {
  readonly pages: PageCounts;
  /** Upper bounds of the bucket, of the reads between the samples; undefined without any. */
  readonly latencyUs: { readonly p50: number; readonly p99: number } | undefined;
  readonly vms: Readonly<Record<string, VmRates>>;
}

/** Totals of all snapshots that are served now. */
export function countPages(stats: HostStats): PageCounts {
  return sum([...pagesByObject(stats).values()]);
}

/** What happened between two samples, per second. */
export function ratesBetween(before: Sample, after: Sample): Rates {
  const seconds = Math.max((after.at - before.at) / 1000, 0.001);
  const earlier = pagesByObject(before.stats);
  // Object by object, as the counts of one go with its snapshot.
  const pages = [...pagesByObject(after.stats)].map(([key, counts]) =>
    map(counts, (source) => Math.max(0, counts[source] - (earlier.get(key)?.[source] ?? 0))),
  );
  const total = sum(pages);
  return {
    pages: map(total, (source) => total[source] / seconds),
    latencyUs: latencyBetween(before.stats, after.stats),
    vms: vmRates(before, after, seconds),
  };
}

/** Lines for people, at most `rows` of them. */
export function renderTop(
  info: HostInfo,
  sample: Sample,
  rates: Rates | undefined,
  rows: number,
  styleHead: (text: string) => string = (text) => text,
): string[] {
  const lines = [...renderHost(info, sample, rates), '', ...renderPages(sample, rates, styleHead)];
  const rowOf = vmRow(sample.at, rates);
  const [head = '', ...vms] = formatTable(VM_HEAD, sample.vms.map(rowOf), styleHead);
  lines.push('', head);
  const fitting = Math.max(0, rows - lines.length);
  if (vms.length <= fitting) return [...lines, ...vms];
  const shown = vms.slice(0, Math.max(0, fitting - 1));
  return [...lines, ...shown, `… and ${vms.length - shown.length} more`];
}

const VM_HEAD = ['VM', 'IMAGE', 'STATE', 'PARENT', 'CPU', 'PRIVATE', 'SHARED', 'TOUCHED/S', 'AGE'];

function renderHost(
  info: HostInfo,
  { at, stats, vms }: Sample,
  rates: Rates | undefined,
): string[] {
  const { memory, pool, pager } = stats;
  const { version, accelerator } = info.qemu;
  const latency =
    rates?.latencyUs === undefined
      ? ''
      : `, faults p50 < ${rates.latencyUs.p50} µs, p99 < ${rates.latencyUs.p99} µs`;
  return [
    `agent ${info.version} for ${formatDuration(at - info.startedAt)}, QEMU ${version} with ` +
      `${accelerator}, ${vms.length} VMs, pager ${pager.pid}${latency}`,
    `memory ${formatBytes(memory.availableBytes)} of ${formatBytes(memory.totalBytes)} available, ` +
      `${formatBytes(memory.promisedBytes)} promised, room ${formatBytes(memory.roomBytes)}`,
    `layers ${formatBytes(memory.layersBytes)} of ${formatBytes(memory.layersBytesMax)}, ` +
      `warm pool ${pool.ready} of ${pool.size}, ${formatBytes(pool.pssBytes)}`,
  ];
}

function renderPages(
  { stats }: Sample,
  rates: Rates | undefined,
  styleHead: (text: string) => string,
): string[] {
  const total = countPages(stats);
  const row = (name: string, counts: PageCounts | undefined) => [
    name,
    ...SOURCES.map((source) => (counts === undefined ? '-' : String(Math.round(counts[source])))),
  ];
  const head = ['PAGES', 'READS', 'ZERO', 'LAYER', 'FRESH', 'REPLAYED', 'AHEAD', 'REFUSED'];
  return formatTable(head, [row('in all', total), row('per second', rates?.pages)], styleHead);
}

function vmRow(nowMs: number, rates: Rates | undefined): (sample: VmSample) => string[] {
  return ({ vm, stats }) => {
    const its = rates?.vms[vm.id];
    const bytes = (pages: number | undefined) =>
      pages === undefined ? '-' : formatBytes(pages * PAGE_BYTES);
    return [
      vm.id,
      vm.image,
      vm.state,
      vm.parent ?? '-',
      its === undefined ? '-' : `${Math.round(its.processors * 100)} %`,
      bytes(stats?.privatePages),
      bytes(stats?.sharedPages),
      its === undefined ? '-' : String(Math.round(its.touchedPerSecond)),
      formatDuration(nowMs - vm.startedAt),
    ];
  };
}

function pagesByObject({ pager }: HostStats): Map<string, PageCounts> {
  return new Map(
    pager.objects.map((object) => [
      `${object.snapshot}/${object.object}`,
      {
        reads: object.reads,
        zero: object.zeroPages,
        layer: object.localPages,
        fresh: object.storedPages,
        replayed: object.replayedPages,
        ahead: object.aheadPages,
        refused: object.refusedReads,
      },
    ]),
  );
}

function vmRates(before: Sample, after: Sample, seconds: number): Record<string, VmRates> {
  const earlier = new Map(before.vms.map(({ vm, stats }) => [vm.id, stats]));
  const rates: Record<string, VmRates> = {};
  for (const { vm, stats } of after.vms) {
    const old = earlier.get(vm.id);
    if (stats === undefined || old === undefined) continue;
    rates[vm.id] = {
      processors: Math.max(0, stats.cpuMs - old.cpuMs) / 1000 / seconds,
      touchedPerSecond: Math.max(0, stats.touchedPages - old.touchedPages) / seconds,
    };
  }
  return rates;
}

/** Bucket b counts reads of less than 2^b µs. */
function latencyBetween(before: HostStats, after: HostStats): Rates['latencyUs'] {
  // Another pager counts from nothing.
  const isSame = before.pager.pid === after.pager.pid;
  const counts = after.pager.latencyUsBuckets.map((count, bucket) =>
    Math.max(0, count - (isSame ? (before.pager.latencyUsBuckets[bucket] ?? 0) : 0)),
  );
  const total = counts.reduce((left, right) => left + right, 0);
  if (total === 0) return undefined;
  const quantile = (share: number) => {
    let seen = 0;
    const bucket = counts.findIndex((count) => {
      seen += count;
      return seen >= share * total;
    });
    return 2 ** bucket;
  };
  return { p50: quantile(0.5), p99: quantile(0.99) };
}

function sum(all: readonly PageCounts[]): PageCounts {
  return all.reduce((left, right) => map(left, (source) => left[source] + right[source]), NO_PAGES);
}

function map(counts: PageCounts, of: (source: keyof PageCounts) => number): PageCounts {
  const mapped: Record<string, number> = {};
  for (const source of Object.keys(counts) as (keyof PageCounts)[]) mapped[source] = of(source);
  return mapped as unknown as PageCounts;
}
