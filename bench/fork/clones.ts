// From the call to `fork` until clones are resumed, answered, and their programs run: for 1, 8 and 32
// clones, with QEMUs from the warm pool and started cold. The fork is made by a program in the guest,
// whose first act in a clone is a request; the times are the agent's. What a caller on the host sees is
// measured beside it.

import type { CloneTimes, Host } from '@snowfork/sdk';
import { benchImage, endHost, poolFilled, startHost } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { Forker, killAll, type ProgramFork } from '../support/forker.js';
import { atMost, type Check, spread, table } from '../support/report.js';
import { type Summary, summarise } from '../support/statistics.js';

const MEMORY_MIB = 256;
const WARM_POOL_SIZE = 32;
const INFO_ROUNDS = 9;
const COUNTS = [
  { clones: 1, rounds: 9, quickRounds: 3 },
  { clones: 8, rounds: 5, quickRounds: 2 },
  { clones: 32, rounds: 5, quickRounds: 1 },
] as const;
const STEPS = ['startedMs', 'loadedMs', 'resumedMs', 'answeredMs', 'programMs'] as const;
const TARGETS = {
  oneResumedMs: 60,
  oneProgramMs: 150,
  allResumedMs: 500,
  allProgramsMs: 3000,
} as const;

type Step = (typeof STEPS)[number];

export interface ClonesResult {
  readonly pool: 'warm' | 'cold';
  readonly clones: number;
  /** Each clone of each round, milliseconds after the call. */
  readonly eachMs: Record<Step, Summary>;
  /** The last clone of each round. */
  readonly allMs: Record<Step, Summary>;
  /** Of the parent: how long the guest took to become quiet, and the pause. */
  readonly prepareMs: Summary;
  readonly pauseMs: Summary;
  /** From the end of the pause until the first clone runs: the copy is stored, the state loaded. */
  readonly storeAndLoadMs: Summary;
  /** Processor time of each clone's guest thread up to its program's first request. */
  readonly cloneGuestCpuMs: Summary;
  /** The same of the whole QEMU, from the start of its process. */
  readonly cloneCpuMs: Summary;
  /** The parent's guest thread for the same work, which it has translated before. */
  readonly parentGuestCpuMs: Summary;
  /** From the call of `vm.fork()` on the host until it returns. */
  readonly hostCallMs: Summary;
  readonly hostAnsweredMs: Summary;
}

export interface ClonesPart {
  readonly results: readonly ClonesResult[];
  /** A program's smallest request and its answer, in the guest: what the times leave out. */
  readonly guestRequestMs: Summary;
}

export async function benchClones(context: BenchContext): Promise<ClonesPart> {
  const results: ClonesResult[] = [];
  const requestMs: number[] = [];
  for (const pool of ['warm', 'cold'] as const) {
    const host = await startHost({ warmPoolSize: pool === 'warm' ? WARM_POOL_SIZE : 0 });
    try {
      await using forker = await Forker.launch(host, benchImage(MEMORY_MIB).name);
      for (let i = 0; i < INFO_ROUNDS; i++) requestMs.push(Number(await forker.command('info')));
      for (const count of COUNTS) {
        const rounds = context.options.quick ? count.quickRounds : count.rounds;
        context.say(`clones: ${count.clones}, ${pool}`);
        results.push(await measure(host, forker, { pool, clones: count.clones, rounds }, context));
      }
    } finally {
      await endHost(host);
    }
  }
  return { results, guestRequestMs: summarise(requestMs) };
}

