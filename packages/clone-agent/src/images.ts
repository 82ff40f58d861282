// Images: built once from a declared file, booted once, frozen, and from then on a snapshot like any
// other. What an image is made of is `image/`; how it is frozen is the same freeze that every fork
// uses, as the VM being built is a clone of an empty snapshot. Called by the agent.

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { PAGE_BYTES } from '@snowfork/memserver/pages';
import {
  type BuildProgress,
  type BuildRequest,
  type BuildResult,
  type ImageInfo,
  imageSchema,
  type Machine,
  SnowforkError,
} from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { z } from 'zod';
import { type ChannelHandlers, GuestChannel } from './guest/channel.js';
import { withResolvers } from './guest/exec.js';
import type { QemuProcess } from './hypervisor/qemu.js';
import {
  hashImage,
  type ImageSpec,
  type KernelChoice,
  type PreparedImage,
  parseImageFile,
  parseMemory,
  prepareImage,
} from './image/index.js';
import type { OwnObject } from './store/snapshot-file.js';
import type { Snapshot, SnapshotStore } from './store/snapshots.js';
import type { StateFolder } from './store/state-folder.js';
import { untilAborted } from './system/until-aborted.js';
import { freezeVm } from './vms/freeze-vm.js';
import { Vm } from './vms/vm.js';

/** A guest that has not said that it is ready by then does not boot; TCG on a slow host included. */
const BOOT_TIMEOUT_MS = 180_000;
/** How much of the console a failed build shows. */
const CONSOLE_LINES_SHOWN = 30;

/** In the cache folder. */
const WORK_FOLDER_PREFIX = 'build-';

const imageFileSchema = imageSchema.extend({ hash: z.string() });
type ImageFile = z.infer<typeof imageFileSchema>;

export interface ImagesContext {
  readonly state: StateFolder;
  readonly store: SnapshotStore;
  readonly log: Logger;
  /** Folders of this installation that go into guests. */
  readonly guestFolder: string;
  readonly sdkFolder: string;
  /** Of images that name none. */
  readonly guestKernel: KernelChoice | undefined;
  readonly guestTimeoutMs: number;
  /** What this host would run the image on; probes the accelerator with the image's own kernel. */
  machineFor(prepared: PreparedImage, cpuModel: string | undefined): Promise<Machine>;
  /** Starts a QEMU that boots the image with RAM and disk of `snapshot`. */
  bootQemu(snapshot: Snapshot, prepared: PreparedImage): Promise<QemuProcess>;
  availableBytes(): number;
}

export class Images {
  readonly #context: ImagesContext;
  readonly #images = new Map<string, ImageFile>();
  /** What is being built, by name. Settles with the build, and never rejects. */
  readonly #building = new Map<string, Promise<void>>();

  constructor(context: ImagesContext) {
    this.#context = context;
  }

  /** Reads which images there are; returns the snapshots that they name. */
  static namedSnapshots(state: StateFolder): Set<string> {
    return new Set(readImageFiles(state).map((image) => image.snapshot));
  }

  /** What builds left that were cut off with their agent. */
  static removeHalfBuilt(state: StateFolder): void {
    if (!fs.existsSync(state.cache)) return;
    for (const name of fs.readdirSync(state.cache)) {
      if (!name.startsWith(WORK_FOLDER_PREFIX)) continue;
      fs.rmSync(path.join(state.cache, name), { recursive: true, force: true });
    }
  }

