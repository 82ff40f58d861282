// The initramfs: busybox, the kernel modules that reach the disk and the port, and
// `init-initramfs`, which mounts the disk and hands over to the guest's init. Called by
// `index.ts`.

import fs from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import { gzip } from 'node:zlib';
import { type CpioEntry, encodeCpio, FileKind } from './cpio.js';
import type { Kernel } from './kernel.js';
import { moduleName, orderModules } from './modules.js';
import { type StepContext, stepFailed } from './run.js';

/** Without these no guest comes up: its disk, and the port to the agent. */
const MODULES_NEEDED = ['virtio_pci', 'virtio_blk', 'virtio_console', 'squashfs', 'overlay'];
/** Loaded where the kernel has them, as they can't be loaded once the initramfs has gone. */
const MODULES_WANTED = [
  'qemu_fw_cfg', // tells the host where the guest's VMCOREINFO note lies
  'vmgenid', // reseeds the random generator of a clone, from Linux 5.18; not in Debian 12's
  'virtio_rng',
  'virtio_net',
  'af_packet',
];
const FOLDERS = ['bin', 'dev', 'proc', 'sys', 'modules', 'disk', 'memory', 'root'];
const COMPRESSION_LEVEL = 1;

/** Writes the archive to `file`. `busybox` is a statically linked one. */
export async function writeInitramfs(
  options: { kernel: Kernel; busybox: string; guestFolder: string; file: string },
  context: StepContext,
): Promise<void> {
  const { kernel, busybox, guestFolder, file } = options;
  const folder = (name: string): CpioEntry => ({ path: name, mode: FileKind.folder | 0o755 });
  const program = async (name: string, source: string): Promise<CpioEntry> => ({
    path: name,
    mode: FileKind.regular | 0o755,
    data: await fs.readFile(source),
  });
  const modules = await readModules(kernel, context);
  const entries: CpioEntry[] = [
    ...FOLDERS.map(folder),
    // What the kernel opens for init before anything is mounted.
    { path: 'dev/console', mode: FileKind.characterDevice | 0o600, device: { major: 5, minor: 1 } },
    await program('bin/busybox', busybox),
    await program('init', path.join(guestFolder, 'init-initramfs')),
    ...modules,
  ];
  const archive = await promisify(gzip)(encodeCpio(entries), { level: COMPRESSION_LEVEL });
  await fs.writeFile(file, archive);
}

/** Named so that their order by name is the order to load them in: `modules/03-squashfs.ko`. */
async function readModules(kernel: Kernel, context: StepContext): Promise<CpioEntry[]> {
  const read = (name: string) => fs.readFile(path.join(kernel.modulesFolder, name), 'utf8');
  const wanted = [...MODULES_NEEDED, ...MODULES_WANTED];
  const order = orderModules(wanted, await read('modules.dep'), await read('modules.builtin'));
  const lacking = order.missing.filter((name) => MODULES_NEEDED.includes(name));
  if (lacking.length > 0) {
    throw stepFailed(context, `kernel ${kernel.release} has no module ${lacking.join(', ')}`);
  }
  const entries: CpioEntry[] = [];
  for (const [index, module] of order.load.entries()) {
    entries.push({
      path: `modules/${String(index).padStart(2, '0')}-${moduleName(module)}.ko`,
      mode: FileKind.regular | 0o644,
      data: await fs.readFile(path.join(kernel.modulesFolder, module)),
    });
  }
  return entries;
}
