// What a clone that does nothing takes of the host's memory, beside a QEMU of the warm pool, which has
// no guest yet: both as proportional shares, measured at the same moment.

import { setTimeout as delay } from 'node:timers/promises';
import { benchImage, endHost, poolFilled, startHost } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { killAll } from '../support/forker.js';
import { below, type Check, spread, table } from '../support/report.js';
import { type Summary, summarise } from '../support/statistics.js';

const MEMORY_MIB = 256;
const COUNTS = [1, 8, 32] as const;
const POOL_SIZE = 32;
/** What a clone does at its start is over by then, also of 32. */
const REST_MS = 3_000;
const EXTRA_TARGET_MIB = 25;
const MIB = 1024 * 1024;

export interface MemoryResult {
  readonly clones: number;
  readonly clonePssMib: Summary;
  /** Of the clone's RAM alone: its own pages, and its share of those that clones have in common. */
  readonly cloneRamPssMib: Summary;
  readonly privatePages: Summary;
  readonly sharedPages: Summary;
  /** A QEMU of the pool. */
  readonly poolPssMib: number;
  readonly extraMib: number;
}

export async function benchMemory({ quiet, say }: BenchContext): Promise<MemoryResult[]> {
  const host = await startHost({ warmPoolSize: POOL_SIZE });
  try {
    await using vm = await host.launch(benchImage(MEMORY_MIB).name);
    const results: MemoryResult[] = [];
    for (const count of COUNTS) {
      say(`memory: ${count} clones`);
      await poolFilled(host);
      await quiet.wait();
      const { clones } = await vm.fork(count);
      const vms = clones.flatMap((clone) => (clone.status === 'fulfilled' ? [clone.value] : []));
      if (vms.length < count) throw new Error(`${vms.length} of ${count} clones came up`);
      await poolFilled(host);
      await delay(REST_MS);
      const stats = await Promise.all(vms.map((clone) => clone.stats()));
      const { pool } = await host.stats();
      const clonePssMib = summarise(stats.map(({ pssBytes }) => pssBytes / MIB));
      const poolPssMib = pool.pssBytes / pool.ready / MIB;
      results.push({
        clones: count,
        clonePssMib,
        cloneRamPssMib: summarise(stats.map(({ ramPssBytes }) => ramPssBytes / MIB)),
        privatePages: summarise(stats.map(({ privatePages }) => privatePages)),
        sharedPages: summarise(stats.map(({ sharedPages }) => sharedPages)),
        poolPssMib,
        extraMib: clonePssMib.median - poolPssMib,
      });
      await killAll(
        host,
        vms.map(({ id }) => id),
      );
    }
    return results;
  } finally {
    await endHost(host);
  }
}

export function checkMemory(results: readonly MemoryResult[]): Check[] {
  return results.map(({ clones, extraMib }) => {
    const name = `memory of an idle clone beyond QEMU's own, ${clones} of them`;
    return below(name, Number(extraMib.toFixed(2)), 'MiB', EXTRA_TARGET_MIB);
  });
}

export function memoryTable(results: readonly MemoryResult[]): string {
  return table(
    'Memory of a clone that does nothing, MiB of PSS: median (min–max)',
    ['clones', 'clone', 'QEMU of the pool', 'beyond it', 'RAM of it', 'own pages', 'shared pages'],
    results.map((result) => [
      String(result.clones),
      spread(result.clonePssMib),
      result.poolPssMib.toFixed(1),
      result.extraMib.toFixed(1),
      spread(result.cloneRamPssMib),
      spread(result.privatePages),
      spread(result.sharedPages),
    ]),
  );
}
