// What an image is made of, before it boots: kernel, initramfs, root file system, command line.
// Called by the agent, which then boots QEMU with it, waits for the guest and freezes it. Never
// starts a VM and never writes outside the work folder and the cache folder.

import fs from 'node:fs/promises';
import path from 'node:path';
import { SnowforkError } from '@snowfork/sdk/api';
import { type Apt, openApt } from './apt.js';
import { writeDisk } from './disk.js';
import { installGuestPython } from './guest-python.js';
import { findGuestSdk, installGuestSdk } from './guest-sdk.js';
import { writeInitramfs } from './initramfs.js';
import { KERNEL_PACKAGE, type Kernel, prepareKernel } from './kernel.js';
import {
  copyFiles,
  installGuestSide,
  installPackages,
  resolveInside,
  runCommands,
  strip,
} from './root.js';
import { aborted, type StepContext, stepFailed } from './run.js';
import { hasNode, hasPython, type ImageSpec } from './spec.js';

export { hashImage } from './hash.js';
export {
  type ImageFile,
  type ImageSpec,
  type KernelChoice,
  kernelSchema,
  parseImageFile,
  parseMemory,
} from './spec.js';

export interface PrepareOptions {
  readonly spec: ImageSpec;
  /** Kernels and lists of packages, shared by all builds; may be deleted between them. */
  readonly cacheFolder: string;
  /** Made anew; removed when the build fails or is given up. On a file system that has devices. */
  readonly workFolder: string;
  /** `packages/clone-agent/guest`. */
  readonly guestFolder: string;
  /** The package `@snowfork/sdk`, compiled. */
  readonly sdkFolder: string;
  readonly onProgress: (step: string, message: string) => void;
  readonly signal: AbortSignal;
}

export interface PreparedImage {
  /** In the cache folder. */
  readonly kernelPath: string;
  readonly kernelRelease: string;
  readonly initrdPath: string;
  /** Squashfs; its size is a multiple of 4,096. The guest's first virtio-blk disk, read-only. */
  readonly diskPath: string;
  readonly commandLine: string;
  readonly memoryBytes: number;
  readonly vcpus: number;
}

/** Steps of a build, as progress and errors name them; `boot` and `freeze` follow in the agent. */
export type PrepareStep =
  | 'kernel'
  | 'packages'
  | 'guest'
  | 'files'
  | 'commands'
  | 'disk'
  | 'initramfs';

/**
 * @throws SnowforkError SF_IMAGE_BUILD_FAILED naming the step with the end of its output,
 * SF_ABORTED, SF_PERMISSION. Then the work folder is gone; the cache folder holds
 * whole things only.
 */
export async function prepareImage(options: PrepareOptions): Promise<PreparedImage> {
  if (process.getuid?.() !== 0) {
    throw new SnowforkError('SF_PERMISSION', 'building an image needs root: mounts and devices');
  }
  await fs.rm(options.workFolder, REMOVAL);
  await fs.mkdir(options.workFolder, { recursive: true, mode: 0o700 });
  try {
    return await prepare(options);
  } catch (error) {
    await fs.rm(options.workFolder, REMOVAL);
    throw error;
  }
}

/** Killed children may still be at their last system call. */
const REMOVAL = { recursive: true, force: true, maxRetries: 10, retryDelay: 50 } as const;

