// The guest's root file system: Debian packages by mmdebstrap into a folder, the guest side, the
// declared files, the declared commands, and what nobody needs taken out. Called by `index.ts`, one
// function for each step.

import fs from 'node:fs/promises';
import path from 'node:path';
import { hasOneUser } from '../system/rights.js';
import type { Apt } from './apt.js';
import { run, runConfined, type StepContext, stepFailed } from './run.js';
import type { ImageFile, ImageSpec } from './spec.js';

/** What every guest has, whatever is declared: busybox is its init, Perl runs `sf-guestd`. */
const PACKAGES_ALWAYS = ['busybox-static', 'perl-base'];
const GUEST_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
/** What commands that fetch something need of the agent's environment. */
const PROXY_VARIABLES = ['http_proxy', 'https_proxy', 'no_proxy'];
/** Emptied, not removed: some programs expect the folder. */
const FOLDERS_EMPTIED = [
  ...['dev', 'proc', 'sys', 'run', 'tmp', 'boot', 'var/tmp', 'var/log'],
  ...['var/lib/apt/lists', 'var/cache/apt', 'var/cache/debconf', 'var/cache/ldconfig'],
  ...['doc', 'man', 'info', 'locale', 'lintian', 'doc-base'].map((name) => `usr/share/${name}`),
];
/** Debian has commands of its own; these it lacks, or busybox's init alone answers to them. */
const DEBIAN_APPLETS = new Set(
  ['poweroff', 'reboot', 'halt'].concat(['ps', 'free', 'top', 'less', 'vi', 'ping', 'wget']),
);
/** The guest side's files: name in the guest folder, place in the guest. */
export const GUEST_FILES = {
  'sf-guestd': '/usr/lib/snowfork/sf-guestd',
  'sf-guest': '/usr/bin/sf-guest',
  init: '/usr/lib/snowfork/init',
} as const;

/** Installs the packages into `root`, which is made. */
export async function installPackages(
  options: { spec: ImageSpec; apt: Apt; root: string; temporaryFolder: string },
  context: StepContext,
): Promise<void> {
  const { spec, apt, root, temporaryFolder } = options;
  await fs.mkdir(temporaryFolder, { recursive: true });
  const packages = [...new Set([...PACKAGES_ALWAYS, ...spec.packages])];
  context.onProgress(context.step, `installing ${packages.join(', ')}`);
  const parameters = [
    '--mode=root',
    // extract: only the packages named and what they depend on, their scripts not run.
    `--variant=${spec.system === 'busybox' ? 'extract' : 'minbase'}`,
    '--format=directory',
    `--include=${packages.join(',')}`,
    '--aptopt=Acquire::Languages "none"',
    '--aptopt=APT::Sandbox::User "root"',
    ...(hasOneUser() ? optionsOfOneUser(spec) : []),
    spec.base,
    root,
    ...apt.sourceFiles,
  ];
  await runConfined(['mmdebstrap', ...parameters], context, {
    environment: { TMPDIR: temporaryFolder },
    onLine: (line) => {
      if (line.startsWith('I: ') && !line.startsWith('I: skipping '))
        context.onProgress(context.step, line.slice(3));
    },
  });
  // Settings of the build that mmdebstrap leaves.
  await fs.rm(path.join(root, 'etc/apt/apt.conf.d/99mmdebstrap'), { force: true });
}

/**
 * What an ordinary user may not mount: a devpts with other owners, sysfs. Of the devices those that
 * packages' scripts use are the host's; `one-owner.pl` does the same for later commands.
 */
function optionsOfOneUser({ system }: ImageSpec): string[] {
  const skipped = ['--skip=chroot/mount/dev', '--skip=chroot/mount/sys'];
  if (system === 'busybox') return skipped; // nothing runs in it
  const lend = 'touch "$1/dev/$d" && mount --bind "/dev/$d" "$1/dev/$d" || exit 1';
  const devices = 'null zero full random urandom tty';
  return [...skipped, `--extract-hook=for d in ${devices}; do ${lend}; done`];
}

/** Puts busybox's commands where there are none, the guest side, and the files that name things. */
export async function installGuestSide(
  options: { spec: ImageSpec; root: string; guestFolder: string },
  context: StepContext,
): Promise<void> {
  const { spec, root, guestFolder } = options;
  context.onProgress(context.step, 'installing the guest side');
  await linkApplets(spec, root, context);
  for (const [name, target] of Object.entries(GUEST_FILES)) {
    const source = path.join(guestFolder, name);
    await putFile(root, { target, source, mode: 0o755 }, context);
  }
  for (const name of [
    'proc',
    'sys',
    'dev',
    'run',
    'tmp',
    'root',
    'etc',
    'var/log',
    'mnt',
    'home',
  ]) {
    await fs.mkdir(path.join(root, name), { recursive: true });
  }
  await fs.chmod(path.join(root, 'tmp'), 0o1777);
  await writeUnlessThere(root, '/etc/passwd', 'root:x:0:0:root:/root:/bin/sh\n');
  await writeUnlessThere(root, '/etc/group', 'root:x:0:\n');
}

