// A fork over 1, 3 and 7 other hosts, whose clones all read the same memory: how soon they run, and what
// crosses the first host's link for it, by multicast and, where that is blocked, by unicast.

import type { Cluster, Member } from '../support/agent-parts.js';
import { joinCluster } from '../support/bench-cluster.js';
import { benchImage } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { Forker } from '../support/forker.js';
import { below, type Check, spread, table } from '../support/report.js';
import { type Summary, summarise } from '../support/statistics.js';

const MIB = 1024 * 1024;
const MEMORY_MIB = 256;
const READ_MIB = 64;
const LINK_BITS_PER_SECOND = 1e9;
const COUNTS = [1, 3, 7] as const;
const COUNTS_QUICK = [1, 3] as const;
const ROUNDS = 5;
const ROUNDS_QUICK = 1;
const TIMES_ONE_CLONE_MAX = 1.15;
const WAYS = ['multicast', 'unicast'] as const;

export interface ForksResult {
  readonly hosts: number;
  readonly way: (typeof WAYS)[number];
  /** From the call until the program of the last clone had asked for something. */
  readonly allRunMs: Summary;
  /** Until the last clone had read everything. */
  readonly allReadMs: Summary;
  /** By the host of the parent, from the call until the last clone had ended; headers included. */
  readonly sentMib: Summary;
  /** By each of the others. */
  readonly receivedMib: Summary;
}

export async function benchForks(context: BenchContext): Promise<ForksResult[]> {
  const { options, say } = context;
  const counts = options.quick ? COUNTS_QUICK : COUNTS;
  const hosts = 1 + counts.at(-1)!;
  await using cluster = await joinCluster({
    ...{ hosts, imageMib: MEMORY_MIB, bitsPerSecond: LINK_BITS_PER_SECOND },
  });
  const [first, ...others] = cluster.hosts as [Member, ...Member[]];
  await using forker = await Forker.launch(first.sf, benchImage(MEMORY_MIB).name);
  await forker.command(`hold ${READ_MIB}`);
  // The first fork copies what the image's clones share; those after it copy what changed.
  await forker.spread([others[0]!.name], 0);
  const results: ForksResult[] = [];
  for (const way of WAYS) {
    if (way === 'unicast') for (const { net } of others) await net.blockMulticast();
    for (const count of counts) {
      say(`forks: over ${count} other hosts, by ${way}`);
      results.push(await measure(cluster, { forker, way, count }, context));
    }
  }
  return results;
}

async function measure(
  cluster: Cluster,
  { forker, way, count }: { forker: Forker; way: ForksResult['way']; count: number },
  { options, quiet }: BenchContext,
): Promise<ForksResult> {
  const [first, ...others] = cluster.hosts as [Member, ...Member[]];
  const receivers = others.slice(0, count);
  const names = receivers.map(({ name }) => name);
  const found: { runMs: number; readMs: number; sentMib: number; receivedMib: number }[] = [];
  for (let round = 0; round < (options.quick ? ROUNDS_QUICK : ROUNDS); round++) {
    // Every page is another one than before: nothing is on the other hosts yet.
    await forker.command(`change ${READ_MIB}`);
    await quiet.wait();
    const sent = counterOf([first], 'bytesSent');
    const received = counterOf(receivers, 'bytesReceived');
    const clones = await forker.spread(names, READ_MIB);
    if (new Set(clones.map(({ sum }) => sum)).size !== 1) throw new Error('they read other pages');
    found.push({
      runMs: Math.max(...clones.map(({ ranMs }) => ranMs)),
      readMs: Math.max(...clones.map(({ readMs }) => readMs)),
      sentMib: sent() / MIB,
      receivedMib: received() / MIB / count,
    });
  }
  return {
    ...{ hosts: count, way },
    allRunMs: summarise(found.map(({ runMs }) => runMs)),
    allReadMs: summarise(found.map(({ readMs }) => readMs)),
    sentMib: summarise(found.map(({ sentMib }) => sentMib)),
    receivedMib: summarise(found.map(({ receivedMib }) => receivedMib)),
  };
}

/** @returns what has been counted since. */
export function counterOf(
  members: readonly Member[],
  counter: 'bytesSent' | 'bytesReceived',
): () => number {
  const now = (): number => members.reduce((sum, { net }) => sum + net.counters()[counter], 0);
  const before = now();
  return () => now() - before;
}

export function checkForks(results: readonly ForksResult[]): Check[] {
  const [one, ...more] = results.filter(({ way }) => way === 'multicast');
  return more.map(({ hosts, sentMib }) => {
    const name = `bytes sent for clones on ${hosts} hosts that read the same ${READ_MIB} MiB`;
    const times = sentMib.median / one!.sentMib.median;
    return below(name, times, 'times those for one clone', TIMES_ONE_CLONE_MAX);
  });
}

export function forksTable(results: readonly ForksResult[]): string {
  return table(
    `Clones on other hosts that all read the same ${READ_MIB} MiB, over 1 Gbit/s: median (min–max)`,
    ['hosts', 'by', 'ms, all run', 'ms, all have read', 'MiB sent', 'MiB received by each'],
    results.map(({ hosts, way, allRunMs, allReadMs, sentMib, receivedMib }) => [
      ...[String(hosts), way],
      ...[allRunMs, allReadMs, sentMib, receivedMib].map(spread),
    ]),
  );
}
