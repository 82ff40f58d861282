// A real QEMU, and a guest of 100 bytes: each byte that comes in by the serial port makes it count and
// say the count. It is booted, frozen and cloned from a warm QEMU; parent and clone go on from the
// same number, apart. Needs QEMU; root only for what says so.

import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import {
  type BootSource,
  DEFAULT_CPU_MODEL,
  type MachineShape,
} from '../../packages/clone-agent/src/hypervisor/arguments.js';
import {
  findVmcoreinfo,
  parseDeviceState,
  synthesiseStream,
} from '../../packages/clone-agent/src/hypervisor/device-stream.js';
import { locateQemu, type QemuBinary } from '../../packages/clone-agent/src/hypervisor/locate.js';
import { processPssBytes, WarmPool } from '../../packages/clone-agent/src/hypervisor/pool.js';
import { AcceleratorProbe } from '../../packages/clone-agent/src/hypervisor/probe.js';
import { bootsSector } from '../../packages/clone-agent/src/hypervisor/probe-boot.js';
import { QemuProcess } from '../../packages/clone-agent/src/hypervisor/qemu.js';
import { eventually } from '../support/eventually.js';

const MiB = 2 ** 20;
const MEMORY_BYTES = 32 * MiB;

/** A multiboot kernel; 32-bit code. */
const COUNTER = [
  // multiboot: magic, flags (addresses given), checksum, header, load, ends, entry
  '02b0ad1b 00000100 fe4f51e4 00001000 00001000 64001000 64001000 20001000',
  // cli; write ">" to port 0x3f8: here I am
  'fa 66baf803 b03e ee',
  // wait for a byte (port 0x3fd, bit 0); take it
  '66bafd03 ec a801 74fb 66baf803 ec',
  // count at 0x100060; write the eight hexadecimal digits and a newline; again
  'ff0560001000 8b1d60001000 b908000000',
  'c1c304 88d8 240f 3c0a 7202 0427 0430 ee e2ee b00a ee ebca',
  '6690 00000000',
];

const binary: QemuBinary | undefined = await locateQemu(process.env).catch(() => undefined);
const why = binary === undefined ? ' (skipped: no QEMU of 7.2 or later)' : '';

