// The paths of the state folder, in one place; `docs/internals/formats.md` says what each is. Makes
// the folders and mounts the tmpfs that layers live on. Knows nothing of what the files hold.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { assertStateFolderLength, SnowforkError } from '@snowfork/sdk/api';

export interface StateFolder {
  readonly root: string;
  readonly agentFile: string;
  readonly socket: string;
  readonly settingsFile: string;
  readonly cache: string;
  readonly images: string;
  readonly imageSnapshots: string;
  readonly imageLayers: string;
  /** The FUSE mount. */
  readonly mount: string;
  /** The tmpfs. */
  readonly run: string;
  readonly runSnapshots: string;
  readonly runLayers: string;
  /** Which user may open which objects of the mount. */
  readonly runOpeners: string;
  readonly vms: string;
  readonly journal: string;
  readonly processes: string;
  readonly pagerSocket: string;
}

export function stateFolder(root: string): StateFolder {
  const at = (...parts: string[]) => path.join(root, ...parts);
  return {
    root,
    agentFile: at('agent.json'),
    socket: at('agent.sock'),
    settingsFile: at('settings.json'),
    cache: at('cache'),
    images: at('images'),
    imageSnapshots: at('snapshots'),
    imageLayers: at('layers'),
    mount: at('mnt'),
    run: at('run'),
    runSnapshots: at('run', 'snapshots'),
    runLayers: at('run', 'layers'),
    runOpeners: at('run', 'openers'),
    vms: at('run', 'vms'),
    journal: at('journal'),
    processes: at('processes'),
    pagerSocket: at('run', 'pager.sock'),
  };
}

/**
 * Makes this process the one agent of the state folder, until it ends, however it ends: the lock is
 * the name of an abstract socket, which the kernel gives back.
 * @throws SnowforkError SF_BAD_REQUEST when another agent has it.
 */
export async function lockStateFolder(state: StateFolder): Promise<void> {
  fs.mkdirSync(state.root, { recursive: true, mode: 0o700 });
  const { dev, ino } = fs.statSync(state.root);
  const server = net.createServer((socket) => socket.destroy());
  server.listen(`\0snowfork-agent-${dev}-${ino}`);
  server.unref();
  try {
    await once(server, 'listening');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw cause;
    const message = `an agent runs already for ${state.root}: \`sf down\` ends it`;
    throw new SnowforkError('SF_BAD_REQUEST', message, { cause, details: { taken: true } });
  }
}

/**
 * Makes what is missing and mounts a fresh tmpfs over `run`.
 * @throws SnowforkError SF_BAD_REQUEST when the path is too long, SF_PERMISSION when mounting fails.
 */
export async function prepareStateFolder(
  state: StateFolder,
  layersBytesMax: number,
): Promise<void> {
  assertStateFolderLength(state.root);
  fs.mkdirSync(state.root, { recursive: true, mode: 0o700 });
  const persistent = [state.cache, state.images, state.imageSnapshots, state.imageLayers];
  for (const folder of [...persistent, state.mount, state.run]) {
    fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
  }
  const options = `size=${layersBytesMax},mode=0700,nosuid,nodev,noexec`;
  await runMount(['-t', 'tmpfs', '-o', options, 'snowfork', state.run], state.run);
  for (const folder of [state.runSnapshots, state.runLayers, state.runOpeners, state.vms]) {
    fs.mkdirSync(folder);
  }
}

async function runMount(args: string[], target: string): Promise<void> {
  const child = spawn('mount', args, { stdio: ['ignore', 'ignore', 'pipe'] });
  let words = '';
  child.stderr.on('data', (chunk) => {
    words += chunk;
  });
  const [code] = await once(child, 'close');
  if (code === 0) return;
  throw new SnowforkError(
    'SF_PERMISSION',
    `mounting ${target} failed (${words.trim()}): run as root, or in a user namespace of your own`,
  );
}

/** Unmounts whatever lies on `target`, however often; a target without a mount is fine. */
export async function unmountAll(target: string): Promise<void> {
  while (isMountPoint(target)) {
    const child = spawn('umount', ['-l', target], { stdio: 'ignore' });
    const [code] = await once(child, 'close');
    if (code !== 0) return;
  }
}

function isMountPoint(target: string): boolean {
  const mounts = fs.readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  return mounts.some((line) => line.split(' ')[4] === target.replaceAll(' ', '\\040'));
}