  load(): void {
    for (const image of readImageFiles(this.#context.state)) this.#images.set(image.name, image);
  }

  find(name: string): ImageInfo | undefined {
    const image = this.#images.get(name);
    return image === undefined ? undefined : imageSchema.parse(image);
  }

  list(): ImageInfo[] {
    return [...this.#images.values()].map((image) => imageSchema.parse(image));
  }

  /** @throws SnowforkError SF_IMAGE_NOT_FOUND. */
  snapshot(name: string): Snapshot {
    const image = this.#images.get(name);
    if (image !== undefined) return this.#context.store.get(image.snapshot);
    throw new SnowforkError(
      'SF_IMAGE_NOT_FOUND',
      `there is no image ${name}: \`sf image build ${name}\` makes it, \`sf image ls\` lists the others`,
    );
  }

  /** @throws SnowforkError SF_SNAPSHOT_IN_USE, SF_IMAGE_NOT_FOUND. */
  remove(name: string): void {
    this.#context.store.release(this.snapshot(name));
    fs.rmSync(this.#fileOf(name), { force: true });
    this.#images.delete(name);
  }

  /**
   * Builds an image, or finds it unchanged. Until the last moment nothing of it is to be seen: one
   * that is interrupted leaves the older image of that name as it was. Builds of one name come one
   * after another: whoever asks for what is being built has it unchanged then.
   * @throws SnowforkError SF_BAD_REQUEST, SF_IMAGE_BUILD_FAILED, SF_ABORTED.
   */
  async build(
    request: BuildRequest,
    onProgress: (progress: BuildProgress) => void,
    signal: AbortSignal,
  ): Promise<BuildResult> {
    const { name } = request;
    const startedAt = performance.now();
    const progress = (step: string, message: string) =>
      onProgress({ step, message, elapsedMs: performance.now() - startedAt });
    for (let other = this.#building.get(name); other; other = this.#building.get(name)) {
      progress('wait', `image ${name} is being built for somebody else: waiting for that`);
      await untilAborted(other, signal);
    }
    const over = withResolvers<void>();
    this.#building.set(name, over.promise);
    try {
      return await this.#build(request, progress, signal);
    } finally {
      this.#building.delete(name);
      over.resolve();
    }
  }

  async #build(
    request: BuildRequest,
    progress: (step: string, message: string) => void,
    signal: AbortSignal,
  ): Promise<BuildResult> {
    const { name } = request;
    const { state, guestFolder, sdkFolder } = this.#context;
    const declared = await parseImageFile(request.file);
    const memoryBytes =
      request.memory === undefined ? declared.memoryBytes : parseMemory(request.memory);
    const kernel = declared.kernel ?? this.#context.guestKernel;
    const spec = { ...declared, memoryBytes, kernel };
    const hash = await hashImage(spec, { guestFolder, sdkFolder });
    const old = this.#images.get(name);
    if (old?.hash === hash && request.force !== true) {
      return { image: imageSchema.parse(old), unchanged: true };
    }
    const workFolder = fs.mkdtempSync(path.join(state.cache, `${WORK_FOLDER_PREFIX}${name}-`));
    try {
      const prepared = await prepareImage({
        spec,
        cacheFolder: state.cache,
        workFolder,
        guestFolder,
        sdkFolder,
        onProgress: progress,
        signal,
      });
      const snapshot = await this.#bootAndFreeze(name, spec, prepared, progress, signal);
      const image = this.#name(name, hash, prepared, snapshot);
      progress('done', `image ${name} is snapshot ${image.snapshot}`);
      return { image: imageSchema.parse(image), unchanged: false };
    } finally {
      fs.rmSync(workFolder, { recursive: true, force: true });
    }
  }

  /** The moment from which the image is there. */
  #name(name: string, hash: string, prepared: PreparedImage, snapshot: Snapshot): ImageFile {
    const old = this.#images.get(name);
    const disk = snapshot.file.objects.find((object) => object.name === 'disk0');
    const image: ImageFile = {
      name,
      snapshot: snapshot.file.id,
      builtAt: Date.now(),
      kernel: prepared.kernelRelease,
      machine: snapshot.file.machine,
      storedBytes: snapshot.file.layerBytes + (disk?.sizeBytes ?? 0),
      hash,
    };
    fs.writeFileSync(`${this.#fileOf(name)}.new`, JSON.stringify(image, undefined, 2));
    fs.renameSync(`${this.#fileOf(name)}.new`, this.#fileOf(name));
    this.#images.set(name, image);
    if (old !== undefined) this.#retire(old.snapshot);
    return image;
  }

  /** VMs of the older image go on; its snapshot goes with the last of them. */
  #retire(id: string): void {
    const { store } = this.#context;
    const snapshot = store.get(id);
    snapshot.file.kept = false;
    store.collect(snapshot);
  }

  async #bootAndFreeze(
    name: string,
    spec: ImageSpec,
    prepared: PreparedImage,
    progress: (step: string, message: string) => void,
    signal: AbortSignal,
  ): Promise<Snapshot> {
    const { store } = this.#context;
    const machine = await this.#context.machineFor(prepared, spec.cpu);
    const disk = store.addWholeObject('disk0', prepared.diskPath);
    const empty = await this.#emptySnapshot(machine, disk);
    const frozen = store.begin({
      machine,
      image: name,
      kept: true,
      persistent: true,
      objects: [{ ...ramOf(machine), layers: [] }, disk],
    });
    progress('boot', `booting once (${machine.accelerator}, ${machine.memoryBytes >> 20} MiB)`);
    let vm: Vm | undefined;
    try {
      const qemu = await this.#context.bootQemu(empty, prepared);
      vm = new Vm(`build-${name}`, { image: name }, empty, qemu, { ended() {} });
      await this.#boot(vm, spec, progress, signal);
      progress('freeze', 'freezing');
      await vm.guest().observeClock(signal);
      await freezeVm(vm, frozen, {
        store,
        log: this.#context.log,
        forkId: `image-${name}`,
        caller: undefined,
        parentAnswer: undefined,
        signal,
        save: () => {},
        availableBytes: () => this.#context.availableBytes(),
        leaveOutFreePages: true,
        trackWrites: false, // it is frozen once
      });
      return frozen;
    } catch (error) {
      store.abandon(frozen);
      throw buildFailure(error, vm);
    } finally {
      vm?.finish({ how: 'killed', reason: 'its image is built' });
      vm?.newest.holders.clear();
      store.collect(empty);
    }
  }

  /** Under the first layer lies nothing: zeros. */
  async #emptySnapshot(machine: Machine, disk: OwnObject): Promise<Snapshot> {
    const { store } = this.#context;
    const ram = ramOf(machine);
    const empty = store.begin({ machine, kept: false, persistent: false, objects: [ram, disk] });
    const totalPages = machine.memoryBytes / PAGE_BYTES;
    const none = {
      privatePages: 0,
      freePages: 0,
      zeroPages: 0,
      referencedPages: 0,
      storedPages: 0,
    };
    await store.complete(empty, {
      map: { entries: new Uint16Array(totalPages), layerCount: 0 },
      layers: [],
      pages: { totalPages, ...none },
      layerBytes: 0,
      deviceStateBytes: 0,
      guest: { pending: [] },
      like: [],
    });
    return empty;
  }