describe.skipIf(binary === undefined)(`QEMU${why}`, () => {
  let folder: string;
  let boot: BootSource;
  let shape: MachineShape;
  let diskless: MachineShape;
  let started: AsyncDisposable[] = [];

  beforeAll(() => {
    folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-hv-'));
    boot = { kernel: path.join(folder, 'counter') };
    fs.writeFileSync(boot.kernel, Buffer.from(COUNTER.join('').replaceAll(' ', ''), 'hex'));
    const diskPath = path.join(folder, 'disk');
    fs.writeFileSync(diskPath, Buffer.alloc(MiB));
    shape = {
      machineType: binary!.machineType,
      accelerator: 'tcg',
      cpuModel: DEFAULT_CPU_MODEL,
      memoryBytes: MEMORY_BYTES,
      vcpus: 1,
      diskPath,
    };
    diskless = { ...shape, diskPath: undefined };
  });
  beforeEach(() => {
    started = [];
  });
  afterEach(async () => {
    for (const process of started) await process[Symbol.asyncDispose]();
  });
  afterAll(() => fs.rmSync(folder, { recursive: true, force: true }));

  async function start(options: { boot?: BootSource; of?: MachineShape } = {}) {
    const qemu = await QemuProcess.start({
      binary: binary!,
      shape: options.of ?? shape,
      folder: fs.mkdtempSync(path.join(folder, 'vm-')),
      name: 'snowfork-test',
      boot: options.boot,
    });
    started.push(qemu);
    return qemu;
  }

  function emptyRam(): { path: string; sizeBytes: number } {
    const file = path.join(fs.mkdtempSync(path.join(folder, 'ram-')), 'ram');
    fs.writeFileSync(file, '');
    fs.truncateSync(file, MEMORY_BYTES);
    return { path: file, sizeBytes: MEMORY_BYTES };
  }

  async function bootCounter() {
    const qemu = await start({ boot });
    await qemu.attachMemory(emptyRam());
    const counter = await Counter.open(qemu);
    await qemu.resume();
    await counter.ready();
    return { qemu, counter };
  }

  /** Pauses the VM and takes all of it. */
  async function freeze(qemu: QemuProcess) {
    const [, deviceState] = await Promise.all([qemu.pause(), qemu.saveDeviceState()]);
    const ram = emptyRam();
    await qemu.execute('pmemsave', { val: 0, size: MEMORY_BYTES, filename: ram.path });
    return { deviceState, ram };
  }

  it('a clone goes on from where its parent was frozen, and both go on apart', async () => {
    const parent = await bootCounter();
    expect(await parent.counter.next()).toBe(1);
    expect(await parent.counter.next()).toBe(2);
    const { deviceState, ram } = await freeze(parent.qemu);
    const stream = synthesiseStream(deviceState, shape.machineType);
    const hashed = fs.readFileSync(ram.path);

    const clones = [];
    for (const _ of [1, 2]) {
      const qemu = await start();
      await qemu.attachMemory(ram);
      const counter = await Counter.open(qemu);
      const { loadedAt, resumed } = await qemu.loadState(stream, { resume: true });
      expect(resumed!.earliestMs).toBeGreaterThanOrEqual(loadedAt);
      expect(resumed!.latestMs).toBeGreaterThanOrEqual(resumed!.earliestMs);
      clones.push(counter);
    }
    await parent.qemu.resume();
    const [first, second] = clones;
    expect(await first!.next()).toBe(3);
    expect(await first!.next()).toBe(4);
    expect(await second!.next()).toBe(3);
    expect(await parent.counter.next()).toBe(3);
    // Nobody wrote to the file that all of them have mapped.
    expect(fs.readFileSync(ram.path).equals(hashed)).toBe(true);
  });

  it('a clone of a clone goes on too', async () => {
    let { qemu, counter } = await bootCounter();
    for (const generation of [1, 2, 3]) {
      expect(await counter.next()).toBe(generation);
      const { deviceState, ram } = await freeze(qemu);
      qemu = await start();
      await qemu.attachMemory(ram);
      counter = await Counter.open(qemu);
      const stream = synthesiseStream(deviceState, shape.machineType);
      const times = await qemu.loadState(stream, { resume: false });
      expect(times.resumed).toBeUndefined();
      await qemu.resume();
    }
    expect(await counter.next()).toBe(4);
  });

  it('writes a device state that parses, with the devices of the machine', async () => {
    const { qemu } = await bootCounter();
    const { deviceState } = await freeze(qemu);
    const names = parseDeviceState(deviceState).sections.map(({ idstr }) => idstr);
    for (const name of ['cpu', 'vmcoreinfo', 'vmgenid', 'globalstate']) {
      expect(names).toContain(name);
    }
    expect(names.filter((name) => name.includes('virtio'))).toHaveLength(2);
    expect(findVmcoreinfo(deviceState)).toMatchObject({ hasVmcoreinfo: false });
  });

  it('reads none of its RAM before it loads a state', async () => {
    const qemu = await start();
    await qemu.attachMemory(emptyRam());
    const smaps = fs.readFileSync(`/proc/${qemu.pid}/smaps`, 'latin1').split('\n');
    const mapping = smaps.slice(smaps.findIndex((line) => line.endsWith('/ram')));
    expect(mapping.find((line) => line.startsWith('Rss:'))).toMatch(/ 0 kB$/);
  });

  it('refuses the state of another machine with its own words, and ends', async () => {
    const { qemu } = await bootCounter();
    const { deviceState, ram } = await freeze(qemu);
    const clone = await start();
    await clone.attachMemory(ram);
    const stream = synthesiseStream(deviceState, 'pc-q35-2.10');
    const loading = clone.loadState(stream, { resume: true });
    await expect(loading).rejects.toMatchObject({
      code: 'SF_QEMU_FAILED',
      message: expect.stringContaining('pc-q35-2.10'),
    });
    expect((await clone.exited).code).not.toBe(0);
  });

  it('ends with its last words when an option is wrong', async () => {
    const starting = start({ of: { ...shape, cpuModel: 'no-such-cpu' } });
    await expect(starting).rejects.toMatchObject({
      code: 'SF_QEMU_FAILED',
      message: expect.stringContaining('no-such-cpu'),
    });
  });

  it('that is killed rejects what waits, and says how it ended', async () => {
    const qemu = await start({ of: diskless });
    const waiting = qemu.qmp.waitEvent('NEVER');
    waiting.catch(() => {});
    process.kill(qemu.pid, 'SIGKILL');
    await expect(waiting).rejects.toMatchObject({ code: 'SF_QEMU_FAILED' });
    expect(await qemu.exited).toMatchObject({ code: null, signal: 'SIGKILL' });
    const later = qemu.execute('query-status');
    await expect(later).rejects.toMatchObject({ message: expect.stringContaining('SIGKILL') });
  });

  it('quits in order, and its start can be given up', async () => {
    const qemu = await start({ of: diskless });
    expect(await qemu.quit()).toMatchObject({ code: 0, signal: null });
    const giveUp = new AbortController();
    const options = { binary: binary!, shape: diskless, folder, name: 'given-up' };
    const starting = QemuProcess.start({ ...options, signal: giveUp.signal });
    giveUp.abort();
    await expect(starting).rejects.toMatchObject({ code: 'SF_ABORTED' });
  });

  it('stands in its own process group, and its folder can be renamed', async () => {
    const qemu = await start({ of: diskless });
    const stat = fs.readFileSync(`/proc/${qemu.pid}/stat`, 'latin1');
    expect(Number(stat.slice(stat.lastIndexOf(')')).split(' ')[3])).toBe(qemu.pid);
    qemu.moveTo(`${qemu.folder}-moved`);
    await qemu.attachMemory(emptyRam());
    const counter = await Counter.open(qemu);
    expect(counter).toBeDefined();
  });

  it('waits in the warm pool, and costs what the pool says', async () => {
    const pool = new WarmPool<QemuProcess>({
      size: 2,
      start: (of, { background, signal }) =>
        QemuProcess.start({
          binary: binary!,
          shape: of,
          folder: fs.mkdtempSync(path.join(folder, 'warm-')),
          name: 'snowfork-warm',
          background,
          signal,
        }),
      onError: (error) => expect.unreachable(error.message),
    });
    started.push(pool);
    pool.want(shape);
    await pool.settled();
    const stats = pool.stats();
    expect(stats.ready).toBe(2);
    expect(stats.pssBytes).toBeGreaterThan(MiB);
    const { qemu, warm } = await pool.take(shape, new AbortController().signal);
    started.push(qemu);
    expect(warm).toBe(true);
    expect(os.getPriority(qemu.pid)).toBe(0);
    expect(processPssBytes(qemu.pid)).toBeGreaterThan(MiB);
    await qemu.attachMemory(emptyRam());
  });
});

