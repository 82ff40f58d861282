// How long a program runs in a clone beside the same program in its parent: one that computes and one
// that reads and writes memory, long enough that a user would notice. The first run in a clone pays for
// its page faults, and under TCG for the translation of all code; the run after that does not. The peer
// is a copy of the same guest by QEMU alone (`migrate` to a file and back), which has no page to fetch:
// what its first run takes more than its parent is not Snowfork's doing.

import fs from 'node:fs';
import path from 'node:path';
import type { Host, Vm } from '@snowfork/sdk';
import { benchImage, endHost, poolFilled, startHost } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { PlainQemu, type PlainQemuOptions, prepareParts } from '../support/plain-qemu.js';
import { below, type Check, spread, table } from '../support/report.js';
import { inScratch } from '../support/scratch.js';
import { type Summary, summarise } from '../support/statistics.js';
import { type GuestShell, runWorker, shellOf, startWorker } from '../support/worker.js';

const MEMORY_MIB = 256;
/** The worker holds twice that. */
const WORKER_MIB = 32;
const LONGER_TARGET_PERCENT = 3;
const SECONDS = 10;
const SECONDS_QUICK = 5;
const ROUNDS = 5;
const ROUNDS_QUICK = 1;
/** To find out how much work takes that long. */
const TRIAL = { cpu: 500_000, memory: 20 } as const;
const UNLIMITED_BYTES_PER_S = 1e12;

const KINDS = ['cpu', 'memory'] as const;
type Kind = (typeof KINDS)[number];

/** The same work in a parent and in a copy of it, made anew in each round. */
export interface RunTimes {
  readonly parentS: Summary;
  readonly firstS: Summary;
  readonly steadyS: Summary;
  /** Percent that the copy's run takes more than the parent's of the same round. */
  readonly firstMorePercent: Summary;
  readonly steadyMorePercent: Summary;
}

export interface RunningResult {
  readonly kind: Kind;
  readonly clone: RunTimes;
  /** A copy by QEMU alone. */
  readonly plain: RunTimes;
}

interface Round {
  readonly parentS: number;
  readonly firstS: number;
  readonly steadyS: number;
}

/** A copy of the guest as it is now. */
interface Copies {
  readonly parent: GuestShell;
  makeCopy(): Promise<{ shell: GuestShell; end: () => Promise<void> }>;
}

export async function benchRunning(context: BenchContext): Promise<RunningResult[]> {
  const { machine, qemu, clones } = await measureClones(context);
  const prepared = await prepareParts(`${MEMORY_MIB}M`, context.say);
  return await inScratch(async (folder) => {
    const plain = await measurePlain(
      {
        ...{ prepared, binary: qemu.path, folder },
        ...{ machineType: machine.machineType, accelerator: machine.accelerator },
        cpuModel: machine.cpuModel,
      },
      context,
    );
    return KINDS.map((kind) => ({ kind, clone: clones[kind], plain: plain[kind] }));
  });
}

async function measureClones(context: BenchContext) {
  const host = await startHost({ warmPoolSize: 2 });
  try {
    await using vm = await host.launch(benchImage(MEMORY_MIB).name);
    const parent = shellOf(vm);
    await startWorker(parent, WORKER_MIB);
    const makeCopy = async () => {
      await poolFilled(host);
      const clone = await forkOne(vm);
      return { shell: shellOf(clone), end: () => clone.kill() };
    };
    const clones = await measureAll('Snowfork', { parent, makeCopy }, context);
    const { machine } = await imageOf(host);
    return { machine, qemu: (await host.info()).qemu, clones };
  } finally {
    await endHost(host);
  }
}

async function imageOf(host: Host) {
  const { name } = benchImage(MEMORY_MIB);
  return (await host.images()).find((image) => image.name === name)!;
}

async function forkOne(vm: Vm): Promise<Vm> {
  const { clones } = await vm.fork(1);
  const [clone] = clones;
  if (clone?.status !== 'fulfilled') throw clone?.reason;
  return clone.value;
}

async function measurePlain(
  options: Omit<PlainQemuOptions, 'incoming'>,
  context: BenchContext,
): Promise<Record<Kind, RunTimes>> {
  await using source = await PlainQemu.start({
    ...options,
    folder: path.join(options.folder, 'source'),
  });
  await source.booted();
  const parent: GuestShell = (line, stdin) => source.shell(line, stdin);
  await startWorker(parent, WORKER_MIB);
  let copies = 0;
  const makeCopy = async () => {
    const folder = path.join(options.folder, `copy${copies++}`);
    const copy = await PlainQemu.start({ ...options, folder, incoming: true });
    const file = path.join(options.folder, 'state');
    await source.save(file, UNLIMITED_BYTES_PER_S);
    await copy.restore(file);
    await source.resume();
    fs.rmSync(file);
    const shell: GuestShell = (line, stdin) => copy.shell(line, stdin);
    return { shell, end: () => copy[Symbol.asyncDispose]() };
  };
  return await measureAll('QEMU alone', { parent, makeCopy }, context);
}

