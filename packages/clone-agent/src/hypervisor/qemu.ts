// One QEMU process: starts it, speaks to it by QMP, ends it, and knows how it ended. It decides
// nothing about snapshots, pages or guests. Called by the warm pool, the starts of clones, the freeze
// and the image builder.
//
// Its life: start (`--preconfig`: no RAM yet) → attachMemory → loadState or, with a boot source,
// resume → pause, saveDeviceState, resume … → quit or kill.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import type net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError } from '@snowfork/sdk/api';
import { lowerPriority } from '../system/priority.js';
import {
  type BootSource,
  type MachineShape,
  MEMORY_ID,
  type QemuFiles,
  qemuArguments,
  qemuFiles,
} from './arguments.js';
import { abortError, type WaitOptions } from './line-client.js';
import type { QemuBinary } from './locate.js';
import { connectQmp, type Qmp } from './qmp.js';

/** What is kept of QEMU's own words. */
export const WORDS_BYTES_MAX = 8192;
/** From `migrate-incoming` to loaded: it reads a few pages of RAM, perhaps from another host. */
export const LOAD_TIMEOUT_MS = 60_000;
const QUIT_TIMEOUT_MS = 2_000;
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
  readonly boot?: BootSource | undefined;
  /** Nobody waits for it: low priority, until `restorePriority`. */
  readonly background?: boolean;
  readonly signal?: AbortSignal | undefined;
}

export interface QemuExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** The end of what QEMU wrote to stdout and stderr. */
  readonly words: string;
}

/** When things happened, in milliseconds of `performance.now()`. */
export interface LoadTimes {
  readonly loadedAt: number;
  /** Set when the guest was let run. */
  readonly resumedAt: number | undefined;
}

export class QemuProcess {
  readonly pid: number;
  readonly shape: MachineShape;
  /** Resolves when the process has gone; never rejects. */
  readonly exited: Promise<QemuExit>;
  readonly #child: ChildProcess;
  readonly #ended = new AbortController();
  #folder: string;
  #words = Buffer.alloc(0);
  #exit: QemuExit | undefined;
  #qmp: Qmp | undefined;

  private constructor(options: QemuStartOptions) {
    const { binary, shape, folder } = options;
    this.shape = shape;
    this.#folder = folder;
    const { machineProperties } = binary;
    const parameters = qemuArguments({ ...options, machineProperties });
    // A process group of its own: a Ctrl-C meant for the agent must not reach the VMs.
    this.#child = spawn(binary.path, parameters, {
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
      detached: true,
      cwd: '/',
    });
    this.pid = this.#child.pid ?? 0;
    if (options.background && this.pid !== 0) lowerPriority(this.pid);
    for (const stream of [this.#child.stdout!, this.#child.stderr!]) {
      stream.on('data', (chunk: Buffer) => this.#keepWords(chunk));
    }
    // Read, so that its end is noticed; QEMU says nothing here, and errors come by `exited`.
    this.#incoming.on('error', () => {}).resume();
    this.exited = this.#watch();
  }

  /**
   * Resolves when QEMU takes commands; its RAM is not attached yet.
   * @throws SnowforkError SF_QEMU_FAILED with QEMU's words, SF_TIMEOUT, SF_ABORTED
   */
  static async start(options: QemuStartOptions): Promise<QemuProcess> {
    if (options.signal?.aborted) throw abortError(options.signal);
    const qemu = new QemuProcess(options);
    const signals = [qemu.ended, ...(options.signal ? [options.signal] : [])];
    try {
      qemu.#qmp = await connectQmp(qemu.files.qmp, { signal: AbortSignal.any(signals) });
      return qemu;
    } catch (error) {
      const told = options.signal?.aborted ? error : await qemu.#lastWords(error);
      await qemu.kill();
      throw told;
    }
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
          'mem-path': memory.path,
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
    let resumedAt: number | undefined;
    const unsubscribe = this.qmp.on('RESUME', (event) => {
      resumedAt = sinceStart(event.timeMs);
    });
    try {
      this.#incoming.end(stream);
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
      return { loadedAt: resumedAt ?? sinceStart(loaded.timeMs), resumedAt };
    } finally {
      unsubscribe();
    }
  }

  /**
   * Lets the guest run: after `pause`, or its boot after `attachMemory`.
   * @returns since when it runs, by `performance.now()`
   */
  async resume(wait?: WaitOptions): Promise<number> {
    return await this.#executeAndTime('cont', 'RESUME', wait);
  }

  /** @returns since when it stands still, by `performance.now()` */
  async pause(wait?: WaitOptions): Promise<number> {
    const sentAt = performance.now();
    // QEMU stops the guest's clock, waits for its processors, and then tells.
    return (sentAt + (await this.#executeAndTime('stop', 'STOP', wait))) / 2;
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
   * Writes the state of all devices, without RAM, to `file`; the VM should be paused. Called right
   * after `pause`, without awaiting that, it saves a round trip.
   */
  async saveDeviceState(file: string, wait?: WaitOptions): Promise<void> {
    // Not live: the default also gives the disks away, which a VM that goes on still needs.
    await this.execute('xen-save-devices-state', { filename: file, live: false }, wait);
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
    if (this.#exit === undefined) this.#child.kill('SIGKILL');
    return this.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  get #incoming(): net.Socket {
    return this.#child.stdio[STREAM_DESCRIPTOR] as net.Socket;
  }

  async #watch(): Promise<QemuExit> {
    let failure: Error | undefined;
    this.#child.once('error', (error) => {
      failure = error;
    });
    const [code, signal] = (await once(this.#child, 'close').catch((error: Error) => {
      failure = error;
      return [null, null];
    })) as [number | null, NodeJS.Signals | null];
    const words = failure?.message ?? this.#words.toString('utf8').trim();
    this.#exit = { code, signal, words };
    this.#ended.abort(this.#failure(howItEnded(this.#exit), failure));
    this.#qmp?.close();
    return this.#exit;
  }

  #keepWords(chunk: Buffer): void {
    this.#words = Buffer.concat([this.#words, chunk]).subarray(-WORDS_BYTES_MAX);
  }

  #failure(what: string, cause?: unknown): SnowforkError {
    const words = this.#exit?.words ?? this.#words.toString('utf8').trim();
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

const MIGRATION_EVENTS = { capabilities: [{ capability: 'events', state: true }] };

function howItEnded({ code, signal }: QemuExit): string {
  if (signal !== null) return `was killed by ${signal}`;
  return code === null ? 'could not be started' : `ended with code ${code}`;
}

/** QEMU stamps events with the time of day. */
function sinceStart(timeMs: number): number {
  return performance.now() - (Date.now() - timeMs);
}
