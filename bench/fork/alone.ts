// The peer: a copy of a running VM by QEMU alone, `stop`, `migrate` to a file on tmpfs, a second QEMU
// that restores it, beside Snowfork's fork of the same guest in the same run: 1 GiB of RAM, half of it
// in use. Both from the call until the copy's guest side answers.
//
// The peer gets the better of every choice: its second QEMU has been started before the call, and the
// file is in RAM. It is measured as it comes, and with QEMU's bandwidth limit (128 MiB/s by default)
// raised out of the way.

import fs from 'node:fs';
import path from 'node:path';
import { benchImage, endHost, poolFilled, startHost } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { Forker } from '../support/forker.js';
import {
  holdProgram,
  PlainQemu,
  type PlainQemuOptions,
  prepareParts,
} from '../support/plain-qemu.js';
import { atLeast, type Check, spread, table } from '../support/report.js';
import { inScratch } from '../support/scratch.js';
import { type Summary, summarise } from '../support/statistics.js';

const MEMORY_MIB = 1024;
const USED_MIB = 512;
const UNLIMITED_BYTES_PER_S = 1e12;
const FASTER_TARGET = 10;

export interface CopyTimes {
  /** Until the whole of the VM is in the file. */
  readonly savedMs: Summary;
  readonly restoredMs: Summary;
  readonly answeredMs: Summary;
}

export interface AloneResult {
  /** QEMU as it comes. */
  readonly plain: CopyTimes;
  /** Without its bandwidth limit. */
  readonly unlimited: CopyTimes;
  /** All that is in use was written since the VM's start: the dearest fork that there is. */
  readonly firstFork: { readonly answeredMs: Summary; readonly pauseMs: Summary };
  /** Further forks of the same VM, with nothing changed in between. */
  readonly laterFork: { readonly answeredMs: Summary; readonly pauseMs: Summary };
}

export async function benchAlone(context: BenchContext): Promise<AloneResult> {
  const snowfork = await measureSnowfork(context);
  const { machine, qemu } = snowfork;
  const prepared = await prepareParts(`${MEMORY_MIB}M`, context.say);
  return await inScratch(async (folder) => {
    const options = {
      ...{ prepared, binary: qemu.path, folder },
      ...{ machineType: machine.machineType, accelerator: machine.accelerator },
      cpuModel: machine.cpuModel,
    };
    const { firstFork, laterFork } = snowfork;
    const plain = await measurePlain(options, undefined, context);
    const unlimited = await measurePlain(options, UNLIMITED_BYTES_PER_S, context);
    return { plain, unlimited, firstFork, laterFork };
  });
}

async function measureSnowfork({ quiet, options, say }: BenchContext) {
  const rounds = options.quick ? 1 : 5;
  const host = await startHost({ warmPoolSize: 2 });
  const first: { answeredMs: number; pauseMs: number }[] = [];
  const later: { answeredMs: number; pauseMs: number }[] = [];
  try {
    say(`peer: Snowfork, ${USED_MIB} of ${MEMORY_MIB} MiB in use`);
    for (let round = 0; round < rounds; round++) {
      await using forker = await Forker.launch(host, benchImage(MEMORY_MIB).name);
      await forker.command(`hold ${USED_MIB}`);
      for (const list of [first, later]) {
        await poolFilled(host);
        await quiet.wait();
        const { clones, freeze } = await forker.vm.fork(1);
        const clone = clones[0]!;
        if (clone.status === 'rejected') throw clone.reason;
        const { answeredMs } = clone.value.initialInfo.times!;
        list.push({ answeredMs, pauseMs: freeze.pauseMs });
        await clone.value.kill();
      }
    }
    const image = benchImage(MEMORY_MIB).name;
    const { machine } = (await host.images()).find(({ name }) => name === image)!;
    const { qemu } = await host.info();
    return { machine, qemu, firstFork: summariseForks(first), laterFork: summariseForks(later) };
  } finally {
    await endHost(host);
  }
}

function summariseForks(forks: readonly { answeredMs: number; pauseMs: number }[]) {
  return {
    answeredMs: summarise(forks.map(({ answeredMs }) => answeredMs)),
    pauseMs: summarise(forks.map(({ pauseMs }) => pauseMs)),
  };
}

async function measurePlain(
  options: Omit<PlainQemuOptions, 'incoming'>,
  bytesPerS: number | undefined,
  { quiet, options: { quick }, say }: BenchContext,
): Promise<CopyTimes> {
  const rounds = quick ? 1 : 5;
  say(`peer: QEMU alone${bytesPerS === undefined ? '' : ', without its bandwidth limit'}`);
  await using source = await PlainQemu.start({
    ...options,
    folder: path.join(options.folder, 'source'),
  });
  await source.booted();
  await source.startCommand(['perl', '-e', holdProgram(USED_MIB)], '');
  const rows: { savedMs: number; restoredMs: number; answeredMs: number }[] = [];
  for (let round = 0; round < rounds; round++) {
    const file = path.join(options.folder, 'state');
    await using copy = await PlainQemu.start({
      ...options,
      folder: path.join(options.folder, `copy${round}`),
      incoming: true,
    });
    await quiet.wait();
    const calledAt = performance.now();
    const since = () => performance.now() - calledAt;
    await source.save(file, bytesPerS);
    const savedMs = since();
    await copy.restore(file);
    const restoredMs = since();
    await copy.answered();
    rows.push({ savedMs, restoredMs, answeredMs: since() });
    await source.resume();
    await source.answered();
    fs.rmSync(file);
  }
  return {
    savedMs: summarise(rows.map(({ savedMs }) => savedMs)),
    restoredMs: summarise(rows.map(({ restoredMs }) => restoredMs)),
    answeredMs: summarise(rows.map(({ answeredMs }) => answeredMs)),
  };
}

export function checkAlone({ plain, firstFork, laterFork }: AloneResult): Check[] {
  return [
    factorCheck('times faster than QEMU alone, first fork', plain, firstFork),
    factorCheck('times faster than QEMU alone, later forks', plain, laterFork),
  ];
}

function factorCheck(name: string, peer: CopyTimes, fork: AloneResult['firstFork']): Check {
  return atLeast(name, factor(peer, fork), 'times', FASTER_TARGET);
}

function factor(peer: CopyTimes, fork: AloneResult['firstFork']): number {
  return Number((peer.answeredMs.median / fork.answeredMs.median).toFixed(1));
}

export function aloneTable(result: AloneResult): string {
  const { plain, unlimited, firstFork, laterFork } = result;
  const peer = (name: string, times: CopyTimes) => [
    name,
    spread(times.savedMs),
    spread(times.restoredMs),
    spread(times.answeredMs),
    String(factor(times, firstFork)),
    String(factor(times, laterFork)),
  ];
  const fork = (name: string, { answeredMs, pauseMs }: AloneResult['firstFork']) => [
    ...[name, spread(pauseMs), '', spread(answeredMs), '', ''],
  ];
  return table(
    `A copy of a ${MEMORY_MIB} MiB guest, ${USED_MIB} MiB in use, ms: median (min–max)`,
    ['how', 'original paused', 'restored', 'copy answers', '÷ first fork', '÷ later forks'],
    [
      peer('QEMU alone', plain),
      peer('QEMU alone, no bandwidth limit', unlimited),
      fork('Snowfork, first fork', firstFork),
      fork('Snowfork, later forks', laterFork),
    ],
  );
}