async function measureAll(
  who: string,
  copies: Copies,
  context: BenchContext,
): Promise<Record<Kind, RunTimes>> {
  const results: Partial<Record<Kind, RunTimes>> = {};
  for (const kind of KINDS) results[kind] = await measureKind(who, kind, copies, context);
  return results as Record<Kind, RunTimes>;
}

async function measureKind(
  who: string,
  kind: Kind,
  { parent, makeCopy }: Copies,
  { quiet, options, say }: BenchContext,
): Promise<RunTimes> {
  const command = await calibrate(kind, parent, options.quick ? SECONDS_QUICK : SECONDS);
  const rounds: Round[] = [];
  for (let round = 0; round < (options.quick ? ROUNDS_QUICK : ROUNDS); round++) {
    say(`running: ${command}, ${who}, round ${round + 1}`);
    const copy = await makeCopy();
    const results: string[] = [];
    const timed = async (shell: GuestShell) => {
      await quiet.wait();
      const { seconds, result } = await runWorker(shell, command);
      results.push(result);
      return seconds;
    };
    // In turn before and after, so that what drifts does not count for one of them.
    const before = round % 2 === 0 ? await timed(parent) : undefined;
    const firstS = await timed(copy.shell);
    const steadyS = await timed(copy.shell);
    const parentS = before ?? (await timed(parent));
    await copy.end();
    rounds.push({ parentS, firstS, steadyS });
    if (new Set(results).size > 1) throw new Error(`${command} gave ${results.join(', ')}`);
  }
  return summariseRounds(rounds);
}

/** The command that takes about as long; by its last run the parent has translated all of it. */
async function calibrate(kind: Kind, parent: GuestShell, seconds: number): Promise<string> {
  await runWorker(parent, `${kind} ${TRIAL[kind]}`);
  const trial = await runWorker(parent, `${kind} ${TRIAL[kind]}`);
  // Even: the memory is then as it was.
  const count = 2 * Math.ceil((TRIAL[kind] * seconds) / trial.seconds / 2);
  return `${kind} ${count}`;
}

function summariseRounds(rounds: readonly Round[]): RunTimes {
  const more = (copyS: number, parentS: number) => 100 * (copyS / parentS - 1);
  return {
    parentS: summarise(rounds.map(({ parentS }) => parentS)),
    firstS: summarise(rounds.map(({ firstS }) => firstS)),
    steadyS: summarise(rounds.map(({ steadyS }) => steadyS)),
    firstMorePercent: summarise(rounds.map(({ firstS, parentS }) => more(firstS, parentS))),
    steadyMorePercent: summarise(rounds.map(({ steadyS, parentS }) => more(steadyS, parentS))),
  };
}

const NAMES: Readonly<Record<Kind, string>> = {
  cpu: 'a CPU-bound program',
  memory: 'a memory-bound program',
};

export function checkRunning(results: readonly RunningResult[]): Check[] {
  return results.flatMap(({ kind, clone }) => {
    const check = (run: string, { median }: Summary) => {
      const name = `${NAMES[kind]} in a clone, ${run} run, longer than in its parent`;
      return below(name, Number(median.toFixed(2)), '%', LONGER_TARGET_PERCENT);
    };
    return [check('first', clone.firstMorePercent), check('second', clone.steadyMorePercent)];
  });
}

export function runningTable(results: readonly RunningResult[]): string {
  const rows = results.flatMap(({ kind, clone, plain }) =>
    (
      [
        ['clone', clone],
        ['copy by QEMU alone', plain],
      ] as const
    ).map(([copy, times]) => [
      kind,
      copy,
      String(times.parentS.count),
      spread(times.parentS),
      spread(times.firstS),
      spread(times.steadyS),
      spread(times.firstMorePercent),
      spread(times.steadyMorePercent),
    ]),
  );
  return table(
    'The same work in a parent and in a copy of it, s: median (min–max), and percent more',
    [
      'work',
      'in',
      'rounds',
      'parent',
      'first run',
      'second run',
      'first, % more',
      'second, % more',
    ],
    rows,
  );
}
