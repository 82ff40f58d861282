// Freeze, clone and nested freeze by the project's own parts (QEMU, pager, freeze, snapshot store),
// of a guest so small that it runs wherever a processor runs at all: under software emulation always,
// and under KVM also where no kernel boots on it. Needs root, /dev/fuse and QEMU.

import fs from 'node:fs';
import path from 'node:path';
import type { Accelerator, Machine } from '@snowfork/sdk/api';
import pino from 'pino';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { prepareFreeze } from '../../packages/clone-agent/src/freeze/freeze-memory.js';
import { findNoteLocation } from '../../packages/clone-agent/src/freeze/vmcoreinfo.js';
import { DEFAULT_CPU_MODEL } from '../../packages/clone-agent/src/hypervisor/arguments.js';
import { synthesiseStream } from '../../packages/clone-agent/src/hypervisor/device-stream.js';
import { locateQemu, type QemuBinary } from '../../packages/clone-agent/src/hypervisor/locate.js';
import { AcceleratorProbe } from '../../packages/clone-agent/src/hypervisor/probe.js';
import { QemuProcess } from '../../packages/clone-agent/src/hypervisor/qemu.js';
import { PagerKeeper } from '../../packages/clone-agent/src/pager/keeper.js';
import { Journal } from '../../packages/clone-agent/src/store/journal.js';
import { ProcessJournal } from '../../packages/clone-agent/src/store/processes.js';
import { type Snapshot, SnapshotStore } from '../../packages/clone-agent/src/store/snapshots.js';
import {
  prepareStateFolder,
  type StateFolder,
  stateFolder,
  unmountAll,
} from '../../packages/clone-agent/src/store/state-folder.js';
import { describeVms, MiB } from '../fixtures/guests.js';
import { TinyConsole, tinyFirmware } from '../fixtures/tiny-guest.js';

const MEMORY_BYTES = 16 * MiB;
const LAYERS_BYTES = 256 * MiB;
const PAGE_BYTES = 4096;
const ANSWER_TIMEOUT_MS = 20_000;
/** Where the processor does not run at all. */
const BOOT_TIMEOUT_MS = 10_000;

/** A running guest, and the snapshot that its RAM is mapped from. */
interface Tiny extends AsyncDisposable {
  readonly qemu: QemuProcess;
  readonly base: Snapshot;
  add(byte: number): Promise<{ count: number; sum: number }>;
}

