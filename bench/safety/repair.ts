// What repair of identity and freezing of programs add to a fork: the same fork beside one of a guest
// whose guest side does neither. That guest runs `sf-guestd` as it ships with three lines changed: it
// freezes no program, renews nothing and runs no hook, and answers PREPARE and RESUME at once. Both
// guests are forked in turn, in the same way, by the same program.

import fs from 'node:fs';
import path from 'node:path';
import type { Host } from '@snowfork/sdk';
import { guestFolder } from '../support/agent-parts.js';
import { benchImage, endHost, poolFilled, startHost, stateFolder } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { Forker } from '../support/forker.js';
import { below, type Check, spread, table } from '../support/report.js';
import { type Summary, summarise } from '../support/statistics.js';

const MEMORY_MIB = 256;
const BARE_IMAGE = 'bench-bare';
const POOL_SIZE = 4;
const ROUNDS = 41;
const ROUNDS_QUICK = 9;
const ADDED_TARGET_MS = 15;

const STEPS = ['prepareMs', 'repairMs', 'programMs', 'guestCpuMs'] as const;
type Step = (typeof STEPS)[number];

/** A fork into one clone, milliseconds. */
type Fork = Readonly<Record<Step, number>>;

export interface RepairResult {
  /**
   * `prepareMs`: from PREPARE until the parent's guest side says that it is quiet. `repairMs`: from the
   * clone's first instruction until its guest side has answered RESUME. `programMs`: from the call until
   * the first request of the clone's program. `guestCpuMs`: processor time of the clone until then.
   */
  readonly whole: Record<Step, Summary>;
  readonly bare: Record<Step, Summary>;
  /** What the whole fork took more than the bare one of the same round. */
  readonly added: Record<Step, Summary>;
}

export async function benchRepair({ quiet, options, say }: BenchContext): Promise<RepairResult> {
  const host = await startHost({ warmPoolSize: POOL_SIZE });
  try {
    await buildBareImage(host);
    await using wholeForker = await Forker.launch(host, benchImage(MEMORY_MIB).name);
    await using bareForker = await Forker.launch(host, BARE_IMAGE);
    const forkers = { whole: wholeForker, bare: bareForker };
    const forks = { whole: [] as Fork[], bare: [] as Fork[] };
    const rounds = options.quick ? ROUNDS_QUICK : ROUNDS;
    say(`repair: ${rounds} forks with and without`);
    // The first fork stores what the guest's start has left; it does not count.
    for (let round = -1; round < rounds; round++) {
      const turns = round % 2 === 0 ? (['whole', 'bare'] as const) : (['bare', 'whole'] as const);
      for (const kind of turns) {
        await poolFilled(host);
        await quiet.wait();
        const fork = await forkOnce(forkers[kind]);
        if (round >= 0) forks[kind].push(fork);
      }
    }
    const added = forks.whole.map((fork, round) => difference(fork, forks.bare[round]!));
    return { whole: perStep(forks.whole), bare: perStep(forks.bare), added: perStep(added) };
  } finally {
    await endHost(host);
  }
}

async function forkOnce(forker: Forker): Promise<Fork> {
  const { clones } = await forker.fork(1);
  const [{ info, use }] = clones as [(typeof clones)[number]];
  const { resumedMs, answeredMs, programMs } = info.times!;
  if (programMs === undefined) throw new Error(`the program of ${info.id} has not spoken`);
  const { prepareMs } = await forker.lastFreeze();
  return { prepareMs, repairMs: answeredMs - resumedMs, programMs, guestCpuMs: use.guestMs };
}

/** `minimal` with another guest side. */
async function buildBareImage(host: Host): Promise<void> {
  const daemon = path.join(stateFolder, 'bare-sf-guestd');
  fs.writeFileSync(daemon, bareGuestSide());
  const file = path.join(stateFolder, 'bare.yaml');
  const target = '/usr/lib/snowfork/sf-guestd';
  fs.writeFileSync(
    file,
    `system: busybox\nmemory: ${MEMORY_MIB}M\nfiles:\n` +
      `  - { source: ${JSON.stringify(daemon)}, target: ${target}, mode: '0755' }\n`,
  );
  await host.buildImage({ name: BARE_IMAGE, file });
}

/** Fails when the guest side has come to look otherwise: better no figure than a wrong one. */
function bareGuestSide(): string {
  let source = fs.readFileSync(path.join(guestFolder, 'sf-guestd'), 'utf8');
  const replace = (pattern: RegExp, by: string) => {
    const matches = source.match(pattern)?.length ?? 0;
    if (matches !== 1) throw new Error(`sf-guestd has ${matches} of ${pattern}`);
    source = source.replace(pattern, by);
  };
  replace(/^ *sysopen \$freezer, .*$/gm, '');
  replace(/^sub repair_identity \(\$field\) \{$/gm, '$&\n    return;');
  replace(/^sub run_hooks \(\$field\) \{$/gm, '$&\n    return;');
  return source;
}

function difference(whole: Fork, bare: Fork): Fork {
  const entries = STEPS.map((step) => [step, whole[step] - bare[step]]);
  return Object.fromEntries(entries) as Fork;
}

function perStep(forks: readonly Fork[]): Record<Step, Summary> {
  const entries = STEPS.map((step) => [step, summarise(forks.map((fork) => fork[step]))]);
  return Object.fromEntries(entries) as Record<Step, Summary>;
}

export function checkRepair({ added }: RepairResult): Check[] {
  const name = 'repair and freezing of programs add, until the program of a clone runs';
  return [below(name, Number(added.programMs.median.toFixed(2)), 'ms', ADDED_TARGET_MS)];
}

export function repairTable({ whole, bare, added }: RepairResult): string {
  const row = (name: string, times: Record<Step, Summary>) => [
    name,
    ...STEPS.map((step) => spread(times[step])),
  ];
  return table(
    'A fork into one warm clone, ms: median (min–max)',
    ['fork', 'quiet', 'resumed to answered', "call to clone's program", "clone's guest CPU"],
    [row('whole', whole), row('bare', bare), row('whole less bare', added)],
  );
}
