// A server with much data in memory, which answers random requests: how long a new clone of it on
// another host takes until it answers as many as its parent did, without and with replay of what an
// earlier clone touched, beside a cold boot of the same server. Over 1 Gbit/s.

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Host, Vm } from '@snowfork/sdk';
import type { Member } from '../support/agent-parts.js';
import { joinCluster } from '../support/bench-cluster.js';
import { benchImage, projectFolder } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { PlainQemu } from '../support/plain-qemu.js';
import { below, type Check, number, spread, table } from '../support/report.js';
import { inScratch } from '../support/scratch.js';
import { median, type Summary, summarise } from '../support/statistics.js';
import { plainOptions } from './migration.js';

const MEMORY_MIB = 1024;
const DATA_MIB = 256;
const LINK_BITS_PER_SECOND = 1e9;
const ROUNDS = 3;
const ROUNDS_QUICK = 1;
const SOURCE = path.join(projectFolder, 'bench/guest/server.pl');
const PROGRAM = '/root/server.pl';
const LOG = '/dev/shm/requests';
const COMMAND = ['perl', PROGRAM, String(DATA_MIB), LOG];
/** Of the parent's rate. */
const FULL_SHARE = 0.9;
/** The middle of so many tenths of a second counts, as a processor is now and then another's. */
const SLICES = 5;
const PARENT_MS = 4000;
const LOOK_MS = 2500;
const CLONE_MS_MAX = 60_000;
const COLD_PART_MAX = 0.333;
/** Seconds after the call for which the table says the rate. */
const TABLE_S = [1, 2, 3, 4, 6] as const;

interface Slice {
  /** Since the call. */
  readonly ms: number;
  readonly perS: number;
}

interface Run {
  /** From the call until it answers as many requests as its parent. */
  readonly fullS: number;
  readonly slices: readonly Slice[];
}

export interface ServerResult {
  readonly dataMib: number;
  /** Requests a second that the parent answers. */
  readonly parentPerS: number;
  readonly withoutReplayS: Summary;
  readonly replayS: Summary;
  /** From the start of QEMU until all data is in memory. */
  readonly coldBootS: Summary;
  /** Of the round in the middle, requests per second over time. */
  readonly runs: { readonly withoutReplay: readonly Slice[]; readonly replay: readonly Slice[] };
}

export async function benchServer(context: BenchContext): Promise<ServerResult> {
  const { options, quiet, say } = context;
  const rounds = options.quick ? ROUNDS_QUICK : ROUNDS;
  const cold: number[] = [];
  await inScratch(async (folder) => {
    const plain = await plainOptions(folder, context);
    for (let round = 0; round < rounds; round++) {
      say(`server: a cold boot with ${DATA_MIB} MiB of data, round ${round + 1} of ${rounds}`);
      await quiet.wait();
      cold.push(await bootCold({ ...plain, folder: path.join(folder, String(round)) }));
    }
  });
  const without = await runClones('without replay', context);
  const replay = await runClones('with replay', context);
  const middle = Math.floor(rounds / 2);
  return {
    ...{ dataMib: DATA_MIB, parentPerS: replay.parentPerS },
    withoutReplayS: summarise(without.found.map(({ fullS }) => fullS)),
    replayS: summarise(replay.found.map(({ fullS }) => fullS)),
    coldBootS: summarise(cold),
    runs: { withoutReplay: without.found[middle]!.slices, replay: replay.found[middle]!.slices },
  };
}

/** The fastest first. */
async function runClones(
  how: 'with replay' | 'without replay',
  { options, quiet, say }: BenchContext,
): Promise<{ found: Run[]; parentPerS: number }> {
  const isReplayed = how === 'with replay';
  await using cluster = await joinCluster({
    ...{ hosts: 2, imageMib: MEMORY_MIB, bitsPerSecond: LINK_BITS_PER_SECOND },
    settings: { replayFirstTouches: isReplayed },
  });
  const [first, second] = cluster.hosts as [Member, Member];
  const of = { home: first, ...(await startParent(first.sf)) };
  // What a clone on the first host touches is recorded.
  if (isReplayed) await runClone({ ...of, at: first });
  const rounds = options.quick ? ROUNDS_QUICK : ROUNDS;
  const found: Run[] = [];
  for (let round = 0; round < rounds; round++) {
    say(`server: a clone on another host, ${how}, round ${round + 1} of ${rounds}`);
    await quiet.wait();
    found.push(await runClone({ ...of, at: second }));
  }
  return { found: found.sort((a, b) => a.fullS - b.fullS), parentPerS: of.parentPerS };
}