describeVms('a tiny guest', () => {
  let binary: QemuBinary;
  let state: StateFolder;
  let store: SnapshotStore;
  let pager: PagerKeeper;
  let folders = 0;

  beforeAll(async () => {
    binary = await locateQemu(process.env);
    state = stateFolder(fs.mkdtempSync('/var/tmp/sfk-'));
    await prepareStateFolder(state, LAYERS_BYTES);
    const journal = new ProcessJournal(state.processes);
    pager = await PagerKeeper.start({ state, log: pino({ level: 'error' }), journal });
    const events = {
      ready: (id: string, like: Parameters<PagerKeeper['ready']>[1]) => pager.ready(id, like),
      bring: (id: string, pages: readonly number[]) => pager.bring(id, pages),
      dropped: (id: string) => pager.drop(id),
      changed: () => {},
    };
    store = new SnapshotStore(state, events, new Journal(state.journal, console.error));
  });

  afterAll(async () => {
    await pager?.stop();
    if (state === undefined) return;
    await unmountAll(state.mount);
    await unmountAll(state.run);
    fs.rmSync(state.root, { recursive: true, force: true });
  });

  function machineOf(accelerator: Accelerator): Machine {
    const { version: qemuVersion, machineType } = binary;
    const shape = { cpuModel: DEFAULT_CPU_MODEL, memoryBytes: MEMORY_BYTES, vcpus: 1 };
    return { qemuVersion, machineType, accelerator, ...shape };
  }

  /** Under the first layer lies nothing. */
  async function nothing(machine: Machine): Promise<Snapshot> {
    const ram = { name: 'ram', sizeBytes: MEMORY_BYTES, map: 'ram.map', layers: [] };
    const empty = store.begin({ machine, kept: false, persistent: false, objects: [ram] });
    const entries = new Uint16Array(MEMORY_BYTES / PAGE_BYTES);
    await store.complete(empty, {
      ...{ map: { entries, layerCount: 0 }, layers: [], pages: empty.file.pages },
      ...{ layerBytes: 0, deviceStateBytes: 0, guest: { pending: [] }, like: [] },
    });
    return empty;
  }

  async function start(base: Snapshot, firmware?: string): Promise<Tiny & { port: TinyConsole }> {
    const { machine } = base.file;
    const folder = path.join(state.vms, String(folders++));
    fs.mkdirSync(folder);
    const qemu = await QemuProcess.start({
      ...{ binary, folder, name: 'snowfork-tiny', shape: { ...machine, diskPath: undefined } },
      ...(firmware === undefined ? {} : { boot: { firmware } }),
    });
    await qemu.attachMemory({ path: store.ramPath(base), sizeBytes: MEMORY_BYTES });
    const port = await TinyConsole.open(qemu.files.console);
    return {
      ...{ qemu, base, port },
      add: (byte) => port.add(byte, AbortSignal.timeout(ANSWER_TIMEOUT_MS)),
      [Symbol.asyncDispose]: async () => {
        port[Symbol.dispose]();
        await qemu.kill();
      },
    };
  }

  /** A guest from its reset on; undefined where its processor does not come to its first word. */
  async function boot(accelerator: Accelerator): Promise<Tiny | undefined> {
    const firmware = path.join(state.root, 'firmware');
    fs.writeFileSync(firmware, tinyFirmware());
    const tiny = await start(await nothing(machineOf(accelerator)), firmware);
    try {
      await tiny.qemu.resume();
      await tiny.port.booted(AbortSignal.timeout(BOOT_TIMEOUT_MS));
      return tiny;
    } catch {
      await tiny[Symbol.asyncDispose]();
      return undefined;
    }
  }

  /** As `freezeVm` does it, without a guest side to ask. The guest goes on. */
  async function freeze({ qemu, base }: Tiny): Promise<Snapshot> {
    const { machine, objects } = base.file;
    const [ram] = objects;
    const snapshot = store.begin({
      ...{ machine, kept: false, persistent: false },
      objects: [{ name: ram!.name, sizeBytes: ram!.sizeBytes, map: 'ram.map', layers: [] }],
    });
    const layers = store.memory(base);
    const memory = prepareFreeze({
      ...{ pid: qemu.pid, ramPath: store.ramPath(base), base: layers, last: layers },
      newLayer: store.newLayer(false),
    });
    const [, deviceState] = await Promise.all([qemu.pause(), qemu.saveDeviceState()]);
    fs.writeFileSync(store.deviceState(snapshot), deviceState);
    memory.run(findNoteLocation(deviceState));
    await qemu.resume();
    const frozen = await memory.finish();
    await store.complete(snapshot, {
      ...{ map: frozen.map, layers: frozen.layers.map(({ id }) => id), pages: frozen.counts },
      ...{ layerBytes: frozen.storedBytes, deviceStateBytes: deviceState.length },
      ...{ guest: { pending: [] }, like: [base.file.id] },
    });
    return snapshot;
  }

  async function clone(snapshot: Snapshot): Promise<Tiny> {
    const tiny = await start(snapshot);
    const device = fs.readFileSync(store.deviceState(snapshot));
    const stream = synthesiseStream(device, snapshot.file.machine.machineType);
    await tiny.qemu.loadState(stream, { resume: true, timeoutMs: ANSWER_TIMEOUT_MS });
    return tiny;
  }

  /** Parent, two clones and a clone of a clone, each with a memory of its own. */
  async function forkAndForkAgain(parent: Tiny): Promise<void> {
    expect(await parent.add(1)).toEqual({ count: 1, sum: 1 });
    expect(await parent.add(2)).toEqual({ count: 2, sum: 3 });
    const first = await freeze(parent);
    expect(first.file.pages.privatePages).toBeGreaterThanOrEqual(4);
    expect(first.file.pages.privatePages).toBeLessThan(MEMORY_BYTES / PAGE_BYTES / 4);
    await using one = await clone(first);
    await using two = await clone(first);
    expect(await one.add(10)).toEqual({ count: 3, sum: 13 });
    expect(await two.add(20)).toEqual({ count: 3, sum: 23 });
    expect(await parent.add(4)).toEqual({ count: 3, sum: 7 });
    const second = await freeze(one);
    // A layer of what the clone wrote itself; the rest is its parent's.
    expect(second.file.pages.storedPages).toBeLessThan(first.file.pages.storedPages);
    await using nested = await clone(second);
    expect(await nested.add(100)).toEqual({ count: 4, sum: 113 });
    expect(await one.add(11)).toEqual({ count: 4, sum: 24 });
    expect(await two.add(21)).toEqual({ count: 4, sum: 44 });
    await using deepest = await clone(await freeze(nested));
    expect(await deepest.add(5)).toEqual({ count: 5, sum: 118 });
    expect(await nested.add(6)).toEqual({ count: 5, sum: 119 });
    expect(await parent.add(8)).toEqual({ count: 4, sum: 15 });
  }

  it('is frozen, cloned, and frozen again as a clone, under software emulation', async () => {
    const parent = await boot('tcg');
    expect(parent).toBeDefined();
    await using _ = parent!;
    await forkAndForkAgain(parent!);
  });

  it('and under KVM as far as the probe says, or further', async () => {
    const options = { binary, cacheFolder: state.cache, forced: undefined };
    const { accelerator, reason } = (await AcceleratorProbe.start(options)).choice;
    const parent = isKvmOpen() ? await boot('kvm') : undefined;
    if (parent === undefined) {
      // Not even this guest runs: then the probe must have said so.
      expect({ accelerator, reason }).toMatchObject({
        accelerator: 'tcg',
        reason: expect.stringMatching(isKvmOpen() ? /no boot sector: / : /\/dev\/kvm: E[A-Z]+/),
      });
      return;
    }
    await using _ = parent;
    const kvm = await parent.qemu.execute('query-kvm');
    expect(kvm).toEqual({ present: true, enabled: true });
    await forkAndForkAgain(parent);
  });
});

function isKvmOpen(): boolean {
  try {
    fs.closeSync(fs.openSync('/dev/kvm', 'r+'));
    return true;
  } catch {
    return false;
  }
}
