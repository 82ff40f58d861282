// Boots something small and looks at what it writes to its serial port: our boot sector, or a kernel.
// Each boot is a QEMU of its own that is killed at the answer, or at the deadline. Called by `probe.ts`.

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Accelerator } from '@snowfork/sdk/api';
import { type BootSource, DEFAULT_CPU_MODEL } from './arguments.js';
import { BOOT_SECTOR_WORDS, probeBootSector } from './boot-sector.js';
import { abortError } from './line-client.js';
import type { QemuBinary } from './locate.js';

const SECTOR_TIMEOUT_MS = 3_000;
const KERNEL_TIMEOUT_MS = 15_000;
/** A kernel that says one of these has come all the way to its first program. */
const KERNEL_WORDS = /as init process|VFS: Unable to mount root/;
const KERNEL_COMMAND_LINE = 'console=ttyS0 panic=-1';
const MEMORY_MIB = 512;
const OUTPUT_BYTES_MAX = 1024 * 1024;
/** The end of a failed boot's output that reasons quote. */
const QUOTE_CHARACTERS = 200;

/** True, or why our boot sector does not run. */
export async function bootsSector(
  binary: QemuBinary,
  accelerator: Accelerator,
  signal?: AbortSignal,
): Promise<true | string> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-probe-'));
  const image = path.join(folder, 'boot-sector');
  try {
    fs.writeFileSync(image, probeBootSector());
    const drive = `driver=raw,node-name=boot,read-only=on,file.driver=file,file.filename=${image}`;
    const disk = ['-blockdev', drive, '-device', 'virtio-blk-pci,drive=boot,bootindex=0'];
    const expected = new RegExp(BOOT_SECTOR_WORDS);
    return await boot(binary, accelerator, disk, expected, SECTOR_TIMEOUT_MS, signal);
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

/** True, or why the kernel does not come to its first program. */
export function bootsKernel(
  binary: QemuBinary,
  accelerator: Accelerator,
  { kernel, initrd }: BootSource,
  signal?: AbortSignal,
): Promise<true | string> {
  const source = ['-kernel', kernel, '-append', KERNEL_COMMAND_LINE];
  if (initrd !== undefined) source.push('-initrd', initrd);
  return boot(binary, accelerator, source, KERNEL_WORDS, KERNEL_TIMEOUT_MS, signal);
}

function boot(
  binary: QemuBinary,
  accelerator: Accelerator,
  source: readonly string[],
  expected: RegExp,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<true | string> {
  const parameters = [
    ...['-machine', `${binary.machineType},graphics=off,usb=off,sata=off,smm=off`],
    ...['-accel', accelerator, '-cpu', DEFAULT_CPU_MODEL, '-m', String(MEMORY_MIB)],
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none'],
    ...['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
    ...source,
  ];
  return new Promise((resolve, reject) => {
    const child = spawn(binary.path, parameters, { stdio: ['ignore', 'pipe', 'pipe'], signal });
    let output = '';
    let answered = false;
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      child.kill('SIGKILL');
    }, timeoutMs);
    const take = (chunk: Buffer) => {
      output = (output + chunk.toString('latin1')).slice(-OUTPUT_BYTES_MAX);
      answered ||= expected.test(output);
      if (answered) child.kill('SIGKILL');
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    child.on('error', (error) => {
      output += error.message;
    });
    child.on('close', () => {
      clearTimeout(timer);
      if (signal?.aborted) reject(abortError(signal));
      else
        resolve(
          answered || failedBoot(late ? `no answer in ${timeoutMs} ms` : 'QEMU ended', output),
        );
    });
  });
}

function failedBoot(what: string, output: string): string {
  const end = output
    .replaceAll(/^.*: warning: .*$/gm, '')
    .replaceAll(/[^\x20-\x7e]+/g, ' ')
    // What is left of a terminal's control sequences.
    .replaceAll(/ \[[?\d;]*[a-zA-Z]/g, ' ')
    .replaceAll(/ +/g, ' ')
    .trim()
    .slice(-QUOTE_CHARACTERS);
  return end === '' ? what : `${what}: ${end}`;
}
