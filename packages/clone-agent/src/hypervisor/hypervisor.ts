// This host's way to a QEMU: which binary, which accelerator, and the warm pool. It knows a
// snapshot's machine and where its objects are mounted, and nothing of forks. Called by the agent.

import { setMaxListeners } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import {
  type Accelerator,
  type HostInfo,
  type HostStats,
  type Machine,
  SnowforkError,
} from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import type { PreparedImage } from '../image/index.js';
import type { Settings } from '../settings.js';
import type { ProcessJournal } from '../store/processes.js';
import { ramObject, type Snapshot, type SnapshotStore } from '../store/snapshots.js';
import type { StateFolder } from '../store/state-folder.js';
import { ignoreHugePageAdvice } from '../system/seccomp.js';
import { type BootSource, defaultCpuModel, type MachineShape } from './arguments.js';
import { Confinement, type ConfinementFacts } from './confinement.js';
import { locateQemu, type QemuBinary } from './locate.js';
import { WarmPool } from './pool.js';
import { AcceleratorProbe } from './probe.js';
import { QemuProcess } from './qemu.js';

export interface HypervisorOptions {
  readonly state: StateFolder;
  readonly log: Logger;
  readonly environment: NodeJS.ProcessEnv;
  readonly settings: Settings;
  readonly journal: ProcessJournal;
}

/** For `sf doctor`. */
export interface QemuFacts {
  readonly path: string;
  readonly version: string;
  readonly accelerator: Accelerator;
  /** How that was found out. */
  readonly reason: string;
  /** Whether QEMU's RAM is read ahead of what is touched, as no filter could be set. */
  readonly readsAhead: boolean;
}

export class Hypervisor {
  readonly #options: HypervisorOptions;
  readonly #binary: QemuBinary;
  readonly #pool: WarmPool<QemuProcess>;
  readonly #probe: AcceleratorProbe;
  readonly #confinement: Confinement;
  readonly #stopped = new AbortController();
  /** Folders of the QEMUs of this agent. */
  readonly #used = new Set<string>();
  readonly #releasing = new Set<Promise<void>>();
  #nextFolder = 1;

  /** @throws SnowforkError SF_QEMU_MISSING, SF_QEMU_FAILED when a forced accelerator does not run. */
  static async start(options: HypervisorOptions): Promise<Hypervisor> {
    const binary = await locateQemu(options.environment);
    if (!ignoreHugePageAdvice()) {
      options.log.warn(
        'no seccomp filter here: the kernel will read ahead where QEMU asks for huge pages',
      );
    }
    const probe = await AcceleratorProbe.start({
      binary,
      cacheFolder: options.state.cache,
      forced: options.settings.accelerator,
    });
    const confinement = await Confinement.start(options);
    return new Hypervisor(options, { binary, probe, confinement });
  }

