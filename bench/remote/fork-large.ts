// What QEMU's migration is compared with (`migration.ts`): a fork of a guest of the same size, as full,
// over the same link, into a clone on each of some other hosts. The parent goes on.

import type { Member } from '../support/agent-parts.js';
import { joinCluster } from '../support/bench-cluster.js';
import { benchImage } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { Forker } from '../support/forker.js';
import { type Summary, summarise } from '../support/statistics.js';
import { counterOf } from './forks.js';

const MIB = 1024 * 1024;
/** Written between two forks. */
const CHANGED_MIB = 16;
const COUNTS = [1, 3] as const;
const ROUNDS = 5;
const ROUNDS_QUICK = 2;

export interface LargeFork {
  readonly hosts: number;
  /** From the call until the program of the last clone had asked for something. */
  readonly ranS: Summary;
  /** On the links of all hosts, until the clones had ended. */
  readonly sentMib: Summary;
}

export interface LargeForks {
  /** The guest's first fork, to one host: all that it ever wrote is its own then. */
  readonly firstRanS: number;
  readonly forks: readonly LargeFork[];
}

export async function forkLarge(
  { options, quiet, say }: BenchContext,
  of: { memoryMib: number; usedMib: number; bitsPerSecond: number },
): Promise<LargeForks> {
  const { memoryMib, usedMib, bitsPerSecond } = of;
  const hosts = 1 + COUNTS.at(-1)!;
  await using cluster = await joinCluster({ hosts, imageMib: memoryMib, bitsPerSecond });
  const [first, ...others] = cluster.hosts as [Member, ...Member[]];
  await using forker = await Forker.launch(first.sf, benchImage(memoryMib).name);
  await forker.command(`hold ${usedMib}`);
  say(`migration: forks of ${usedMib} of ${memoryMib} MiB`);
  await quiet.wait();
  const [firstClone] = await forker.spread([others[0]!.name], 0);
  const forks: LargeFork[] = [];
  for (const count of COUNTS) {
    const names = others.slice(0, count).map(({ name }) => name);
    const found: { ranS: number; sentMib: number }[] = [];
    for (let round = 0; round < (options.quick ? ROUNDS_QUICK : ROUNDS); round++) {
      await forker.command(`change ${CHANGED_MIB}`);
      await quiet.wait();
      const sent = counterOf(cluster.hosts, 'bytesSent');
      const clones = await forker.spread(names, 0);
      const ranS = Math.max(...clones.map(({ ranMs }) => ranMs)) / 1000;
      found.push({ ranS, sentMib: sent() / MIB });
    }
    forks.push({
      hosts: count,
      ranS: summarise(found.map(({ ranS }) => ranS)),
      sentMib: summarise(found.map(({ sentMib }) => sentMib)),
    });
  }
  return { firstRanS: firstClone!.ranMs / 1000, forks };
}
