// How fast a new clone fills memory that was free when it was forked. Two ways: one large memset by a
// program, and a file in the guest's memory, written by the guest's kernel. Both again in the same
// clone, in memory that the first time has left: what the guest and its processor take by themselves.

import type { Host, Vm } from '@snowfork/sdk';
import { benchImage, endHost, startHost } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { Forker } from '../support/forker.js';
import { atLeast, type Check, spread, table } from '../support/report.js';
import { type Summary, summarise } from '../support/statistics.js';

const CASES = [
  { memoryMib: 256, fillMib: 96 },
  { memoryMib: 1024, fillMib: 384 },
] as const;
const WAYS = ['memset', 'file'] as const;
const RATE_TARGET_MB_S = 200;
const MB = 1e6;

type Way = (typeof WAYS)[number];

export interface FillResult {
  readonly memoryMib: number;
  readonly fillMib: number;
  readonly way: Way;
  /** Megabytes (10^6) a second, by the guest's clock. */
  readonly freshMbPerS: Summary;
  readonly againMbPerS: Summary;
}

export async function benchFill({ quiet, options, say }: BenchContext): Promise<FillResult[]> {
  const rounds = options.quick ? 1 : 7;
  const host = await startHost({ warmPoolSize: 1 });
  try {
    const results: FillResult[] = [];
    for (const { memoryMib, fillMib } of CASES) {
      await using forker = await Forker.launch(host, benchImage(memoryMib).name);
      for (const way of WAYS) {
        say(`fill: ${fillMib} MiB of a ${memoryMib} MiB guest by ${way}`);
        const fresh: number[] = [];
        const again: number[] = [];
        for (let round = 0; round < rounds; round++) {
          await quiet.wait();
          await using clone = await forkOne(host, forker);
          fresh.push(await fill(clone, way, fillMib));
          again.push(await fill(clone, way, fillMib));
        }
        const freshMbPerS = summarise(fresh);
        results.push({ memoryMib, fillMib, way, freshMbPerS, againMbPerS: summarise(again) });
      }
    }
    return results;
  } finally {
    await endHost(host);
  }
}

async function forkOne(host: Host, forker: Forker): Promise<Vm> {
  const { clones } = await forker.vm.fork(1);
  const clone = clones[0]!;
  if (clone.status === 'rejected') throw clone.reason;
  return host.vm(clone.value.id);
}

/** Megabytes a second. The program is the forker's, started anew. */
async function fill(clone: Vm, way: Way, mib: number): Promise<number> {
  const stdin = way === 'memset' ? `fill ${mib}\n` : `file ${mib}\n`;
  const { stdout, stderr } = await clone.exec(['perl', '/root/forker.pl'], {
    stdin,
    env: { LC_ALL: 'C' },
  });
  const rate = /^ok (\d+)$/m.exec(stdout)?.[1];
  if (rate === undefined) throw new Error(`the clone did not fill its memory: ${stdout} ${stderr}`);
  return Number(rate) / MB;
}

export function checkFill(results: readonly FillResult[]): Check[] {
  return results.map(({ memoryMib, fillMib, way, freshMbPerS }) => {
    const name = `a new clone fills fresh memory, ${fillMib} of ${memoryMib} MiB by ${way}`;
    return atLeast(name, freshMbPerS.median, 'MB/s', RATE_TARGET_MB_S);
  });
}

export function fillTable(results: readonly FillResult[]): string {
  return table(
    'Filling memory in a new clone, MB/s: median (min–max); `again`: the same memory once more',
    ['guest MiB', 'filled MiB', 'by', 'fresh', 'again'],
    results.map((result) => [
      String(result.memoryMib),
      String(result.fillMib),
      result.way,
      spread(result.freshMbPerS),
      spread(result.againMbPerS),
    ]),
  );
}