  private constructor(
    options: HypervisorOptions,
    parts: { binary: QemuBinary; probe: AcceleratorProbe; confinement: Confinement },
  ) {
    this.#options = options;
    this.#binary = parts.binary;
    this.#probe = parts.probe;
    this.#confinement = parts.confinement;
    // Every QEMU that starts listens to it.
    setMaxListeners(0, this.#stopped.signal);
    this.#pool = new WarmPool({
      size: options.settings.warmPoolSize,
      start: (shape, how) => this.#start(shape, how),
      onError: (error) => options.log.warn({ err: error }, 'the warm pool could not start a QEMU'),
    });
  }

  info(): HostInfo['qemu'] {
    const { path: file, version } = this.#binary;
    return { path: file, version, accelerator: this.#probe.accelerator };
  }

  facts(): QemuFacts {
    const { path: file, version } = this.#binary;
    return { path: file, version, ...this.#probe.choice, readsAhead: !ignoreHugePageAdvice() };
  }

  confinement(): ConfinementFacts {
    return this.#confinement.facts;
  }

  poolStats(): HostStats['pool'] {
    return this.#pool.stats();
  }

  /** A QEMU with the snapshot's RAM, which may still be pending; warm if one is at hand. */
  async take(
    snapshot: Snapshot,
    store: SnapshotStore,
  ): Promise<{ qemu: QemuProcess; warm: boolean }> {
    this.#assertRunsHere(snapshot);
    const shape = this.#shape(snapshot.file.machine, store.diskPath(snapshot));
    this.#pool.want(shape);
    const taken = await this.#pool.take(shape, this.#stopped.signal);
    await this.#attach(taken.qemu, snapshot, store);
    return taken;
  }

  /** A snapshot is gone, and its disks with it. */
  dropSnapshot(id: string): void {
    this.#pool.dropDisks(path.join(this.#options.state.mount, id));
  }

  /** A QEMU that will boot an image's kernel when it is resumed. */
  async boot(
    snapshot: Snapshot,
    store: SnapshotStore,
    prepared: PreparedImage,
  ): Promise<QemuProcess> {
    const shape = this.#shape(snapshot.file.machine, store.diskPath(snapshot));
    const { kernelPath: kernel, initrdPath: initrd, commandLine } = prepared;
    const qemu = await this.#start(shape, {
      boot: { kernel, initrd, commandLine },
      signal: this.#stopped.signal,
    });
    await this.#attach(qemu, snapshot, store);
    return qemu;
  }

  /**
   * The QEMU of a VM that another agent has started.
   * @throws SnowforkError SF_QEMU_FAILED, SF_TIMEOUT; it was killed then
   */
  async adopt(
    process: { pid: number; startTime: string; folder: string },
    snapshot: Snapshot,
    store: SnapshotStore,
  ): Promise<QemuProcess> {
    const folder = path.join(this.#options.state.vms, process.folder);
    const shape = this.#shape(snapshot.file.machine, store.diskPath(snapshot));
    const qemu = await QemuProcess.adopt({ ...process, folder, shape });
    this.#used.add(folder);
    return this.#watched(qemu);
  }

  /** All are adopted that will be: what is left of the others' QEMUs goes, those were ended. */
  releaseLeftOver(): void {
    for (const name of fs.readdirSync(this.#options.state.vms)) {
      const folder = path.join(this.#options.state.vms, name);
      if (!this.#used.has(folder)) this.#release(folder);
    }
  }

  /** What this host would run the image on. */
  async machineFor(prepared: PreparedImage, cpuModel: string | undefined): Promise<Machine> {
    const { kernelPath: kernel, initrdPath: initrd, kernelRelease, memoryBytes, vcpus } = prepared;
    const accelerator = await this.#probe.decide({ kernel, initrd });
    const qemuVersion = this.#binary.version;
    return {
      qemuVersion,
      machineType: this.#binary.machineType,
      accelerator,
      cpuModel: cpuModel ?? defaultCpuModel({ accelerator, qemuVersion, kernelRelease }),
      memoryBytes,
      vcpus,
    };
  }

  /** Ends what the pool holds and starts nothing more; VMs are their owners' to end. */
  async stop(): Promise<void> {
    this.#stopped.abort(new SnowforkError('SF_ABORTED', 'the agent ends'));
    await this.#pool[Symbol.asyncDispose]();
  }

  /** All VMs have ended too: what confined them goes. */
  async close(): Promise<void> {
    await Promise.all(this.#releasing);
    await this.#confinement.stop();
  }

  /** Keeps the pool from starting QEMUs while a fork needs the processors. Returns the end of that. */
  quiet(): () => void {
    this.#pool.pause();
    return () => this.#pool.resume();
  }

  async #start(
    shape: MachineShape,
    how: { boot?: BootSource; background?: boolean; signal: AbortSignal },
  ): Promise<QemuProcess> {
    const folder = this.#newFolder();
    const name = `snowfork-${path.basename(folder)}`;
    const { journal } = this.#options;
    let pid: number | undefined;
    const qemu = await QemuProcess.start({
      binary: this.#binary,
      shape,
      folder,
      name,
      jail: this.#confinement.prepare(folder, shape),
      ...how,
      spawned: (process) => {
        pid = process;
        journal.add(process);
      },
    }).catch((error: unknown) => {
      if (pid !== undefined) journal.remove(pid);
      this.#release(folder);
      throw error;
    });
    return this.#watched(qemu);
  }

  /** What is of a QEMU's goes with it. */
  #watched(qemu: QemuProcess): QemuProcess {
    void qemu.exited.then(() => {
      this.#options.journal.remove(qemu.pid);
      this.#release(qemu.folder);
    });
    return qemu;
  }

  /** Others may be there already, of QEMUs that were adopted. */
  #newFolder(): string {
    for (;;) {
      const folder = path.join(this.#options.state.vms, String(this.#nextFolder++));
      if (fs.existsSync(folder)) continue;
      fs.mkdirSync(folder, { mode: 0o700 });
      this.#used.add(folder);
      return folder;
    }
  }

  /** The QEMU of this folder has gone. */
  #release(folder: string): void {
    const releasing = this.#confinement.release(folder).catch((error: unknown) => {
      this.#options.log.warn({ folder, err: error }, 'what confined a QEMU was not removed');
    });
    this.#used.delete(folder);
    this.#releasing.add(releasing);
    void releasing.then(() => this.#releasing.delete(releasing));
  }

  async #attach(qemu: QemuProcess, snapshot: Snapshot, store: SnapshotStore): Promise<void> {
    try {
      const { sizeBytes } = ramObject(snapshot);
      await qemu.attachMemory({ path: store.ramPath(snapshot), sizeBytes });
    } catch (error) {
      await qemu.kill();
      throw error;
    }
  }

  #shape(machine: Machine, diskPath: string): MachineShape {
    const { machineType, accelerator, cpuModel, memoryBytes, vcpus } = machine;
    return { machineType, accelerator, cpuModel, memoryBytes, vcpus, diskPath };
  }

  /** Why a machine's snapshots do not run here; empty when they do. */
  incompatible({ qemuVersion, accelerator }: Machine): string[] {
    const reasons: string[] = [];
    if (qemuVersion !== this.#binary.version) {
      reasons.push(`it was made by QEMU ${qemuVersion}, this host has ${this.#binary.version}`);
    }
    if (accelerator !== this.#probe.accelerator) {
      reasons.push(`it runs under ${accelerator}, this host under ${this.#probe.accelerator}`);
    }
    return reasons;
  }

  /** @throws SnowforkError SF_INCOMPATIBLE with the reason. */
  #assertRunsHere({ file: { id, machine } }: Snapshot): void {
    const reasons = this.incompatible(machine);
    if (reasons.length === 0) return;
    const message = `snapshot ${id} does not run here: ${reasons.join('; ')}. Build its image anew`;
    throw new SnowforkError('SF_INCOMPATIBLE', message);
  }
}