describe.skipIf(binary === undefined)(`the accelerator's probe${why}`, () => {
  it('hears the boot sector under software emulation', async () => {
    await eventually(async () => expect(await bootsSector(binary!, 'tcg')).toBe(true));
  });

  it('keeps what it found out, with the reason', async () => {
    const cacheFolder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-probe-test-'));
    try {
      const options = { binary: binary!, cacheFolder, forced: undefined };
      const first = await AcceleratorProbe.start(options);
      const again = await AcceleratorProbe.start(options);
      expect(again.choice).toEqual(first.choice);
      expect(first.choice.reason).not.toBe('');
    } finally {
      fs.rmSync(cacheFolder, { recursive: true, force: true });
    }
  });
});

/** The guest's console. */
class Counter {
  readonly #socket: net.Socket;
  #text = '';

  private constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.on('data', (chunk) => {
      this.#text += chunk.toString('latin1');
    });
    socket.on('error', () => {});
  }

  /** Connected before the guest runs, so that no byte is lost. */
  static async open(qemu: QemuProcess): Promise<Counter> {
    const socket = net.connect(qemu.files.console);
    await once(socket, 'connect');
    return new Counter(socket);
  }

  /** The firmware is through with its own words, and the guest runs. */
  async ready(): Promise<void> {
    await this.#said(/>$/);
  }

  /** What the guest counts next. */
  async next(): Promise<number> {
    this.#text = '';
    this.#socket.write('x');
    const [digits] = await this.#said(/^[0-9a-f]{8}(?=\n$)/);
    return Number.parseInt(digits!, 16);
  }

  async #said(words: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const said = words.exec(this.#text);
      if (said) return said;
      await once(this.#socket, 'data');
    }
  }
}
