// One QEMU process: starts it, speaks to it by QMP, ends it, and knows how it ended. It decides
// nothing about snapshots, pages or guests. Called by the warm pool, the starts of clones, the freeze
// and the image builder.
//
// Its life: start (`--preconfig`: no RAM yet) → attachMemory → loadState or, with a boot source,
// resume → pause, saveDeviceState, resume … → quit or kill. One whose agent has died is taken up by
// `adopt`, after it was loaded.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import type net from 'node:net';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError } from '@snowfork/sdk/api';
import type { Moment } from '../guest/clock.js';
import { processStartTime, WatchedProcess } from '../store/processes.js';
import { lowerPriority, restorePriority } from '../system/priority.js';
import {
  type BootSource,
  type FirmwareSource,
  type MachineShape,
  MEMORY_ID,
  type QemuFiles,
  qemuArguments,
  qemuFiles,
} from './arguments.js';
import { DEVICE_STATE_FILE, type Jail } from './confinement.js';
import { abortError, type WaitOptions } from './line-client.js';
import type { QemuBinary } from './locate.js';
import { connectQmp, type Qmp } from './qmp.js';

/** What is kept of QEMU's own words. */
export const WORDS_BYTES_MAX = 8192;
/** From `migrate-incoming` to loaded: it reads a few pages of RAM, perhaps from another host. */
export const LOAD_TIMEOUT_MS = 60_000;
/** One that does not answer by then does not go on: its VM is lost. */
const ADOPT_TIMEOUT_MS = 5_000;
const QUIT_TIMEOUT_MS = 2_000;
/** What it says of a socket with `wait=on`. */
const WAITS = /^.*: info: QEMU waiting for connection on: .*\n/m;
/** A QEMU that closed its monitor is given this long to end, so that its last words can be told. */
const LAST_WORDS_TIMEOUT_MS = 2_000;
/** The descriptor through which QEMU reads its incoming stream. */
const STREAM_DESCRIPTOR = 3;

export interface QemuStartOptions {
  readonly binary: QemuBinary;
  readonly shape: MachineShape;
  /** An existing folder for the sockets; on its file system renames must work (`moveTo`). */
  readonly folder: string;
  readonly name: string;
  /** Without one QEMU runs as the agent does. */
  readonly jail?: Jail | undefined;
  readonly boot?: BootSource | FirmwareSource | undefined;
  /** Called as soon as there is a process: it may outlive an agent that dies while it starts. */
  readonly spawned?: (pid: number) => void;
  /** Nobody waits for it: low priority, until `restorePriority`. */
  readonly background?: boolean;
  readonly signal?: AbortSignal | undefined;
}

/** A QEMU that another agent has started. */
export interface QemuAdoption {
  readonly pid: number;
  readonly startTime: string;
  readonly shape: MachineShape;
  readonly folder: string;
}

export interface QemuExit {
  /** Of an adopted one 0 when its guest ended it; else neither code nor signal can be known. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** The end of what QEMU wrote to stdout and stderr. */
  readonly words: string;
}

/** When things happened, in milliseconds of `performance.now()`. */
export interface LoadTimes {
  readonly loadedAt: number;
  /** Set when the guest was let run. */
  readonly resumed: Moment | undefined;
}

export class QemuProcess {
  readonly pid: number;
  /** With the id it tells the process from any other (`processStartTime`). */
  readonly startTime: string;
  readonly shape: MachineShape;
  /** Resolves when the process has gone; never rejects. */
  readonly exited: Promise<QemuExit>;
  readonly #process: Supervised;
  readonly #ended = new AbortController();
  readonly #jail: Jail | undefined;
  #folder: string;
  #exit: QemuExit | undefined;
  #qmp: Qmp | undefined;

  private constructor(shape: MachineShape, folder: string, process: Supervised, jail?: Jail) {
    this.shape = shape;
    this.#folder = folder;
    this.#jail = jail;
    this.#process = process;
    this.pid = process.pid;
    this.startTime = processStartTime(process.pid) ?? '';
    this.exited = this.#watch();
  }

  /**
   * Resolves when QEMU takes commands; its RAM is not attached yet.
   * @throws SnowforkError SF_QEMU_FAILED with QEMU's words, SF_TIMEOUT, SF_ABORTED
   */
  static async start(options: QemuStartOptions): Promise<QemuProcess> {
    if (options.signal?.aborted) throw abortError(options.signal);
    const { shape, folder, jail, background = false } = options;
    const qemu = new QemuProcess(shape, folder, spawnQemu(options), jail);
    if (qemu.pid !== 0) options.spawned?.(qemu.pid);
    const signals = [qemu.ended, ...(options.signal ? [options.signal] : [])];
    try {
      const limited = qemu.pid === 0 ? undefined : jail?.enter(qemu.pid, background);
      qemu.#qmp = await connectQmp(qemu.files.qmp, { signal: AbortSignal.any(signals) });
      await limited;
      jail?.close();
      return qemu;
    } catch (error) {
      const told = options.signal?.aborted ? error : await qemu.#lastWords(error);
      await qemu.kill();
      throw told;
    }
  }

