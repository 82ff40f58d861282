// The guest's Python module in an image: the files of `snowfork`, put where every Python program of
// the guest finds them. Called by `index.ts` for images with Python, and by `hash.ts`.

import fs from 'node:fs/promises';
import path from 'node:path';
import { runInRoot } from './root.js';
import type { StepContext } from './run.js';

/** In the guest folder. */
const MODULE = 'python/snowfork';
/** Debian's: its modules, and those of packages. */
const LIBRARIES = '/usr/lib/python3*';
const MODULES = '/usr/lib/python3/dist-packages';

/** The module's files, relative to the guest folder: not what Python keeps beside them. */
export async function findGuestPython(guestFolder: string): Promise<string[]> {
  const names = await fs.readdir(path.join(guestFolder, MODULE));
  return names
    .filter((name) => name.endsWith('.py'))
    .sort()
    .map((name) => path.join(MODULE, name));
}

/** Copies it into the root file system, and sees that Python finds it there. */
export async function installGuestPython(
  options: { readonly root: string; readonly guestFolder: string },
  context: StepContext,
): Promise<void> {
  context.onProgress(context.step, 'installing the Python module');
  const { root, guestFolder } = options;
  const target = path.join(root, MODULES, path.basename(MODULE));
  await fs.mkdir(target, { recursive: true });
  for (const file of await findGuestPython(guestFolder)) {
    await fs.copyFile(path.join(guestFolder, file), path.join(target, path.basename(file)));
  }
  // On the disk all files are of one time, so that Python would take what Debian has compiled for
  // out of date, and compile it again in each program's every run.
  const compile = 'python3 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash';
  const steps = `${compile} ${LIBRARIES} && python3 -c 'import snowfork'`;
  await runInRoot(root, ['/bin/sh', '-ec', steps], context, 'python3');
}
