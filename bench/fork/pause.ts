// How long a fork pauses its parent, by the parent's RAM and by what it changed since the fork before.
// Every round is a whole fork with a clone from the warm pool, as users make them.

import type { FreezeTimes, Host } from '@snowfork/sdk';
import { benchImage, endHost, poolFilled, startHost } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { Forker } from '../support/forker.js';
import { atMost, below, type Check, spread, table } from '../support/report.js';
import { type Summary, summarise, summariseFields } from '../support/statistics.js';

const PAGES_PER_MIB = 256;
const POOL_SIZE = 2;
const PAUSE_TARGET_MS = 50;
const GROWTH_TARGET = 1.5;

interface Case {
  readonly memoryMib: number;
  readonly changedMib: number;
  /** Written before, and not since the last fork. */
  readonly olderMib: number;
  /** No check needs it. */
  readonly skippedWhenQuick?: boolean;
}

/** The two with older pages: a VM that forks again and again has ever more pages of its own. */
const CASES: readonly Case[] = [
  ...[256, 1024, 2048].flatMap((memoryMib) => [
    { memoryMib, changedMib: 16, olderMib: 0 },
    { memoryMib, changedMib: 128, olderMib: 0, skippedWhenQuick: memoryMib === 1024 },
  ]),
  { memoryMib: 256, changedMib: 16, olderMib: 112, skippedWhenQuick: true },
  { memoryMib: 2048, changedMib: 16, olderMib: 1008 },
];

export interface PauseResult extends Omit<Case, 'skippedWhenQuick'> {
  readonly pauseMs: Summary;
  readonly prepareMs: Summary;
  readonly parts: Record<string, Summary>;
  readonly privatePages: Summary;
  readonly storedPages: Summary;
}

export async function benchPause(context: BenchContext): Promise<PauseResult[]> {
  const host = await startHost({ warmPoolSize: POOL_SIZE });
  try {
    const results: PauseResult[] = [];
    for (const each of CASES) {
      if (context.options.quick && each.skippedWhenQuick) continue;
      results.push(await measureCase(host, each, context));
    }
    return results;
  } finally {
    await endHost(host);
  }
}

async function measureCase(
  host: Host,
  { memoryMib, changedMib, olderMib }: Case,
  { quiet, options, say }: BenchContext,
): Promise<PauseResult> {
  const rounds = options.quick ? 2 : 9;
  say(`pause: ${memoryMib} MiB guest, ${changedMib} MiB changed, ${olderMib} MiB older`);
  await using forker = await Forker.launch(host, benchImage(memoryMib).name);
  await forker.command(`hold ${changedMib + olderMib}`);
  const freezes: FreezeTimes[] = [];
  const privatePages: number[] = [];
  const storedPages: number[] = [];
  // The first fork stores what the guest's start has left; it does not count.
  for (let round = -1; round < rounds; round++) {
    await forker.command(`change ${changedMib}`);
    await poolFilled(host);
    await quiet.wait();
    const { freeze, snapshot, clones } = await forker.vm.fork(1);
    for (const clone of clones) if (clone.status === 'fulfilled') await clone.value.kill();
    if (round < 0) continue;
    const { pages } = snapshot;
    if (pages.storedPages < changedMib * PAGES_PER_MIB) {
      throw new Error(`${changedMib} MiB were changed, but ${pages.storedPages} pages stored`);
    }
    freezes.push(freeze);
    privatePages.push(pages.privatePages);
    storedPages.push(pages.storedPages);
  }
  return {
    ...{ memoryMib, changedMib, olderMib },
    pauseMs: summarise(freezes.map((freeze) => freeze.pauseMs)),
    prepareMs: summarise(freezes.map((freeze) => freeze.prepareMs)),
    parts: summariseFields(freezes.map((freeze) => freeze.parts)),
    privatePages: summarise(privatePages),
    storedPages: summarise(storedPages),
  };
}

export function checkPause(results: readonly PauseResult[]): Check[] {
  const pause = (memoryMib: number, changedMib: number) =>
    results.find((r) => r.memoryMib === memoryMib && r.changedMib === changedMib)!.pauseMs.median;
  return [
    ...results
      .filter(({ changedMib }) => changedMib === 16)
      .map(({ memoryMib, olderMib, pauseMs }) => {
        const older = olderMib === 0 ? '' : `, ${olderMib} MiB older`;
        const name = `parent pause, ${memoryMib} MiB guest, 16 MiB changed${older}`;
        return below(name, pauseMs.median, 'ms', PAUSE_TARGET_MS);
      }),
    ...[16, 128].map((changedMib) => {
      const name = `parent pause at 2 GiB over that at 256 MiB, ${changedMib} MiB changed`;
      const growth = pause(2048, changedMib) / pause(256, changedMib);
      return atMost(name, Number(growth.toFixed(2)), 'times', GROWTH_TARGET);
    }),
  ];
}

export function pauseTable(results: readonly PauseResult[]): string {
  const parts = [...new Set(results.flatMap((result) => Object.keys(result.parts)))];
  return table(
    'Parent pause, ms: median (min–max). `prepare` comes before it, the parts are of the pause.',
    ['guest MiB', 'changed', 'older', 'rounds', 'prepare', 'pause', ...parts, 'stored pages'],
    results.map((result) => [
      String(result.memoryMib),
      String(result.changedMib),
      String(result.olderMib),
      String(result.pauseMs.count),
      spread(result.prepareMs),
      spread(result.pauseMs),
      ...parts.map((part) => (result.parts[part] ? spread(result.parts[part]) : '')),
      String(result.storedPages.median),
    ]),
  );
}