  /** Until the guest says that it is ready, and has run what the file wants run. */
  async #boot(
    vm: Vm,
    spec: ImageSpec,
    progress: (step: string, message: string) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const ready = withResolvers<void>();
    const handlers: ChannelHandlers = {
      hello: () => ready.resolve(),
      request: () => {},
      closed: () => {},
      log: (bytes) => vm.logs.push(bytes),
      lost: (reason) => ready.reject(new SnowforkError('SF_GUEST_NOT_READY', reason)),
    };
    vm.channel = await GuestChannel.connect(vm.qemu.files.port, handlers, {
      frozen: false,
      timeoutMs: this.#context.guestTimeoutMs,
    });
    await vm.openConsole();
    // The machine's clock begins with its boot.
    vm.channel.clock.start(await vm.qemu.resume(), { virtualMs: 0 });
    const over = new AbortController();
    const deadline = AbortSignal.any([signal, over.signal]);
    try {
      await Promise.race([
        ready.promise,
        vm.ended.then(() => vm.assertAlive()),
        delay(BOOT_TIMEOUT_MS, undefined, { signal: deadline }).then(() => {
          throw new SnowforkError(
            'SF_TIMEOUT',
            `the guest was not ready within ${BOOT_TIMEOUT_MS} ms`,
          );
        }),
      ]);
    } finally {
      over.abort();
    }
    vm.hasStarted();
    for (const command of spec.warm) {
      progress('warm', command);
      await runInGuest(vm, command, signal);
    }
  }

  #fileOf(name: string): string {
    return path.join(this.#context.state.images, `${name}.json`);
  }
}

function ramOf(machine: Machine): OwnObject {
  return { name: 'ram', sizeBytes: machine.memoryBytes, map: 'ram.map', layers: [] };
}

function readImageFiles(state: StateFolder): ImageFile[] {
  const files = fs.readdirSync(state.images).filter((file) => file.endsWith('.json'));
  return files.map((file) =>
    imageFileSchema.parse(JSON.parse(fs.readFileSync(path.join(state.images, file), 'utf8'))),
  );
}

async function runInGuest(vm: Vm, command: string, signal: AbortSignal): Promise<void> {
  const exec = await vm.guest().exec({ command: ['/bin/sh', '-c', command] }, signal);
  let output = '';
  for await (const event of exec.events()) {
    if (event.kind !== 'exit') {
      output = (output + event.bytes.toString('utf8')).slice(-4096);
    } else if (event.exit.code !== 0) {
      const how = event.exit.code ?? `signal ${event.exit.signal}`;
      throw new SnowforkError(
        'SF_IMAGE_BUILD_FAILED',
        `warm: ${command} failed (${how})\n${output}`,
      );
    }
  }
}

/** What went wrong, with the end of the guest's console. */
function buildFailure(error: unknown, vm: Vm | undefined): SnowforkError {
  const cause = SnowforkError.from(error);
  if (cause.code === 'SF_ABORTED' || vm === undefined) return cause;
  const lines = vm.console.history.toString('utf8').split('\n').slice(-CONSOLE_LINES_SHOWN);
  return new SnowforkError(
    'SF_IMAGE_BUILD_FAILED',
    `step boot: ${cause.message}\nThe end of the guest's console:\n${lines.join('\n')}`,
    { cause, details: { step: 'boot' } },
  );
}
