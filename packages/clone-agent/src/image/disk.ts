// The read-only disk of an image: the root file system as a squashfs file. Called by `index.ts`.

import fs from 'node:fs/promises';
import { run, type StepContext, stepFailed } from './run.js';

/** The size of a page: the disk is served page by page. */
const PAGE_BYTES = 4096;
/** All times in the image, so that the same content gives the same file: 2020-01-01 00:00 UTC. */
const TIME_S = 1_577_836_800;
/**
 * Cheap to undo, as under TCG every clone undoes it in translated code. Tried with the image
 * `node` (232 MB): lz4 92 MB and the quickest guest; zstd 68 MB, reading all files takes half as
 * long again; not compressed 223 MB, and slower than lz4, as more blocks are read.
 */
const PACKING = ['-comp', 'lz4', '-Xhc'];

export async function writeDisk(root: string, file: string, context: StepContext): Promise<void> {
  context.onProgress(context.step, 'packing the root file system');
  const times = ['-all-time', String(TIME_S), '-mkfs-time', String(TIME_S)];
  await run('mksquashfs', [root, file, '-noappend', '-no-progress', ...times, ...PACKING], context);
  const { size } = await fs.stat(file);
  if (size % PAGE_BYTES !== 0) throw stepFailed(context, `mksquashfs wrote ${size} bytes`);
}
