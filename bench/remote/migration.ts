// The peer: a VM of QEMU alone, moved to another host by QEMU's own migration, stopped or by
// post-copy. It gets the better of every choice: the QEMU over there has been started before the call, and no
// bandwidth limit but the link's holds.

import path from 'node:path';
import { type NetHost, NetHosts } from '../support/agent-parts.js';
import { benchImage, buildImages, endHost, startHost } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import {
  holdProgram,
  PlainQemu,
  type PlainQemuOptions,
  prepareParts,
} from '../support/plain-qemu.js';
import { atLeast, below, type Check, number, spread, table } from '../support/report.js';
import { inScratch } from '../support/scratch.js';
import { type Summary, summarise } from '../support/statistics.js';
import { forkLarge, type LargeFork, type LargeForks } from './fork-large.js';

const MIB = 1024 * 1024;
const MEMORY_MIB = 1024;
const USED_MIB = 512;
const LINK_BITS_PER_SECOND = 1e9;
const PORT = 7950;
const SOONER = 10;
const BYTES_PART_MAX = 0.1;
const ROUNDS = 3;
const ROUNDS_QUICK = 1;

type How = 'stopped' | 'post-copy';
type PlainOptions = Omit<PlainQemuOptions, 'incoming' | 'host'>;

interface Migration {
  /** From the call until the guest side has answered over there. */
  readonly answeredS: number;
  /** Until all memory is there. */
  readonly completedS: number;
  /** On both links. */
  readonly sentMib: number;
}

type Migrations = { readonly [Field in keyof Migration]: Summary };

export interface MigrationResult {
  readonly memoryMib: number;
  readonly usedMib: number;
  readonly stopped: Migrations;
  /** Missing where it can't be had. */
  readonly postCopy: Migrations | undefined;
  readonly snowfork: LargeForks;
}

export async function benchMigration(context: BenchContext): Promise<MigrationResult> {
  return await inScratch(async (folder) => {
    const options = await plainOptions(folder, context);
    const stopped = (await migrations(options, 'stopped', context))!;
    const postCopy = await migrations(options, 'post-copy', context);
    const snowfork = await forkLarge(context, {
      ...{ memoryMib: MEMORY_MIB, usedMib: USED_MIB, bitsPerSecond: LINK_BITS_PER_SECOND },
    });
    return { memoryMib: MEMORY_MIB, usedMib: USED_MIB, stopped, postCopy, snowfork };
  });
}

/** The machine that the agent gives its VMs here. */
export async function plainOptions(folder: string, { say }: BenchContext): Promise<PlainOptions> {
  const host = await startHost({ warmPoolSize: 0 });
  try {
    await buildImages(host, [MEMORY_MIB]);
    const name = benchImage(MEMORY_MIB).name;
    const { machine } = (await host.images()).find((image) => image.name === name)!;
    const { qemu } = await host.info();
    const prepared = await prepareParts(`${MEMORY_MIB}M`, say);
    const { machineType, accelerator, cpuModel } = machine;
    return { prepared, binary: qemu.path, folder, machineType, accelerator, cpuModel };
  } finally {
    await endHost(host);
  }
}

async function migrations(
  options: PlainOptions,
  how: How,
  { options: { quick }, quiet, say }: BenchContext,
): Promise<Migrations | undefined> {
  const bitsPerSecond = LINK_BITS_PER_SECOND;
  await using net = await NetHosts.create({ hosts: 2, bitsPerSecond });
  const rounds = quick ? ROUNDS_QUICK : ROUNDS;
  say(`migration: QEMU alone, ${how}, ${USED_MIB} of ${MEMORY_MIB} MiB filled`);
  let vm = await startAt(net.hosts[0]!, { ...options, folder: folderOf(options, how, 0) });
  const found: Migration[] = [];
  try {
    await vm.booted();
    await vm.startCommand(['perl', '-e', holdProgram(USED_MIB)], '');
    for (let round = 1; round <= rounds; round++) {
      const to = net.hosts[round % 2]!;
      const copy = await startAt(to, {
        ...options,
        folder: folderOf(options, how, round),
        incoming: true,
      });
      const source = vm;
      // From here on the copy is the VM, whatever becomes of the migration.
      await using _ = source;
      vm = copy;
      const refusal = how === 'post-copy' ? await refusalOf([source, copy]) : undefined;
      if (refusal !== undefined) {
        say(`migration: no post-copy here: ${refusal}`);
        return undefined;
      }
      await quiet.wait();
      found.push(await migrate({ source, copy, net: net.hosts, to, how }));
    }
    return summariesOf(found);
  } finally {
    await vm[Symbol.asyncDispose]();
  }
}

