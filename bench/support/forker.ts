// A VM with the program `bench/guest/forker.pl` in it, driven by lines: holds memory, changes it,
// forks. Used by every part that forks from inside.

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { FreezeTimes, Host, Vm, VmInfo } from '@snowfork/sdk';
import { type GuestProcess, SnowforkError } from '@snowfork/sdk';
import { projectFolder } from './bench-host.js';
import { type ProcessorUse, processorUse } from './machine.js';

const PROGRAM = '/root/forker.pl';
const ANSWER_TIMEOUT_MS = 120_000;
const POLL_MS = 50;

/** A clone of a fork that the program made, when its own program had spoken. */
export interface ForkedClone {
  readonly info: VmInfo;
  readonly use: ProcessorUse;
}

export interface ProgramFork {
  readonly clones: readonly ForkedClone[];
  /** What the parent's processor thread used from the call to the program's next request. */
  readonly parentGuestMs: number;
}

/** What a clone said before it ended; milliseconds since the call, by the guests' wall clock. */
export interface SpreadClone {
  /** Its program had asked for something. */
  readonly ranMs: number;
  readonly readMs: number;
  /** Over all pages that it has read. */
  readonly sum: number;
}

export class Forker {
  readonly vm: Vm;
  readonly #host: Host;
  readonly #process: GuestProcess;
  readonly #lines: AsyncIterator<string>;

  private constructor(host: Host, vm: Vm, process: GuestProcess) {
    this.vm = vm;
    this.#host = host;
    this.#process = process;
    this.#lines = lines(process.stdout);
  }

  static async launch(host: Host, image: string): Promise<Forker> {
    return await Forker.start(host, await host.launch(image));
  }

  /** In a VM that is there; it ends with this. */
  static async start(host: Host, vm: Vm): Promise<Forker> {
    const source = path.join(projectFolder, 'bench/guest', path.basename(PROGRAM));
    await vm.writeFile(PROGRAM, fs.readFileSync(source));
    const guestProcess = await vm.spawn(['perl', PROGRAM], { env: { LC_ALL: 'C' } });
    guestProcess.stderr.on('data', (chunk: Buffer) => process.stderr.write(chunk));
    const forker = new Forker(host, vm, guestProcess);
    await forker.#answer();
    return forker;
  }

  /** One command; its answer without the `ok`. */
  async command(line: string): Promise<string> {
    this.#process.stdin.write(`${line}\n`);
    const answer = await this.#answer();
    if (answer.startsWith('ok')) return answer.slice(3);
    throw new Error(`${this.vm.id}: ${line}: ${answer}`);
  }

  /** Forks by the program; resolves when the program of every clone has asked for something. */
  async fork(count: number): Promise<ProgramFork> {
    const parentPid = this.vm.initialInfo.pid!;
    const before = processorUse(parentPid).guestMs;
    const ticket = await this.command(`fork ${count}`);
    const parentGuestMs = processorUse(parentPid).guestMs - before;
    const deadline = performance.now() + ANSWER_TIMEOUT_MS;
    const clones = new Map<string, ForkedClone>();
    while (clones.size < count) {
      await delay(POLL_MS);
      for (const info of await this.#host.vms({ all: true })) {
        if (info.ticket !== ticket || clones.has(info.id)) continue;
        if (info.times?.programMs === undefined) continue;
        clones.set(info.id, { info, use: processorUse(info.pid!) });
      }
      await this.#assertNoneLost(ticket);
      if (performance.now() > deadline) throw new Error(`${clones.size} of ${count} clones spoke`);
    }
    await killAll(this.#host, [...clones.keys()]);
    return { clones: [...clones.values()], parentGuestMs };
  }

  /**
   * Forks by the program, one clone for each of the hosts; resolves when each has read so much of
   * what the program holds, and has ended.
   */
  async spread(hosts: readonly string[], mib: number): Promise<SpreadClone[]> {
    const ticket = await this.command(`spread ${hosts.join(',')} ${mib}`);
    const slots = await this.#host.join(ticket);
    return slots.map((slot) => {
      if (slot.status !== 'exited') throw new Error(`clone ${slot.cloneId} is ${slot.status}`);
      const [ranMs, readMs, sum] = String(slot.value).split(' ').map(Number);
      return { ranMs: ranMs!, readMs: readMs!, sum: sum! };
    });
  }

  /** Of the snapshot that the program's last fork made; it is the VM's newest. */
  async lastFreeze(): Promise<FreezeTimes> {
    const snapshots = (await this.#host.snapshots()).filter(({ vm }) => vm === this.vm.id);
    const newest = snapshots.toSorted((a, b) => a.createdAt - b.createdAt).at(-1);
    if (newest?.freeze === undefined) throw new Error('the fork left no snapshot');
    return newest.freeze;
  }

  /** Ends the program, not its VM. */
  async end(): Promise<void> {
    this.#process.stdin.end();
    this.#process.stdout.resume();
    await this.#process.exit;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.vm[Symbol.asyncDispose]();
    await this.#process[Symbol.asyncDispose]();
  }

  /** Also of those that never became a VM. */
  async #assertNoneLost(ticket: string): Promise<void> {
    const slots = await this.#host.join(ticket, { timeoutMs: 0 });
    const lost = slots.find((slot) => slot.status === 'lost');
    if (lost !== undefined) throw new Error(`clone ${lost.cloneId} was lost: ${lost.reason}`);
  }

  async #answer(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(`the program of ${this.vm.id} ended`);
    return value;
  }
}

export async function killAll(host: Host, ids: readonly string[]): Promise<void> {
  await Promise.all(
    ids.map(async (id) => {
      try {
        await (await host.vm(id)).kill();
      } catch (error) {
        if (!(error instanceof SnowforkError) || error.code !== 'SF_VM_GONE') throw error;
      }
    }),
  );
}

async function* lines(chunks: AsyncIterable<Buffer>): AsyncGenerator<string, void, undefined> {
  let rest = '';
  for await (const chunk of chunks) {
    const parts = (rest + chunk.toString('utf8')).split('\n');
    rest = parts.pop()!;
    yield* parts;
  }
}
