// A clone on another host that allocates and fills memory which was free when its parent was forked:
// how many pages it fetches for that, with the free pages left out and with them kept. The parent
// has had all of that memory before, so that it is full of what programs have left.

import { setTimeout as delay } from 'node:timers/promises';
import type { Vm } from '@snowfork/sdk';
import type { Cluster, Member } from '../support/agent-parts.js';
import { joinCluster } from '../support/bench-cluster.js';
import { benchImage } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { Forker } from '../support/forker.js';
import { atLeast, type Check, spread, table } from '../support/report.js';
import { type Summary, summarise } from '../support/statistics.js';

/** Most of it free, as in most guests: its free memory is not in crumbs. */
const MEMORY_MIB = 1024;
const FILL_MIB = 128;
const ROUNDS = 5;
const ROUNDS_QUICK = 1;
const FEWER = 40;
const SETTLED_MS = 300;

export interface FreeResult {
  readonly leftOut: Summary;
  readonly kept: Summary;
}

export async function benchFree(context: BenchContext): Promise<FreeResult> {
  return {
    leftOut: summarise(await pagesFetched(true, context)),
    kept: summarise(await pagesFetched(false, context)),
  };
}

async function pagesFetched(
  leaveOutFreePages: boolean,
  { options, quiet, say }: BenchContext,
): Promise<number[]> {
  say(`free: filling ${FILL_MIB} MiB, free pages ${leaveOutFreePages ? 'left out' : 'kept'}`);
  // What other clones touched would come by itself, and hide what this one waits for.
  const settings = { leaveOutFreePages, replayFirstTouches: false };
  await using cluster = await joinCluster({ hosts: 2, imageMib: MEMORY_MIB, settings });
  const [first] = cluster.hosts as [Member];
  await using parent = await first.sf.launch(benchImage(MEMORY_MIB).name);
  // Its program ends, and leaves its memory full.
  const filler = await Forker.start(first.sf, parent);
  await filler.command(`fill ${FILL_MIB}`);
  await filler.end();
  const found: number[] = [];
  for (let round = 0; round < (options.quick ? ROUNDS_QUICK : ROUNDS); round++) {
    await quiet.wait();
    found.push(await fillElsewhere(cluster, parent));
  }
  return found;
}

async function fillElsewhere(cluster: Cluster, parent: Vm): Promise<number> {
  const [, second] = cluster.hosts as [Member, Member];
  const { clones } = await parent.fork(1, { hosts: [second.name] });
  const [made] = clones;
  if (made?.status !== 'fulfilled') throw made?.reason;
  await using vm = await second.sf.vm(made.value.id);
  const clone = await Forker.start(second.sf, vm);
  // The program's own code is here then.
  await clone.command('fill 1');
  const before = await settled(second);
  await clone.command(`fill ${FILL_MIB}`);
  return (await settled(second)) - before;
}

/** When what was read ahead has come as well. */
async function settled(member: Member): Promise<number> {
  for (let before = -1; ; ) {
    const pages = await fetched(member);
    if (pages === before) return pages;
    before = pages;
    await delay(SETTLED_MS);
  }
}

/** Pages that have come over the network, for whatever reason. */
async function fetched({ sf }: Member): Promise<number> {
  const { network } = await sf.stats();
  let pages = 0;
  for (const { pages: of } of network!.received) pages += of.demand + of.prefetch + of.others;
  return pages;
}

export function checkFree({ leftOut, kept }: FreeResult): Check[] {
  const name = `pages fetched by a clone that fills ${FILL_MIB} MiB, free pages left out`;
  return [atLeast(name, kept.median / Math.max(1, leftOut.median), 'times fewer', FEWER)];
}

export function freeTable({ leftOut, kept }: FreeResult): string {
  return table(
    `Pages fetched by a clone elsewhere that fills ${FILL_MIB} MiB: median (min–max)`,
    ['free pages', 'pages'],
    [
      ['left out', spread(leftOut)],
      ['kept', spread(kept)],
    ],
  );
}
