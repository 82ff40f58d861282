// The free pages of a real guest: the walk of its free lists must find what a scan of its whole array of struct pages
// finds, below and above the PCI hole.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  findFreePages,
  INTROSPECTION_PAGES_MAX,
} from '../../packages/clone-agent/src/freeze/free-pages.js';
import {
  GuestMemory,
  type PageSource,
} from '../../packages/clone-agent/src/freeze/guest-memory.js';
import { PageTables } from '../../packages/clone-agent/src/freeze/page-tables.js';
import {
  createTransferBuffer,
  ProcessMemory,
} from '../../packages/clone-agent/src/freeze/process-memory.js';
import {
  findNoteLocation,
  type NoteLocation,
  parseVmcoreinfo,
} from '../../packages/clone-agent/src/freeze/vmcoreinfo.js';
import { defaultCpuModel } from '../../packages/clone-agent/src/hypervisor/arguments.js';
import { locateQemu, type QemuBinary } from '../../packages/clone-agent/src/hypervisor/locate.js';
import { connectQmp, type Qmp } from '../../packages/clone-agent/src/hypervisor/qmp.js';
import {
  kernelSchema,
  type PreparedImage,
  parseImageFile,
  prepareImage,
} from '../../packages/clone-agent/src/image/index.js';

const PAGE = 4096;
const MiB = 2 ** 20;
const BOOT_TIMEOUT_MS = 240_000;
const REPOSITORY = path.resolve(import.meta.dirname, '../..');
const isRoot = process.getuid?.() === 0;

let folder: string;
let image: PreparedImage;
let binary: QemuBinary;
let cpuModel: string;

beforeAll(async () => {
  if (!isRoot) return;
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-free-'));
  const spec = await parseImageFile(path.join(REPOSITORY, 'images/minimal.yaml'));
  const kernel = kernelSchema.optional().parse(process.env.SNOWFORK_GUEST_KERNEL);
  image = await prepareImage({
    spec: { ...spec, kernel },
    cacheFolder: path.join(os.tmpdir(), 'snowfork-test-cache'),
    workFolder: path.join(folder, 'image'),
    guestFolder: path.join(REPOSITORY, 'packages/clone-agent/guest'),
    sdkFolder: path.join(REPOSITORY, 'packages/sdk'),
    onProgress: () => {},
    signal: new AbortController().signal,
  });
  binary = await locateQemu(process.env);
  const { kernelRelease } = image;
  cpuModel = defaultCpuModel({ accelerator: 'tcg', qemuVersion: binary.version, kernelRelease });
});

afterAll(() => {
  if (isRoot) fs.rmSync(folder, { recursive: true, force: true });
});

/** A guest that has said HELLO on its port; its RAM is a file that QEMU maps shared. */
class Guest implements AsyncDisposable {
  readonly memory: ProcessMemory;
  readonly qmp: Qmp;
  readonly #qemu: ChildProcess;
  readonly #folder: string;

  private constructor(qemu: ChildProcess, qmp: Qmp, guestFolder: string) {
    this.#qemu = qemu;
    this.#folder = guestFolder;
    this.qmp = qmp;
    this.memory = new ProcessMemory({ pid: qemu.pid!, path: path.join(guestFolder, 'ram') });
  }

  static async boot(memoryMiB: number): Promise<Guest> {
    const guestFolder = fs.mkdtempSync('/dev/shm/snowfork-free-');
    const at = (name: string): string => path.join(guestFolder, name);
    const ram = `memory-backend-file,id=ram,mem-path=${at('ram')},size=${memoryMiB}M,share=on`;
    const machine = ['-accel', 'tcg', '-cpu', cpuModel];
    machine.push('-machine', 'q35,memory-backend=ram', '-m', String(memoryMiB), '-object', ram);
    const devices = ['-device', 'vmcoreinfo', '-device', 'virtio-serial-pci'];
    devices.push('-chardev', `socket,id=port,path=${at('port')},server=on,wait=off`);
    devices.push('-device', 'virtserialport,chardev=port,name=org.snowfork.0');
    devices.push('-drive', `if=virtio,format=raw,readonly=on,file=${image.diskPath}`);
    const boot = ['-kernel', image.kernelPath, '-initrd', image.initrdPath];
    boot.push('-append', image.commandLine, '-nodefaults', '-display', 'none', '-no-reboot');
    const monitor = ['-qmp', `unix:${at('qmp')},server=on,wait=off`];
    const qemu = spawn(binary.path, [...machine, ...devices, ...boot, ...monitor], {
      stdio: ['ignore', 'inherit', 'inherit'],
    });
    try {
      const qmp = await connectQmp(at('qmp'));
      const port = net.connect(at('port'));
      await once(port, 'data', { signal: AbortSignal.timeout(BOOT_TIMEOUT_MS) });
      port.destroy();
      return new Guest(qemu, qmp, guestFolder);
    } catch (error) {
      qemu.kill('SIGKILL');
      fs.rmSync(guestFolder, { recursive: true, force: true });
      throw error;
    }
  }

