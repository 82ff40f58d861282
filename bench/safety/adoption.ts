// How long a running VM cannot be reached when the agent is killed by `kill -9`: until the next agent,
// which is started at once, has adopted it and a command in it answers. The VM must be the same: the
// same QEMU, and a program in it that goes on.

import { setTimeout as delay } from 'node:timers/promises';
import { connect, type Host, type Vm } from '@snowfork/sdk';
import { benchImage, endHost, startHost, stateFolder } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { below, type Check, spread, table } from '../support/report.js';
import { type Summary, summarise } from '../support/statistics.js';
import { runWorker, shellOf, startWorker } from '../support/worker.js';

const MEMORY_MIB = 256;
const VMS = 4;
const ROUNDS = 9;
const ROUNDS_QUICK = 3;
const ADOPTED_TARGET_MS = 1000;
const ADOPTED_MS_MAX = 20_000;
const POLL_MS = 5;

export interface AdoptionResult {
  readonly vms: number;
  /** From the kill until a command in a VM that ran before has answered; the new agent starts at once. */
  readonly sinceKillMs: Summary;
  /** From the start of the new agent's process until the same. */
  readonly sinceStartMs: Summary;
  /** From the start of the new agent's process until its API answers. */
  readonly apiMs: Summary;
  /** From the kill until all VMs have answered. */
  readonly allMs: Summary;
}

interface Round {
  readonly sinceKillMs: number;
  readonly sinceStartMs: number;
  readonly apiMs: number;
  readonly allMs: number;
}

/** @throws Error when an agent does not adopt what the one before it left. */
export async function benchAdoption({
  quiet,
  options,
  say,
}: BenchContext): Promise<AdoptionResult> {
  let host = await startHost({ warmPoolSize: 2 });
  try {
    const vm = await host.launch(benchImage(MEMORY_MIB).name);
    await startWorker(shellOf(vm), 1);
    await vm.fork(VMS - 1);
    const rounds: Round[] = [];
    for (let round = 0; round < (options.quick ? ROUNDS_QUICK : ROUNDS); round++) {
      say(`adoption: round ${round + 1}`);
      await quiet.wait();
      const before = await pidsOf(host);
      const killed = await kill(host);
      host = killed.host;
      rounds.push(await measure(host, killed, vm));
      const after = await pidsOf(host);
      if (after !== before) throw new Error(`the VMs were ${before}, and are ${after}`);
      // The program that ran in it goes on.
      await runWorker(shellOf(await host.vm(vm.id)), 'cpu 1000');
    }
    return { vms: VMS, ...summariseRounds(rounds) };
  } finally {
    await endHost(host);
  }
}

interface Killed {
  readonly host: Host;
  readonly killedAt: number;
  readonly startedAt: number;
  readonly apiAt: number;
}

async function kill(host: Host): Promise<Killed> {
  const { pid } = await host.info();
  const killedAt = performance.now();
  process.kill(pid, 'SIGKILL');
  // The SDK starts an agent where none answers any more.
  while (isThere(pid)) await delay(1);
  const startedAt = performance.now();
  const next = await connect({ stateFolder });
  const apiAt = performance.now();
  await host.close();
  return { host: next, killedAt, startedAt, apiAt };
}

function isThere(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

async function measure(host: Host, { killedAt, startedAt, apiAt }: Killed, vm: Vm): Promise<Round> {
  await answered(host, vm.id);
  const answeredAt = performance.now();
  const others = (await host.vms()).filter(({ id }) => id !== vm.id);
  await Promise.all(others.map(({ id }) => answered(host, id)));
  return {
    sinceKillMs: answeredAt - killedAt,
    sinceStartMs: answeredAt - startedAt,
    apiMs: apiAt - startedAt,
    allMs: performance.now() - killedAt,
  };
}

/** By a command in the VM. */
async function answered(host: Host, id: string): Promise<void> {
  const deadline = performance.now() + ADOPTED_MS_MAX;
  for (;;) {
    try {
      const { stdout } = await (await host.vm(id)).exec('echo here');
      if (stdout === 'here\n') return;
      throw new Error(`${id} answers ${stdout}`);
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await delay(POLL_MS);
    }
  }
}

/** As text, to be compared. */
async function pidsOf(host: Host): Promise<string> {
  const vms = await host.vms();
  return vms
    .map(({ id, pid }) => `${id}: ${pid}`)
    .toSorted()
    .join(', ');
}

function summariseRounds(rounds: readonly Round[]): Omit<AdoptionResult, 'vms'> {
  const of = (field: keyof Round) => summarise(rounds.map((round) => round[field]));
  return {
    sinceKillMs: of('sinceKillMs'),
    sinceStartMs: of('sinceStartMs'),
    apiMs: of('apiMs'),
    allMs: of('allMs'),
  };
}

export function checkAdoption({ sinceKillMs, sinceStartMs }: AdoptionResult): Check[] {
  const name = 'a VM answers after kill -9 of the agent';
  return [
    below(`${name}, since the kill`, sinceKillMs.median, 'ms', ADOPTED_TARGET_MS),
    below(`${name}, since the next one's start`, sinceStartMs.median, 'ms', ADOPTED_TARGET_MS),
  ];
}

export function adoptionTable({ vms, ...result }: AdoptionResult): string {
  return table(
    `The agent is killed and the next one started at once, ${vms} VMs, ms: median (min–max)`,
    ['since', 'its API answers', 'a VM answers', 'all VMs answer'],
    [
      ['the kill', '', spread(result.sinceKillMs), spread(result.allMs)],
      ["the next one's start", spread(result.apiMs), spread(result.sinceStartMs), ''],
    ],
  );
}