async function prepare(options: PrepareOptions): Promise<PreparedImage> {
  const { spec, workFolder, guestFolder } = options;
  const root = path.join(workFolder, 'root');
  const temporaryFolder = path.join(workFolder, 'tmp');
  const step = <T>(name: PrepareStep, work: (context: StepContext) => Promise<T>): Promise<T> =>
    runStep(options, name, work);

  const apt = await step('kernel', (context) => openApt([spec.base], options, context));
  const kernel = await step('kernel', (context) => findKernel(apt, options, context));
  const sdk = hasNode(spec)
    ? await step('guest', (context) => findGuestSdk(options.sdkFolder, context))
    : undefined;
  await step('packages', (context) =>
    installPackages({ spec, apt, root, temporaryFolder }, context),
  );
  await step('guest', async (context) => {
    await installGuestSide({ spec, root, guestFolder }, context);
    if (sdk !== undefined) await installGuestSdk(sdk, root, context);
    if (hasPython(spec)) await installGuestPython({ root, guestFolder }, context);
  });
  await step('files', (context) => copyFiles(spec, root, context));
  await step('commands', (context) => runCommands(spec, root, context));
  const packed = await pack(step, { kernel, root, workFolder, guestFolder });
  for (const folder of [root, temporaryFolder, apt.sourcesFolder]) await fs.rm(folder, REMOVAL);
  return {
    ...packed,
    kernelPath: kernel.path,
    kernelRelease: kernel.release,
    commandLine: COMMAND_LINE.join(' '),
    memoryBytes: spec.memoryBytes,
    vcpus: spec.vcpus,
  };
}

/** From the image's own suite, or from another that is declared. */
async function findKernel(
  apt: Apt,
  { spec, cacheFolder, workFolder }: PrepareOptions,
  context: StepContext,
): Promise<Kernel> {
  if (spec.kernel === undefined) {
    return await prepareKernel({ apt, packageName: KERNEL_PACKAGE, cacheFolder }, context);
  }
  const { suite, package: packageName } = spec.kernel;
  const folders = { cacheFolder, workFolder: path.join(workFolder, 'kernel') };
  const kernelApt = await openApt([suite], folders, context);
  const kernel = await prepareKernel({ apt: kernelApt, packageName, cacheFolder }, context);
  await fs.rm(folders.workFolder, REMOVAL);
  return kernel;
}

async function pack(
  step: (name: PrepareStep, work: (context: StepContext) => Promise<void>) => Promise<void>,
  from: { kernel: Kernel; root: string; workFolder: string; guestFolder: string },
): Promise<{ initrdPath: string; diskPath: string }> {
  const initrdPath = path.join(from.workFolder, 'initrd.gz');
  const diskPath = path.join(from.workFolder, 'disk.squashfs');
  await step('initramfs', async (context) => {
    const busybox = await resolveInside(from.root, '/bin/busybox');
    await writeInitramfs({ ...from, busybox, file: initrdPath }, context);
  });
  await step('disk', async (context) => {
    await strip(from.root);
    await writeDisk(from.root, diskPath, context);
  });
  return { initrdPath, diskPath };
}

/** Whatever goes wrong in a step is told with the step's name. */
async function runStep<T>(
  options: PrepareOptions,
  step: PrepareStep,
  work: (context: StepContext) => Promise<T>,
): Promise<T> {
  const context = { step, signal: options.signal, onProgress: options.onProgress };
  if (options.signal.aborted) throw aborted(context);
  try {
    return await work(context);
  } catch (error) {
    if (options.signal.aborted) throw aborted(context);
    if (error instanceof SnowforkError) throw error;
    throw stepFailed(context, error instanceof Error ? error.message : String(error), [], error);
  }
}

/** The kernel's options, chosen for guests that are booted once and then cloned while they run. */
const COMMAND_LINE = [
  // The console that `vm.console()` shows; only warnings on it, as each byte leaves the guest.
  'console=ttyS0',
  'quiet',
  // A kernel that panics ends its VM at once (QEMU runs with -no-reboot), which the agent sees.
  'panic=-1',
  // One guest is one domain of trust; the border is the VM. Page table isolation would flush QEMU's
  // translations at each system call.
  'mitigations=off',
  // For the same reason pages are not filled with zeros before something else is read into them:
  // in a clone each page that is written is one more of its own.
  'init_on_alloc=0',
  // Pressure statistics are kept at every switch of tasks: code that each clone would translate anew.
  'psi=0',
  // A VM that was stopped, or whose processor waits for a page, is not locked up.
  'nowatchdog',
  'rcupdate.rcu_cpu_stall_suppress=1',
  // With a processor that other VMs keep busy, comparing timers says nothing: not to find that
  // interrupts do not work (and panic), nor that the TSC is unstable (and use a slow clock
  // instead).
  'no_timer_check',
  'tsc=reliable',
];