/** Copies the declared files. */
export async function copyFiles(
  spec: ImageSpec,
  root: string,
  context: StepContext,
): Promise<void> {
  for (const file of spec.files) {
    context.onProgress(context.step, file.target);
    await putFile(root, file, context);
  }
}

/** Runs the declared commands; the first that fails ends the build. */
export async function runCommands(
  spec: ImageSpec,
  root: string,
  context: StepContext,
): Promise<void> {
  for (const command of spec.commands) {
    context.onProgress(context.step, command);
    await runInRoot(root, ['/bin/sh', '-ec', command], context, `the command "${command}"`);
  }
}

/** Runs a program that sees `root` as the file system; with the host's network. */
export async function runInRoot(
  root: string,
  command: readonly [string, ...string[]],
  context: StepContext,
  label: string = command[0],
): Promise<string> {
  const environment: Record<string, string> = {
    PATH: GUEST_PATH,
    HOME: '/root',
    LC_ALL: 'C.UTF-8',
    DEBIAN_FRONTEND: 'noninteractive',
  };
  for (const name of PROXY_VARIABLES.flatMap((variable) => [variable, variable.toUpperCase()])) {
    const value = process.env[name];
    if (value !== undefined) environment[name] = value;
  }
  return await runConfined(command, context, {
    ...{ root, environment, onlyEnvironment: true, label },
    onLine: (line) => context.onProgress(context.step, line),
  });
}

/** Takes out what the build left and what no guest reads; after this `root` is only packed. */
export async function strip(root: string): Promise<void> {
  for (const name of FOLDERS_EMPTIED) {
    const folder = path.join(root, name);
    const entries = await fs.readdir(folder).catch(() => []);
    for (const entry of entries) {
      await fs.rm(path.join(folder, entry), { recursive: true, force: true });
    }
  }
  // mmdebstrap had put the host's here.
  await writeInside(root, '/etc/hostname', 'snowfork\n');
  await writeInside(root, '/etc/hosts', '127.0.0.1 localhost snowfork\n::1 localhost\n');
  await writeInside(root, '/etc/resolv.conf', '');
}

/**
 * The host's path of a path in the guest: links on the way are followed as the guest would, so that
 * `/var/run/x` (`/var/run` leads to `/run`) can't end up in the host's `/run`.
 */
export async function resolveInside(root: string, target: string): Promise<string> {
  const todo = target.split('/').filter(Boolean);
  let resolved: string[] = [];
  for (let links = 0; todo.length > 0; ) {
    const step = todo.shift()!;
    if (step === '.') continue;
    if (step === '..') {
      resolved = resolved.slice(0, -1);
      continue;
    }
    const host = path.join(root, ...resolved, step);
    const link = await fs.readlink(host).catch(() => undefined);
    if (link === undefined) {
      resolved.push(step);
      continue;
    }
    links += 1;
    if (links > LINKS_MAX) throw new Error(`too many links on the way to ${target}`);
    if (link.startsWith('/')) resolved = [];
    todo.unshift(...link.split('/').filter(Boolean));
  }
  return path.join(root, ...resolved);
}

/** As the kernel's. */
const LINKS_MAX = 40;

async function linkApplets(spec: ImageSpec, root: string, context: StepContext): Promise<void> {
  const busybox = await resolveInside(root, '/bin/busybox');
  const applets = (await run(busybox, ['--list-full'], context)).split('\n').filter(Boolean);
  for (const applet of applets) {
    const name = path.basename(applet);
    if (spec.system === 'debian' && !DEBIAN_APPLETS.has(name)) continue;
    const link = path.join(await resolveInside(root, path.dirname(applet)), name);
    await fs.mkdir(path.dirname(link), { recursive: true });
    await fs.symlink('/bin/busybox', link).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error;
    });
  }
}

async function putFile(root: string, file: ImageFile, context: StepContext): Promise<void> {
  try {
    if ('text' in file) {
      const target = await writeInside(root, file.target, file.text);
      await fs.chmod(target, file.mode);
      return;
    }
    const target = await resolveInside(root, file.target);
    await fs.mkdir(path.dirname(target), { recursive: true });
    const isFolder = (await fs.stat(file.source)).isDirectory();
    await fs.cp(file.source, target, { recursive: isFolder, verbatimSymlinks: true });
    if (!isFolder) await fs.chmod(target, file.mode ?? 0o644);
  } catch (cause) {
    throw stepFailed(context, `${file.target}: ${(cause as Error).message}`, [], cause);
  }
}

async function writeInside(root: string, target: string, text: string): Promise<string> {
  const host = await resolveInside(root, target);
  await fs.mkdir(path.dirname(host), { recursive: true });
  await fs.writeFile(host, text);
  return host;
}

async function writeUnlessThere(root: string, target: string, text: string): Promise<void> {
  const host = await resolveInside(root, target);
  if ((await fs.stat(host).catch(() => undefined)) !== undefined) return;
  await writeInside(root, target, text);
}