async function startAt(host: NetHost, options: Omit<PlainQemuOptions, 'host'>): Promise<PlainQemu> {
  return await PlainQemu.start({ ...options, host });
}

function folderOf({ folder }: PlainOptions, how: How, round: number): string {
  return path.join(folder, `${how}-${round}`);
}

async function refusalOf(machines: readonly PlainQemu[]): Promise<string | undefined> {
  const refusals = await Promise.all(machines.map((machine) => machine.usePostCopy()));
  return refusals.find((refusal) => refusal !== undefined);
}

async function migrate(of: {
  readonly source: PlainQemu;
  readonly copy: PlainQemu;
  readonly net: readonly NetHost[];
  readonly to: NetHost;
  readonly how: How;
}): Promise<Migration> {
  const { source, copy, net, to, how } = of;
  const uri = `tcp:${to.address}:${PORT}`;
  const sentBytes = (): number => net.reduce((sum, host) => sum + host.counters().bytesSent, 0);
  await copy.listen(uri);
  const sentBefore = sentBytes();
  const calledAt = performance.now();
  const sinceS = (): number => (performance.now() - calledAt) / 1000;
  const completed = source.sendTo(uri, how).then(sinceS);
  await Promise.race([copy.arrived(), failure(completed)]);
  // One that was stopped stays so over there.
  await copy.resume();
  await copy.answered();
  const answeredS = sinceS();
  const completedS = await completed;
  return { answeredS, completedS, sentMib: (sentBytes() - sentBefore) / MIB };
}

/** Never resolves. */
async function failure(of: Promise<unknown>): Promise<never> {
  await of;
  return await new Promise(() => {});
}

function summariesOf(migrations: readonly Migration[]): Migrations {
  return {
    answeredS: summarise(migrations.map(({ answeredS }) => answeredS)),
    completedS: summarise(migrations.map(({ completedS }) => completedS)),
    sentMib: summarise(migrations.map(({ sentMib }) => sentMib)),
  };
}

export function checkMigration({ stopped, postCopy, snowfork }: MigrationResult): Check[] {
  const [{ ranS, sentMib }] = snowfork.forks as [LargeFork];
  const peers = { 'stopped and copied': stopped, 'by post-copy': postCopy };
  return Object.entries(peers).flatMap(([how, by]) => {
    if (by === undefined) return [];
    const sooner = by.answeredS.median / ranS.median;
    const part = sentMib.median / by.sentMib.median;
    return [
      atLeast(`a clone runs on another host, beside a VM ${how}`, sooner, 'times sooner', SOONER),
      below(`bytes until it runs, beside a VM ${how}`, part, 'of its bytes', BYTES_PART_MAX),
    ];
  });
}

export function migrationTable(result: MigrationResult): string {
  const { memoryMib, usedMib, snowfork, ...how } = result;
  const row = (name: string, { answeredS, completedS, sentMib }: Migrations): string[] => [
    name,
    ...[answeredS, completedS, sentMib].map(spread),
  ];
  return table(
    `QEMU alone moves, Snowfork forks ${usedMib} of ${memoryMib} MiB over 1 Gbit/s: median (min–max)`,
    ['how', 's until it runs', 's until all is there', 'MiB sent'],
    [
      row('stopped', how.stopped),
      ...(how.postCopy === undefined ? [] : [row('post-copy', how.postCopy)]),
      ['Snowfork, first fork, 1 clone', number(snowfork.firstRanS), '', ''],
      ...snowfork.forks.map(({ hosts, ranS, sentMib }) => [
        `Snowfork, ${hosts} clone${hosts === 1 ? '' : 's on as many hosts'}`,
        ...[spread(ranS), '', spread(sentMib)],
      ]),
    ],
  );
}