  /**
   * Takes up a QEMU that runs already; one that has gone is an object whose `exit` is set.
   * @throws SnowforkError SF_QEMU_FAILED, SF_TIMEOUT when its monitor does not answer.
   */
  static async adopt({ pid, startTime, shape, folder }: QemuAdoption): Promise<QemuProcess> {
    const adopted = new WatchedProcess(pid, startTime);
    let wasShutDown = false;
    const exited = adopted.exited.then(() => ({ code: wasShutDown ? 0 : null, signal: null }));
    const kill = () => adopted.kill('SIGKILL');
    const qemu = new QemuProcess(shape, folder, { pid, exited, kill, words: () => '' });
    if (!adopted.isAlive) {
      await qemu.exited;
      return qemu;
    }
    const wait = { signal: qemu.ended, timeoutMs: ADOPT_TIMEOUT_MS };
    try {
      const qmp = await connectQmp(qemu.files.qmp, wait);
      qmp.on('SHUTDOWN', ({ data }) => {
        wasShutDown = data.guest === true;
      });
      qmp.lost.addEventListener('abort', () => adopted.look(), { once: true });
      qemu.#qmp = qmp;
      // As `onDiskError`, while nobody was there to be told.
      if ((await qemu.#status(wait)) === 'io-error') await qemu.kill();
      return qemu;
    } catch (error) {
      await qemu.kill();
      throw error;
    }
  }

  /** Stands for one of which nothing is left. */
  static gone(): QemuProcess {
    const exited = Promise.resolve({ code: null, signal: null });
    const nothing = { pid: 0, exited, kill: () => {}, words: () => '' };
    return new QemuProcess(NO_SHAPE, '', nothing);
  }

  get folder(): string {
    return this.#folder;
  }

  get files(): QemuFiles {
    return qemuFiles(this.#folder);
  }

  /** Aborted, with the error as its reason, when the process has ended. */
  get ended(): AbortSignal {
    return this.#ended.signal;
  }

  get exit(): QemuExit | undefined {
    return this.#exit;
  }

  /** For commands and events that no method here stands for. */
  get qmp(): Qmp {
    if (this.#qmp === undefined) throw new Error('the QEMU was never started');
    return this.#qmp;
  }

  /** A read of its disk has failed: its guest stands still since, and could only fail again. */
  onDiskError(listener: () => void): void {
    this.#qmp?.on('BLOCK_IO_ERROR', listener);
  }

  /** Somebody waits for it now, that was started in the background. */
  foreground(): void {
    restorePriority(this.pid);
    this.#jail?.foreground();
  }

  /** Renames the folder of the sockets; who connects later finds them there. */
  moveTo(folder: string): void {
    fs.renameSync(this.#folder, folder);
    this.#folder = folder;
  }

  /**
   * Maps the file, privately, as the guest's RAM and builds the machine. QEMU reads none of it.
   * All commands leave at once: one round trip.
   */
  async attachMemory(
    memory: { path: string; sizeBytes: number },
    wait?: WaitOptions,
  ): Promise<void> {
    await Promise.all([
      this.execute(
        'object-add',
        {
          'qom-type': 'memory-backend-file',
          id: MEMORY_ID,
          'mem-path': this.#jail?.admit(memory.path) ?? memory.path,
          size: memory.sizeBytes,
          share: false,
          merge: false,
        },
        wait,
      ),
      this.execute(
        'qom-set',
        { path: '/machine', property: 'memory-backend', value: `/objects/${MEMORY_ID}` },
        wait,
      ),
      this.execute('x-exit-preconfig', undefined, wait),
    ]);
  }

  /**
   * Gives a QEMU without a boot source its device state (`synthesiseStream`). With `resume` the guest
   * runs as soon as it is loaded, without a round trip in between.
   * @throws SnowforkError SF_QEMU_FAILED with QEMU's words; QEMU ends when it cannot load
   */
  async loadState(stream: Buffer, options: { resume: boolean } & WaitOptions): Promise<LoadTimes> {
    const wait = { timeoutMs: options.timeoutMs ?? LOAD_TIMEOUT_MS, signal: options.signal };
    const isFinal = (status: unknown) => status === 'completed' || status === 'failed';
    let resumedMs: number | undefined;
    const unsubscribe = this.qmp.on('RESUME', (event) => {
      resumedMs = event.timeMs;
    });
    try {
      this.#process.incoming?.end(stream);
      const [loaded] = await this.#told(
        Promise.all([
          this.qmp.waitEvent('MIGRATION', (event) => isFinal(event.data.status), wait),
          this.execute('migrate-set-capabilities', MIGRATION_EVENTS, wait),
          this.execute('migrate-incoming', { uri: `fd:${STREAM_DESCRIPTOR}` }, wait),
          // Taken while the state loads, it means: run when that is done.
          options.resume ? this.execute('cont', undefined, wait) : undefined,
        ]),
      );
      if (loaded.data.status === 'failed') throw this.#failure('could not load the device state');
      if (resumedMs === undefined) {
        return { loadedAt: sinceStart(loaded.timeMs), resumed: undefined };
      }
      const earliestMs = sinceStart(resumedMs);
      // It is done when the guest was let run; or, when `cont` came late, before that.
      const spanMs = loaded.timeMs - resumedMs;
      const latestMs = spanMs >= 0 ? earliestMs + spanMs : performance.now();
      return { loadedAt: earliestMs, resumed: { earliestMs, latestMs } };
    } finally {
      unsubscribe();
    }
  }

  /**
   * Lets the guest run: after `pause`, or its boot after `attachMemory`.
   * @returns since when it runs
   */
  async resume(wait?: WaitOptions): Promise<Moment> {
    // QEMU tells, lets the guest's clock go on (later, if it loses the processor), and then answers.
    const earliestMs = await this.#executeAndTime('cont', 'RESUME', wait);
    return { earliestMs, latestMs: performance.now() };
  }

  /** @returns since when it stands still */
  async pause(wait?: WaitOptions): Promise<Moment> {
    const earliestMs = performance.now();
    // QEMU stops the guest's clock, waits for its processors, and then tells.
    return { earliestMs, latestMs: await this.#executeAndTime('stop', 'STOP', wait) };
  }

  /** Lets a guest run that stands still in the midst of a freeze whose agent has died. */
  async resumeIfPaused(wait?: WaitOptions): Promise<void> {
    const status = await this.#status(wait);
    if (status === 'running') return;
    if (status !== 'paused') throw this.#failure(`is ${status}`);
    await this.resume(wait);
  }

  async #status(wait?: WaitOptions): Promise<string> {
    const answer = (await this.execute('query-status', undefined, wait)) as { status: string };
    return answer.status;
  }

  /** When the event happened, which QEMU tells before it answers the command. */
  async #executeAndTime(command: string, event: string, wait?: WaitOptions): Promise<number> {
    let happenedAt: number | undefined;
    const unsubscribe = this.qmp.on(event, ({ timeMs }) => {
      happenedAt = sinceStart(timeMs);
    });
    try {
      await this.execute(command, undefined, wait);
    } finally {
      unsubscribe();
    }
    return happenedAt ?? performance.now();
  }

  /**
   * The state of all devices, without RAM; the VM should be paused. Called right after `pause`,
   * without awaiting that, it saves a round trip.
   */
  async saveDeviceState(wait?: WaitOptions): Promise<Buffer> {
    // In its own folder, the only place where it may write. Not live: the default also gives the
    // disks away, which a VM that goes on still needs.
    const filename = DEVICE_STATE_FILE;
    await this.execute('xen-save-devices-state', { filename, live: false }, wait);
    return fs.readFileSync(path.join(this.#folder, filename));
  }

  /** @throws SnowforkError SF_QEMU_FAILED with QEMU's answer, or its last words when it ended */
  execute(
    command: string,
    parameters?: Readonly<Record<string, unknown>>,
    wait?: WaitOptions,
  ): Promise<unknown> {
    return this.#told(this.qmp.execute(command, parameters, wait));
  }

  /** Ends QEMU in order; kills it when that takes too long. */
  async quit(): Promise<QemuExit> {
    await this.qmp.execute('quit', undefined, { timeoutMs: QUIT_TIMEOUT_MS }).catch(() => {});
    await Promise.race([this.exited, delay(QUIT_TIMEOUT_MS, undefined, { ref: false })]);
    return this.kill();
  }

  /** Ends QEMU at once. */
  async kill(): Promise<QemuExit> {
    if (this.#exit === undefined) this.#process.kill();
    return this.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  async #watch(): Promise<QemuExit> {
    const { code, signal, failure } = await this.#process.exited;
    const words = failure?.message ?? this.#process.words();
    this.#exit = { code, signal, words };
    this.#ended.abort(this.#failure(howItEnded(this.#exit), failure));
    this.#qmp?.close();
    return this.#exit;
  }

  #failure(what: string, cause?: unknown): SnowforkError {
    const words = this.#exit?.words ?? this.#process.words();
    const message = words === '' ? `QEMU ${what}` : `QEMU ${what}: ${words}`;
    return new SnowforkError('SF_QEMU_FAILED', message, { cause, details: { pid: this.pid } });
  }

  async #told<T>(answer: Promise<T>): Promise<T> {
    try {
      return await answer;
    } catch (error) {
      throw this.qmp.lost.aborted ? await this.#lastWords(error) : error;
    }
  }

  /** When the connection broke because QEMU ended, the error is QEMU's last words. */
  async #lastWords(error: unknown): Promise<unknown> {
    await Promise.race([this.exited, delay(LAST_WORDS_TIMEOUT_MS, undefined, { ref: false })]);
    return this.ended.aborted ? this.ended.reason : error;
  }
}

const NO_SHAPE: MachineShape = {
  machineType: 'none',
  accelerator: 'tcg',
  cpuModel: '',
  memoryBytes: 0,
  vcpus: 0,
  diskPath: undefined,
};

/** A process of QEMU's, our child or adopted. */
interface Supervised {
  readonly pid: number;
  /** Never rejects. */
  readonly exited: Promise<{
    code: number | null;
    signal: NodeJS.Signals | null;
    failure?: Error | undefined;
  }>;
  kill(): void;
  /** What it has written lately. */
  words(): string;
  /** Of a child, before it has loaded: where it reads its state from. */
  readonly incoming?: net.Socket;
}

function spawnQemu(options: QemuStartOptions): Supervised {
  const { folder, jail } = options;
  const [program, ...parameters] = commandLine(options);
  // A process group of its own: a Ctrl-C meant for the agent must not reach the VMs.
  const child = spawn(program!, parameters, {
    stdio: ['ignore', 'pipe', 'pipe', 'pipe', ...(jail ? [jail.mountDescriptor] : [])],
    detached: true,
    cwd: folder,
  });
  const pid = child.pid ?? 0;
  if (options.background && pid !== 0) lowerPriority(pid);
  let words = Buffer.alloc(0);
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.on('data', (chunk: Buffer) => {
      words = Buffer.concat([words, chunk]).subarray(-WORDS_BYTES_MAX);
    });
  }
  const incoming = child.stdio[STREAM_DESCRIPTOR] as net.Socket;
  // Read, so that its end is noticed; QEMU says nothing here, and errors come by `exited`.
  incoming.on('error', () => {}).resume();
  return {
    pid,
    exited: untilClosed(child),
    kill: () => void child.kill('SIGKILL'),
    words: () => words.toString('utf8').replace(WAITS, '').trim(),
    incoming,
  };
}

async function untilClosed(child: ChildProcess): Promise<Awaited<Supervised['exited']>> {
  let failure: Error | undefined;
  child.once('error', (error) => {
    failure = error;
  });
  try {
    const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
    return { code, signal, failure };
  } catch (error) {
    return { code: null, signal: null, failure: error as Error };
  }
}

function commandLine({ binary, jail, ...options }: QemuStartOptions): string[] {
  const { machineProperties } = binary;
  const { shape, boot } = options;
  const disk = shape.diskPath;
  const parameters = qemuArguments({
    ...options,
    machineProperties,
    shape: { ...shape, diskPath: disk && (jail?.admit(disk) ?? disk) },
    boot: boot && brought(boot, (file) => jail?.bring(file) ?? file),
  });
  return jail?.command(binary.path, parameters) ?? [binary.path, ...parameters];
}

/** The same, from files that QEMU may read. */
function brought(
  boot: BootSource | FirmwareSource,
  bring: (file: string) => string,
): BootSource | FirmwareSource {
  if ('firmware' in boot) return { firmware: bring(boot.firmware) };
  const { kernel, initrd, commandLine } = boot;
  return { kernel: bring(kernel), initrd: initrd && bring(initrd), commandLine };
}

const MIGRATION_EVENTS = { capabilities: [{ capability: 'events', state: true }] };

function howItEnded({ code, signal }: QemuExit): string {
  if (signal !== null) return `was killed by ${signal}`;
  return code === null ? 'has gone' : `ended with code ${code}`;
}

/** QEMU stamps events with the time of day. */
function sinceStart(timeMs: number): number {
  return performance.now() - (Date.now() - timeMs);
}
