// How long a guest's page faults stand still when the pager is killed by `kill -9`: a clone touches
// page after page of memory that it has from its parent and tells each, while the pager is killed again
// and again. Beside it, the longest that the same walk stands still when nobody is killed.

import { setTimeout as delay } from 'node:timers/promises';
import type { Host, Vm } from '@snowfork/sdk';
import { benchImage, endHost, startHost } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { below, type Check, spread, table } from '../support/report.js';
import { type Summary, summarise } from '../support/statistics.js';
import { shellOf, startWorker, workerLine } from '../support/worker.js';

const MEMORY_MIB = 256;
/** The worker walks half of what it holds. */
const WORKER_MIB = 64;
const PAGES = WORKER_MIB * 256;
const KILLS = 15;
const KILLS_QUICK = 5;
const GOES_ON_TARGET_MS = 1000;
/** Pages between one kill and the next; the clone tells some hundred in a second. */
const PAGES_BETWEEN = 400;
const STANDS_STILL_MS_MAX = 60_000;
const POLL_MS = 5;

export interface PagerResult {
  /** From the kill until the guest has gone on with a page that nobody had given it before. */
  readonly goesOnMs: Summary;
  /** Between one page and the next, the longest of as many pages: without a kill. */
  readonly undisturbedMs: Summary;
}

export async function benchPager({ quiet, options, say }: BenchContext): Promise<PagerResult> {
  const kills = options.quick ? KILLS_QUICK : KILLS;
  const host = await startHost({ warmPoolSize: 1 });
  try {
    await using vm = await host.launch(benchImage(MEMORY_MIB).name);
    await startWorker(shellOf(vm), WORKER_MIB);
    const { clones } = await vm.fork(1);
    const [clone] = clones;
    if (clone?.status !== 'fulfilled') throw clone?.reason;
    await quiet.wait();
    say(`pager: ${kills} kills under page faults`);
    return await walk(host, clone.value, kills);
  } finally {
    await endHost(host);
  }
}

async function walk(host: Host, clone: Vm, kills: number): Promise<PagerResult> {
  // When each page was told.
  const toldAt: number[] = [];
  const walking = readPages(clone, toldAt);
  const goesOnMs: number[] = [];
  const undisturbedMs: number[] = [];
  for (let kill = 0; kill < kills; kill++) {
    const first = toldAt.length;
    await told(toldAt, first + PAGES_BETWEEN, walking);
    undisturbedMs.push(longestPause(toldAt.slice(first)).ms);
    const { pid } = (await host.stats()).pager;
    const killedAt = performance.now();
    process.kill(pid, 'SIGKILL');
    const before = toldAt.length;
    // Enough to be sure that it is over: what the guest had been given before is told too.
    await told(toldAt, before + PAGES_BETWEEN, walking);
    // It began when the guest came to a page that it lacked, or at once.
    const pause = longestPause([killedAt, ...toldAt.slice(before)]);
    goesOnMs.push(pause.endedAt - killedAt);
    const now = (await host.stats()).pager.pid;
    if (now === pid) throw new Error('the pager was not killed');
  }
  return { goesOnMs: summarise(goesOnMs), undisturbedMs: summarise(undisturbedMs) };
}

/** Resolves when all pages were told; throws when one is not what it was in the parent. */
async function readPages(clone: Vm, toldAt: number[]): Promise<void> {
  const seed = 1 + Math.floor(Math.random() * 1e6);
  await using command = await clone.spawn(['/bin/sh', '-c', workerLine(`walk ${seed}`)]);
  let rest = '';
  for await (const chunk of command.stdout) {
    const lines = (rest + String(chunk)).split('\n');
    rest = lines.pop()!;
    for (const line of lines) {
      if (!/^\d+$/.test(line)) throw new Error(`the walk: ${line}`);
      toldAt.push(performance.now());
    }
    if (toldAt.length === PAGES) return;
  }
  throw new Error(`the walk ended after ${toldAt.length} of ${PAGES} pages`);
}

/** Until so many pages were told. */
async function told(toldAt: number[], count: number, walking: Promise<void>): Promise<void> {
  if (count > PAGES) throw new Error('the clone has walked through its memory too fast');
  const deadline = performance.now() + STANDS_STILL_MS_MAX;
  while (toldAt.length < count) {
    await Promise.race([delay(POLL_MS), walking]);
    if (performance.now() > deadline) throw new Error('the faults do not go on');
  }
}

function longestPause(times: readonly number[]): { ms: number; endedAt: number } {
  let longest = { ms: 0, endedAt: times[0]! };
  for (let index = 1; index < times.length; index++) {
    const endedAt = times[index]!;
    const ms = endedAt - times[index - 1]!;
    if (ms > longest.ms) longest = { ms, endedAt };
  }
  return longest;
}

export function checkPager({ goesOnMs }: PagerResult): Check[] {
  const name = 'page faults go on after kill -9 of the pager';
  return [below(name, goesOnMs.median, 'ms', GOES_ON_TARGET_MS)];
}

export function pagerTable({ goesOnMs, undisturbedMs }: PagerResult): string {
  return table(
    "A clone's page faults, ms: median (min–max)",
    ['', 'times', 'stand still for'],
    [
      ['the pager is killed', String(goesOnMs.count), spread(goesOnMs)],
      ['nobody is killed', String(undisturbedMs.count), spread(undisturbedMs)],
    ],
  );
}