  get source(): PageSource {
    const { memory } = this;
    return {
      pages: memory.mapping.pages,
      readPage: (page, target, offset) => memory.readRange(page, 1, target, offset),
    };
  }

  async noteLocation(): Promise<NoteLocation> {
    const filename = path.join(this.#folder, 'state');
    await this.qmp.execute('xen-save-devices-state', { filename, live: false });
    const location = findNoteLocation(fs.readFileSync(filename));
    expect(location).toBeDefined();
    return location!;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#qemu, 'exit');
    this.#qemu.kill('SIGKILL');
    await ended;
    this.memory.close();
    fs.rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** As makedumpfile does it: each struct page of each section, whatever lists there are. */
function scanPageArray(source: PageSource, note: NoteLocation): Uint8Array {
  const arrayPages = Math.ceil((source.pages * 64) / PAGE);
  const memory = new GuestMemory(source, createTransferBuffer(arrayPages + 1024));
  const info = parseVmcoreinfo(memory.read(note.physicalAddress, note.sizeBytes));
  const rootAddress = Number(info.pageTable - 0xffffffff80000000n + info.physicalBase);
  const { pageTableLevels: levels, encryptionMask } = info;
  const tables = new PageTables(memory, { rootAddress, levels, encryptionMask });
  const sectionPages = 2 ** info.sectionPagesLog2;
  const perRoot = PAGE / info.memSectionBytes;
  const isFree = new Uint8Array(source.pages);
  for (let section = 0; section * sectionPages < memory.physicalPagesEnd; section++) {
    const root = tables.read(info.memSection + BigInt(Math.floor(section / perRoot) * 8), 8);
    const entry = root.readBigUInt64LE() + BigInt((section % perRoot) * info.memSectionBytes);
    const map = tables.read(entry, 8).readBigUInt64LE();
    if ((map & 2n) === 0n) continue;
    for (let i = 0; i < sectionPages; i += PAGE / info.pageStructBytes) {
      const first = section * sectionPages + i;
      if (memory.ramPage(first) < 0) continue;
      const address = (map & ~0x3fn) + BigInt(first * info.pageStructBytes);
      const structs = tables.read(address, PAGE);
      for (let at = 0; at < PAGE; at += info.pageStructBytes) {
        if (structs.readInt32LE(at + info.pageMapcountOffset) !== info.buddyMapcount) continue;
        const page = memory.ramPage(first + at / info.pageStructBytes);
        isFree.fill(1, page, page + 2 ** structs.readUInt32LE(at + info.pagePrivateOffset));
      }
    }
  }
  return isFree;
}

describe.skipIf(!isRoot)('free pages of a guest (needs root to build one)', () => {
  it.each([256, 4096])('of %i MiB are those that its struct pages say', async (memoryMiB) => {
    await using guest = await Guest.boot(memoryMiB);
    const cache = createTransferBuffer(INTROSPECTION_PAGES_MAX);
    for (let round = 0; round < 10; round++) {
      await guest.qmp.execute('stop');
      const note = await guest.noteLocation();
      const found = findFreePages({ source: guest.source, note, cache });
      const scanned = scanPageArray(guest.source, note);
      await guest.qmp.execute('cont');
      expect(found.reason).toBeUndefined();
      expect(found.freePages).toBeGreaterThan((memoryMiB * MiB) / PAGE / 2);
      if (found.isComplete && found.listsLeft === 0) {
        expect(Buffer.compare(found.isFree, scanned)).toBe(0);
      }
      // In the middle of a change there may be fewer, but never one that is in use.
      expect(found.isFree.some((free, page) => free === 1 && scanned[page] === 0)).toBe(false);
      await setTimeout(20);
    }
  });
});
