// A long computation that takes what nobody else needs: while this host has idle cores and room, it
// forks workers, clones of its VM; when VMs of others get busy or room gets short it gives workers back.
// No work is lost and none is counted twice: a worker that is asked to go hands over what it has, with
// the number where it stopped; one that is killed leaves its whole share to be done again.
//
//   what is computed: the sum of all divisors of all numbers from 1 on; what it must be is known by
//   σ(1) + … + σ(n)  =  1·⌊n/1⌋ + 2·⌊n/2⌋ + … + n·⌊n/n⌋
//
// One file for both sides: on the host it watches the host and copies itself into a VM, where it runs as
// `compute`. Arguments: [cores that it may take for idle] [numbers] [numbers of a share]; Ctrl-C (or
// SIGTERM) ends it early, with the sum so far; `--json` prints the results as JSON.

import fs from 'node:fs';
import os from 'node:os';
import { createInterface } from 'node:readline';
import { setImmediate, setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { GuestProcess, Host, Vm, VmInfo } from '@snowfork/sdk';

/** From `from` up to, and without, `to`. */
interface Range {
  readonly from: number;
  readonly to: number;
}

interface Done extends Range {
  readonly sum: number;
}

/** What the program in the VM hands over at the end. */
interface Result {
  readonly done: Done[];
  /** Given out, given back, and not done: only when it was ended early. */
  readonly left: Range[];
  readonly handedOver: number;
  readonly lost: number;
}

// --- In the VM ---------------------------------------------------------------------------------

/** Numbers between two looks at what has come in. */
const SLICE = 200;

/** Obeys the lines `fork` and `finish`; tells each fork, and the result at the end. */
async function compute(limit: number, share: number): Promise<void> {
  const { sf } = await import('@snowfork/sdk/guest');
  let frontier = 1;
  const givenBack: Range[] = [];
  const done: Done[] = [];
  const workers = { running: 0, handedOver: 0, lost: 0 };
  let forksWanted = 0;
  let isFinishing = false;
  let isAskedToGo = false;
  process.on('SIGTERM', () => {
    isAskedToGo = true;
  });
  const lines = createInterface({ input: process.stdin });
  lines.on('line', (line) => {
    if (line === 'fork') forksWanted += 1;
    if (line === 'finish') isFinishing = true;
  });

  const hasWork = () => !isFinishing && (givenBack.length > 0 || frontier < limit);
  const take = (size: number): Range => {
    const back = givenBack.pop();
    const { from, to } = back ?? { from: frontier, to: limit };
    const end = Math.min(from + size, to);
    if (back === undefined) frontier = end;
    else if (end < to) givenBack.push({ from: end, to });
    return { from, to: end };
  };
  const record = (range: Done): void => {
    const last = done.at(-1);
    if (last?.to !== range.from) done.push(range);
    else done[done.length - 1] = { from: last.from, to: range.to, sum: last.sum + range.sum };
  };

  async function forkWorker(): Promise<void> {
    const range = take(share);
    const fork = await sf.fork(1).catch((error: Error) => error);
    if (fork instanceof Error) {
      givenBack.push(range);
      return tell({ forked: null, why: fork.message });
    }
    if (fork.id > 0) return await work(range);
    workers.running += 1;
    tell({ forked: fork.ticket.id });
    void sf.join<Done>(fork.ticket).then(([result]) => settle(range, result!), overtaken);
  }

  /** In a worker: until its share is done, or somebody else needs the room. */
  async function work({ from, to }: Range): Promise<never> {
    let sum = 0;
    let next = from;
    while (next < to && !isAskedToGo) {
      const end = Math.min(next + SLICE, to);
      sum += sumOfDivisors({ from: next, to: end });
      next = end;
      await setImmediate();
    }
    return await sf.exit({ from, to: next, sum });
  }

  function settle(range: Range, result: Awaited<ReturnType<typeof sf.join<Done>>>[number]): void {
    workers.running -= 1;
    if (result.status === 'rejected') {
      workers.lost += 1;
      givenBack.push(range);
      return;
    }
    workers.handedOver += 1;
    const { to } = result.value;
    record(result.value);
    if (to < range.to) givenBack.push({ from: to, to: range.to });
  }

  while (hasWork() || workers.running > 0) {
    if (forksWanted > 0) {
      forksWanted -= 1;
      if (hasWork()) await forkWorker();
      else tell({ forked: null, why: 'there is no work left' });
    } else if (hasWork()) {
      const range = take(SLICE);
      record({ ...range, sum: sumOfDivisors(range) });
      await setImmediate();
    } else await sleep(20);
  }
  tell({ done, left: givenBack, handedOver: workers.handedOver, lost: workers.lost });
  process.exit(0);
}

/** The wait for another worker, in a clone: it goes on in the parent. */
function overtaken(error: { code?: string }): void {
  if (error.code !== 'SF_FORKED_AWAY') throw error;
}

function tell(message: object): void {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}

function sumOfDivisors({ from, to }: Range): number {
  let sum = 0;
  for (let n = from; n < to; n++) {
    for (let d = 1; d * d <= n; d++) {
      if (n % d === 0) sum += d * d === n ? d : d + n / d;
    }
  }
  return sum;
}

// --- On the host -------------------------------------------------------------------------------

/** So that sums are exact: they grow to 0.82 times the square of it. */
const NUMBERS_MAX = 90_000_000;
const TICK_MS = 300;
/** A VM that takes more of a core than this is busy, and a core is left to it. */
const BUSY_SHARE = 0.1;
/** Room that is left to others, in VMs of the size of ours. */
const SPARE_VMS = 2;
/** A worker that has not handed over by then is killed: its share is done again. */
const HAND_OVER_TIMEOUT_MS = 10_000;

async function main(): Promise<void> {
  const { connect } = await import('@snowfork/sdk');
  const words = process.argv.slice(2).filter((word) => !word.startsWith('--'));
  const [cores = os.availableParallelism(), numbers = 300_000, share = 50_000] = words.map(Number);
  const limit = Math.min(numbers, NUMBERS_MAX);
  await using host = await connect();
  await using vm = await host.launch('node');
  await vm.writeFile('/root/compute.mjs', fs.readFileSync(fileURLToPath(import.meta.url)));
  const command = ['node', '/root/compute.mjs', 'compute', String(limit + 1), String(share)];
  await using program = await vm.spawn(command);
  program.stderr.pipe(process.stderr);

  const opportunist = new Opportunist(host, vm, program, cores);
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.on(signal, () => opportunist.finish());
  const result = await opportunist.run();
  const report = { ...verified(result), ticks: opportunist.ticks };
  process.stdout.write(process.argv.includes('--json') ? JSON.stringify(report) : told(report));
}

interface Tick {
  readonly seconds: number;
  readonly workers: number;
  readonly wanted: number;
  readonly busyOthers: number;
}

class Opportunist {
  readonly ticks: Tick[] = [];
  readonly #host: Host;
  readonly #vm: Vm;
  readonly #program: GuestProcess;
  readonly #cores: number;
  #isFinishing = false;
  #isForking = false;
  /** Processor time of others' VMs at the last look. */
  #cpuMs = new Map<string, number>();
  #lookedAt = performance.now();
  /** Workers that were asked to go, until they have. */
  readonly #going = new Map<string, Promise<void>>();

  constructor(host: Host, vm: Vm, program: GuestProcess, cores: number) {
    this.#host = host;
    this.#vm = vm;
    this.#program = program;
    this.#cores = cores;
  }

  finish(): void {
    this.#isFinishing = true;
    this.#program.stdin.write('finish\n');
  }

  async run(): Promise<Result> {
    let result: Result | undefined;
    const reading = (async () => {
      for await (const line of createInterface({ input: this.#program.stdout })) {
        const message = JSON.parse(line);
        if ('forked' in message) this.#isForking = false;
        else result = message;
      }
    })();
    const startedAt = performance.now();
    while (result === undefined && this.#program.stdout.readable) {
      this.#adapt(
        startedAt,
        await this.#host.vms(),
        await this.#roomVms(),
        await this.#busyOthers(),
      );
      await sleep(TICK_MS);
    }
    await reading;
    if (result === undefined) throw new Error('the program in the VM has ended without a result');
    return result;
  }

  #adapt(startedAt: number, vms: VmInfo[], roomVms: number, busyOthers: number): void {
    const family = vms.filter(({ family, id }) => family === this.#vm.id && id !== this.#vm.id);
    const workers = family.filter(({ id }) => !this.#going.has(id));
    // One core is the parent's: it computes too.
    const idleCores = this.#isFinishing ? 0 : Math.max(0, this.#cores - 1 - busyOthers);
    const wanted = roomVms < SPARE_VMS ? Math.min(idleCores, workers.length - 1) : idleCores;
    const seconds = (performance.now() - startedAt) / 1000;
    this.ticks.push({ seconds, workers: family.length, wanted, busyOthers });
    if (workers.length < wanted && roomVms >= SPARE_VMS + 1 && !this.#isForking) {
      this.#isForking = true;
      this.#program.stdin.write('fork\n');
    }
    const running = workers.filter(({ state }) => state === 'running');
    const tooMany = Math.max(0, workers.length - Math.max(0, wanted));
    for (const { id } of tooMany > 0 ? running.slice(-tooMany) : []) {
      const gone = this.#giveBack(id).catch(() => {});
      this.#going.set(id, gone);
    }
  }

  /** Asks the worker to hand over; what it hands over the parent gets from its `join`. */
  async #giveBack(id: string): Promise<void> {
    const worker = await this.#host.vm(id);
    try {
      // A clone's processes have the numbers that they had in the parent.
      await worker.exec(`kill -TERM ${this.#program.pid}`).catch(() => {});
      await worker.wait({ timeoutMs: HAND_OVER_TIMEOUT_MS });
    } finally {
      await worker[Symbol.asyncDispose]();
    }
  }

  async #roomVms(): Promise<number> {
    const { memory } = await this.#host.stats();
    return memory.roomBytes / this.#vm.initialInfo.machine.memoryBytes;
  }

  /** How many VMs of others take processor time. */
  async #busyOthers(): Promise<number> {
    const others = (await this.#host.vms()).filter(({ family }) => family !== this.#vm.id);
    const cpuMs = new Map<string, number>();
    for (const { id } of others) {
      const stats = await this.#host
        .vm(id)
        .then((vm) => vm.stats())
        .catch(() => undefined);
      if (stats !== undefined) cpuMs.set(id, stats.cpuMs);
    }
    const now = performance.now();
    const busyMs = (now - this.#lookedAt) * BUSY_SHARE;
    const isBusy = ([id, ms]: [string, number]) => ms - (this.#cpuMs.get(id) ?? ms) > busyMs;
    const busy = [...cpuMs].filter(isBusy).length;
    this.#cpuMs = cpuMs;
    this.#lookedAt = now;
    return busy;
  }
}

/** Whether each number was counted once, and the sum is what it must be. */
function verified({ done, left, ...workers }: Result) {
  const ranges = [...done, ...left].sort((a, b) => a.from - b.from);
  const numbers = ranges.at(-1)!.to - 1;
  const isGapless = ranges.every(({ from }, index) => from === (ranges[index - 1]?.to ?? 1));
  const sum = done.reduce((total, range) => total + range.sum, 0);
  const expected = done.reduce(
    (total, { from, to }) => total + divisorsUpTo(to - 1) - divisorsUpTo(from - 1),
    0,
  );
  const undone = left.reduce((total, { from, to }) => total + to - from, 0);
  return { numbers, undone, sum, expected, isGapless, ...workers };
}

/** The sum of all divisors of the numbers from 1 to n, by runs of equal quotients. */
function divisorsUpTo(n: number): number {
  let sum = 0;
  for (let first = 1, last: number; first <= n; first = last + 1) {
    const quotient = Math.floor(n / first);
    last = Math.floor(n / quotient);
    sum += (quotient * ((first + last) * (last - first + 1))) / 2;
  }
  return sum;
}

function told({ ticks, ...report }: ReturnType<typeof verified> & { ticks: Tick[] }): string {
  const lines = ['  seconds  workers  wanted  busy VMs of others'];
  for (const [index, { seconds, workers, wanted, busyOthers }] of ticks.entries()) {
    if (ticks[index - 1]?.workers === workers) continue;
    lines.push(
      `${seconds.toFixed(1).padStart(9)}  ${String(workers).padStart(7)}  ${String(wanted).padStart(6)}  ${busyOthers}`,
    );
  }
  const { numbers, undone, sum, expected, isGapless, handedOver, lost } = report;
  lines.push('', `workers that handed over: ${handedOver}; lost, their work done again: ${lost}`);
  lines.push(
    `${numbers} numbers, ${undone} of them not done; each counted once: ${isGapless ? 'yes' : 'NO'}`,
  );
  lines.push(
    `the sum of their divisors: ${sum}, as it must be: ${sum === expected ? 'yes' : `NO, ${expected}`}`,
  );
  return `${lines.join('\n')}\n`;
}

if (process.argv[2] === 'compute') await compute(Number(process.argv[3]), Number(process.argv[4]));
else await main();