async function bootCold(options: Parameters<typeof PlainQemu.start>[0]): Promise<number> {
  const calledAt = performance.now();
  await using vm = await PlainQemu.start(options);
  await vm.booted();
  await vm.shell(`cat >${PROGRAM}`, fs.readFileSync(SOURCE));
  await vm.startCommand(COMMAND, '');
  return (performance.now() - calledAt) / 1000;
}

/** A snapshot of a server that has answered for a while, and at what rate it did. */
async function startParent(host: Host): Promise<{ snapshot: string; parentPerS: number }> {
  await using vm = await host.launch(benchImage(MEMORY_MIB).name);
  await vm.writeFile(PROGRAM, fs.readFileSync(SOURCE));
  const startedAt = Date.now();
  // By a shell of the guest: it goes on in clones, and nobody waits for its end.
  await run(
    vm,
    `setsid ${COMMAND.join(' ')} >/dev/shm/said 2>&1 & until [ -s ${LOG} ]; do usleep 100000; done`,
  );
  await delay(PARENT_MS);
  const slices = await slicesOf(vm, startedAt);
  const parentPerS = median(slices.slice(-PARENT_MS / 200).map(({ perS }) => perS));
  const { snapshot } = await vm.checkpoint();
  return { snapshot: snapshot.id, parentPerS };
}

async function runClone(of: {
  home: Member;
  at: Member;
  snapshot: string;
  parentPerS: number;
}): Promise<Run> {
  const { home, at, snapshot, parentPerS } = of;
  const calledAt = Date.now();
  const { clones } = await home.sf.createClones(snapshot, 1, { hosts: [at.name] });
  const [made] = clones;
  if (made?.status !== 'fulfilled') throw made?.reason;
  await using vm = made.value;
  while (Date.now() - calledAt < CLONE_MS_MAX) {
    await delay(LOOK_MS);
    const slices = await slicesOf(vm, calledAt);
    const fullS = fullAfterS(slices, parentPerS * FULL_SHARE);
    if (fullS !== undefined) return { fullS, slices };
  }
  throw new Error(`${vm.id} never answered as its parent: ${await run(vm, 'cat /dev/shm/said')}`);
}

function fullAfterS(slices: readonly Slice[], wantedPerS: number): number | undefined {
  for (let index = 0; index + SLICES <= slices.length; index++) {
    const rates = slices.slice(index, index + SLICES).map(({ perS }) => perS);
    if (median(rates) >= wantedPerS) return slices[index]!.ms / 1000;
  }
  return undefined;
}

/** What the server has logged since. */
async function slicesOf(vm: Vm, sinceMs: number): Promise<Slice[]> {
  const lines = (await run(vm, `tail -n 800 ${LOG}`)).trim().split('\n');
  const logged = lines.map((line) => line.split(' ').map(Number) as [number, number]);
  // The first after the call began before it.
  const since = logged.filter(([ms]) => ms > sinceMs);
  return since.slice(1).map(([ms, requests], index) => {
    const perS = (requests * 1000) / (ms - since[index]![0]);
    return { ms: ms - sinceMs, perS };
  });
}

async function run(vm: Vm, line: string): Promise<string> {
  const { code, stdout, stderr } = await vm.exec(line);
  if (code !== 0) throw new Error(`in ${vm.id}: ${line}: ${stderr}`);
  return stdout;
}

export function checkServer({ replayS, coldBootS }: ServerResult): Check[] {
  const part = replayS.median / coldBootS.median;
  const name = `a clone of a server with ${DATA_MIB} MiB at full rate, with replay`;
  return [below(name, part, "of a cold boot's time", COLD_PART_MAX)];
}

export function serverTable(result: ServerResult): string {
  const { dataMib, parentPerS, coldBootS, runs } = result;
  const at = (slices: readonly Slice[], second: number): string => {
    const near = slices.filter(({ ms }) => Math.abs(ms - second * 1000) <= 250);
    return near.length === 0 ? '' : number(median(near.map(({ perS }) => perS)) / 1000);
  };
  const row = (name: string, fullS: Summary, slices: readonly Slice[]): string[] => [
    ...[name, spread(fullS)],
    ...TABLE_S.map((second) => at(slices, second)),
  ];
  return table(
    `A server with ${dataMib} MiB of data; its parent answers ${number(parentPerS / 1000)} thousand a second`,
    ['clone elsewhere', 's to full rate', ...TABLE_S.map((second) => `1000/s at ${second} s`)],
    [
      row('without replay', result.withoutReplayS, runs.withoutReplay),
      row('with replay', result.replayS, runs.replay),
      ['cold boot', spread(coldBootS), ...TABLE_S.map(() => '')],
    ],
  );
}