async function measure(
  host: Host,
  forker: Forker,
  of: { pool: 'warm' | 'cold'; clones: number; rounds: number },
  { quiet }: BenchContext,
): Promise<ClonesResult> {
  const forks: (ProgramFork & { prepareMs: number; pauseMs: number })[] = [];
  const calls: { callMs: number; answeredMs: number }[] = [];
  for (let round = 0; round < of.rounds; round++) {
    await poolFilled(host);
    await quiet.wait();
    const fork = await forker.fork(of.clones);
    forks.push({ ...fork, ...(await forker.lastFreeze()) });
    await poolFilled(host);
    await quiet.wait();
    calls.push(await callFromHost(host, forker, of.clones));
  }
  const rounds = forks.map((fork) => fork.clones.map((clone) => clone.info.times!));
  const uses = forks.flatMap((fork) => fork.clones.map((clone) => clone.use));
  return {
    pool: of.pool,
    clones: of.clones,
    eachMs: perStep((step) => rounds.flat().map((times) => times[step] ?? 0)),
    allMs: perStep((step) => rounds.map((round) => latest(round, step))),
    prepareMs: summarise(forks.map((fork) => fork.prepareMs)),
    pauseMs: summarise(forks.map((fork) => fork.pauseMs)),
    storeAndLoadMs: summarise(
      forks.map(({ prepareMs, pauseMs, clones }) => {
        const resumedMs = clones.map(({ info }) => info.times!.resumedMs);
        return Math.min(...resumedMs) - prepareMs - pauseMs;
      }),
    ),
    cloneGuestCpuMs: summarise(uses.map((use) => use.guestMs)),
    cloneCpuMs: summarise(uses.map((use) => use.processMs)),
    parentGuestCpuMs: summarise(forks.map((fork) => fork.parentGuestMs)),
    hostCallMs: summarise(calls.map((call) => call.callMs)),
    hostAnsweredMs: summarise(calls.map((call) => call.answeredMs)),
  };
}

async function callFromHost(
  host: Host,
  forker: Forker,
  count: number,
): Promise<{ callMs: number; answeredMs: number }> {
  const calledAt = performance.now();
  const { clones } = await forker.vm.fork(count);
  const callMs = performance.now() - calledAt;
  const vms = clones.map((clone) => {
    if (clone.status === 'rejected') throw clone.reason;
    return clone.value;
  });
  await killAll(
    host,
    vms.map((vm) => vm.id),
  );
  const times = vms.map((vm) => vm.initialInfo.times!);
  return { callMs, answeredMs: latest(times, 'answeredMs') };
}

function perStep(values: (step: Step) => number[]): Record<Step, Summary> {
  const entries = STEPS.map((step) => [step, summarise(values(step))] as const);
  return Object.fromEntries(entries) as Record<Step, Summary>;
}

function latest(times: readonly CloneTimes[], step: Step): number {
  return Math.max(...times.map((each) => each[step] ?? 0));
}

export function checkClones({ results }: ClonesPart): Check[] {
  const warm = (clones: number) =>
    results.find((result) => result.pool === 'warm' && result.clones === clones)!.allMs;
  const one = warm(1);
  const many = warm(32);
  return [
    atMost('one warm clone resumed', one.resumedMs.median, 'ms', TARGETS.oneResumedMs),
    atMost("one warm clone's program running", one.programMs.median, 'ms', TARGETS.oneProgramMs),
    atMost('32 warm clones resumed', many.resumedMs.median, 'ms', TARGETS.allResumedMs),
    atMost("32 warm clones' programs running", many.programMs.median, 'ms', TARGETS.allProgramsMs),
  ];
}

export function clonesTables({ results, guestRequestMs }: ClonesPart): string {
  const names = STEPS.map((step) => step.slice(0, -2));
  const times = table(
    'From the call of `fork` in the guest, ms: median (min–max) of all clones; of the last clone',
    ['pool', 'clones', 'rounds', ...names, 'all resumed', 'all answered', 'all programs'],
    results.map((result) => [
      result.pool,
      String(result.clones),
      String(result.allMs.resumedMs.count),
      ...STEPS.map((step) => spread(result.eachMs[step])),
      spread(result.allMs.resumedMs),
      spread(result.allMs.answeredMs),
      spread(result.allMs.programMs),
    ]),
  );
  const where = table(
    "Where it goes, ms: the parent's freeze, processor time per clone, and what a host's call takes",
    [
      ...['pool', 'clones', 'prepare', 'pause', 'store, load', 'guest CPU of a clone'],
      "of its QEMU's whole life",
      ...['guest CPU of the parent', 'call on the host', 'its clones answered'],
    ],
    results.map((result) => [
      result.pool,
      String(result.clones),
      spread(result.prepareMs),
      spread(result.pauseMs),
      spread(result.storeAndLoadMs),
      spread(result.cloneGuestCpuMs),
      spread(result.cloneCpuMs),
      spread(result.parentGuestCpuMs),
      spread(result.hostCallMs),
      spread(result.hostAnsweredMs),
    ]),
  );
  const request = `A program's request takes ${spread(guestRequestMs)} ms in the guest.\n`;
  return [times, where, request].join('\n');
}
