// A QEMU of a certain version beside the one that is installed: the host's own where that fits, else
// Debian's packages, unpacked into a folder. Installs nothing. Called by `main.ts`.

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { locateQemu, QEMU_PROGRAM } from '../../packages/clone-agent/src/hypervisor/locate.js';
import { openApt, updateLists } from '../../packages/clone-agent/src/image/apt.js';
import { run } from '../../packages/clone-agent/src/image/run.js';

const PACKAGE = 'qemu-system-x86';
/** What the host has installed counts as there: its libraries are used. */
const STATUS_OF_HOST = '/var/lib/dpkg/status';
const LIBRARY_FOLDERS = ['usr/lib/x86_64-linux-gnu', 'lib/x86_64-linux-gnu'];

export interface QemuWanted {
  /** As `10.0`. */
  readonly version: string;
  /** Where Debian has it. */
  readonly suites: readonly string[];
}

/** The folder that goes to the front of PATH: it has the program and nothing else. */
export interface QemuFound {
  readonly folder: string;
  /** As `10.0.2`. */
  readonly version: string;
}

export async function findQemu(
  wanted: QemuWanted,
  stateFolder: string,
  say: (words: string) => void,
): Promise<QemuFound> {
  const installed = await locateQemu({ PATH: process.env.PATH }).catch(() => undefined);
  const fits = (version: string) => version.startsWith(`${wanted.version}.`);
  if (installed !== undefined && fits(installed.version)) {
    return { folder: path.dirname(installed.path), version: installed.version };
  }
  const folder = path.join(stateFolder, `qemu-${wanted.version}`);
  if (!fs.existsSync(folder)) await unpack(wanted, folder, stateFolder, say);
  const bin = path.join(folder, 'bin');
  const { version } = await locateQemu({ PATH: bin });
  if (fits(version)) return { folder: bin, version };
  throw new Error(`${wanted.suites.join(', ')} has QEMU ${version}, not ${wanted.version}`);
}

async function unpack(
  { version, suites }: QemuWanted,
  folder: string,
  stateFolder: string,
  say: (words: string) => void,
): Promise<void> {
  say(`fetching QEMU ${version}`);
  const signal = new AbortController().signal;
  const context = { step: `QEMU ${version}`, signal, onProgress: () => {} };
  const building = `${folder}.new`;
  fs.rmSync(building, { recursive: true, force: true });
  // Open to all: QEMU may run as a user of its own.
  fs.mkdirSync(path.join(building, 'bin'), { recursive: true, mode: 0o755 });
  const folders = { cacheFolder: stateFolder, workFolder: path.join(building, 'work') };
  const apt = await openApt(suites, folders, context);
  await updateLists(apt, context, { always: true });
  const archives = path.join(building, 'archives');
  fs.mkdirSync(path.join(archives, 'partial'), { recursive: true });
  await run(
    'apt-get',
    [
      ...apt.options,
      ...['-o', `Dir::State::status=${STATUS_OF_HOST}`, '-o', `Dir::Cache::archives=${archives}`],
      ...['-o', 'Debug::NoLocking=1', '--yes', '--download-only', '--no-install-recommends'],
      ...['--target-release', suites.at(-1)!, 'install', PACKAGE],
    ],
    context,
  );
  const packages = fs.readdirSync(archives).filter((name) => name.endsWith('.deb'));
  for (const name of packages) {
    await run('dpkg-deb', ['-x', path.join(archives, name), building], context);
  }
  for (const left of ['work', 'archives']) {
    fs.rmSync(path.join(building, left), { recursive: true, force: true });
  }
  writeWrapper(building, folder);
  fs.renameSync(building, folder);
}

/**
 * QEMU finds firmware and modules beside itself; libraries that came with it have to be named.
 * The wrapper becomes QEMU (`exec`), so that its process id is QEMU's.
 */
function writeWrapper(building: string, folder: string): void {
  const libraries = LIBRARY_FOLDERS.filter((name) => fs.existsSync(path.join(building, name)));
  const search = libraries.map((name) => path.join(folder, name)).join(':');
  const program = path.join(folder, 'usr/bin', QEMU_PROGRAM);
  const wrapper = path.join(building, 'bin', QEMU_PROGRAM);
  const lines = ['#!/bin/sh', `LD_LIBRARY_PATH='${search}' exec '${program}' "$@"`];
  fs.writeFileSync(wrapper, `${lines.join('\n')}\n`, { mode: 0o755 });
  // Fails here, with the reason, where a library is missing.
  const modules = path.join(building, 'usr/bin', QEMU_PROGRAM);
  execFileSync(modules, ['--version'], {
    env: { LD_LIBRARY_PATH: libraries.map((name) => path.join(building, name)).join(':') },
  });
}
