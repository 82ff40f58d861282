// The guest's kernel: Debian's cloud flavour unless another is asked for, fetched and unpacked once
// per version into the cache folder. Never builds or configures one; called by `index.ts`.

import fs from 'node:fs/promises';
import path from 'node:path';
import { type Apt, packageField, updateLists } from './apt.js';
import { run, type StepContext, stepFailed } from './run.js';

/** A package without content that depends on the newest kernel. */
export const KERNEL_PACKAGE = 'linux-image-cloud-amd64';

export interface Kernel {
  /** As `uname -r` gives it: `6.1.0-56-cloud-amd64`. */
  readonly release: string;
  /** The bzImage. */
  readonly path: string;
  /** `modules.dep` and the modules. */
  readonly modulesFolder: string;
}

/** Builds going on at the same time share the lists and the kernels: one after the other. */
const turns = new Map<string, Promise<unknown>>();

export interface KernelSource {
  readonly apt: Apt;
  /** One that depends on the newest kernel, or a kernel's own. */
  readonly packageName: string;
  readonly cacheFolder: string;
}

/** The newest kernel of the suite, from the cache if it is there. */
export function prepareKernel(source: KernelSource, context: StepContext): Promise<Kernel> {
  const { cacheFolder } = source;
  const before = turns.get(cacheFolder) ?? Promise.resolve();
  const turn = before.then(() => findOrFetchKernel(source, context));
  // A build that fails does not fail the next.
  turns.set(
    cacheFolder,
    turn.catch(() => undefined),
  );
  return turn;
}

async function findOrFetchKernel(source: KernelSource, context: StepContext): Promise<Kernel> {
  const { apt, cacheFolder } = source;
  const updated = await updateLists(apt, context, { always: false });
  const known = await newestKernel(source, context);
  const cached = await cachedKernel(cacheFolder, known);
  if (cached !== undefined) return cached;
  // Lists of yesterday may name what the archive has replaced since.
  if (!updated) await updateLists(apt, context, { always: true });
  const newest = updated ? known : await newestKernel(source, context);
  await fetchKernel(apt, cacheFolder, newest, context);
  const kernel = await cachedKernel(cacheFolder, newest);
  if (kernel === undefined) throw stepFailed(context, `${newest.package} has no bootable kernel`);
  return kernel;
}

interface KernelVersion {
  readonly package: string;
  readonly version: string;
}

async function newestKernel(
  { apt, packageName }: KernelSource,
  context: StepContext,
): Promise<KernelVersion> {
  const name = isKernel(packageName)
    ? packageName
    : kernelIn(await packageField(apt, packageName, 'Depends', context));
  if (name === undefined) throw stepFailed(context, `${packageName} depends on no kernel`);
  return { package: name, version: await packageField(apt, name, 'Version', context) };
}

/** Whether a package is a kernel itself: they have its release in their name. */
function isKernel(packageName: string): boolean {
  return /^linux-image-\d/.test(packageName);
}

function kernelIn(depends: string): string | undefined {
  return /(?:^|, )(linux-image-\d\S*)/.exec(depends)?.[1];
}

function folderOf(cacheFolder: string, { package: name, version }: KernelVersion): string {
  return path.join(cacheFolder, 'kernels', `${name}_${version.replaceAll(/[^\w.+~-]/g, '_')}`);
}

async function cachedKernel(
  cacheFolder: string,
  version: KernelVersion,
): Promise<Kernel | undefined> {
  const folder = folderOf(cacheFolder, version);
  const release = version.package.slice('linux-image-'.length);
  const image = path.join(folder, 'boot', `vmlinuz-${release}`);
  const modulesFolder = path.join(folder, 'lib/modules', release);
  const found = await Promise.all([exists(image), exists(path.join(modulesFolder, 'modules.dep'))]);
  return found.every(Boolean) ? { release, path: image, modulesFolder } : undefined;
}

async function fetchKernel(
  apt: Apt,
  cacheFolder: string,
  newest: KernelVersion,
  context: StepContext,
): Promise<void> {
  const folder = folderOf(cacheFolder, newest);
  // Renamed when all is there: who looks for it finds a whole kernel or none.
  const building = `${folder}.new`;
  const unpacked = path.join(building, 'unpacked');
  await fs.rm(building, { recursive: true, force: true });
  await fs.mkdir(unpacked, { recursive: true });
  try {
    context.onProgress(context.step, `fetching ${newest.package} ${newest.version}`);
    const wanted = `${newest.package}=${newest.version}`;
    await run('apt-get', [...apt.options, '-q', 'download', wanted], context, { folder: building });
    const archive = (await fs.readdir(building)).find((name) => name.endsWith('.deb'));
    if (archive === undefined) throw stepFailed(context, `apt-get fetched no ${newest.package}`);
    await run('dpkg-deb', ['-x', path.join(building, archive), unpacked], context);
    await keepBootable(unpacked, newest, context);
    await fs.rm(folder, { recursive: true, force: true });
    await fs.rename(unpacked, folder);
  } finally {
    await fs.rm(building, { recursive: true, force: true });
  }
}

async function keepBootable(
  unpacked: string,
  { package: name }: KernelVersion,
  context: StepContext,
): Promise<void> {
  const release = name.slice('linux-image-'.length);
  // Newer packages come with /usr merged.
  if (!(await exists(path.join(unpacked, 'lib/modules')))) {
    await fs.mkdir(path.join(unpacked, 'lib'), { recursive: true });
    await fs.rename(path.join(unpacked, 'usr/lib/modules'), path.join(unpacked, 'lib/modules'));
  }
  // Some suites compress modules, which busybox's insmod can't be relied on to undo.
  const modules = path.join(unpacked, 'lib/modules');
  const decompress = ['-name', '*.ko.xz', '-exec', 'xz', '--decompress', '{}', '+'];
  await run('find', [modules, ...decompress], context);
  await run('depmod', ['--basedir', unpacked, release], context);
  await fs.rm(path.join(unpacked, 'usr'), { recursive: true, force: true });
  await fs.rm(path.join(unpacked, 'boot', `System.map-${release}`), { force: true });
}

function exists(file: string): Promise<boolean> {
  return fs.access(file).then(
    () => true,
    () => false,
  );
}
