// Freezes of a real process that maps a file privately, as QEMU maps its RAM: whatever the process wrote, the
// new snapshot shows exactly its memory, and stores no more of it than it must.

import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { HeldPages, ZERO_PAGE } from '@snowfork/memserver';
import type { SnowforkError } from '@snowfork/sdk/api';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  type FrozenMemory,
  prepareFreeze,
} from '../../packages/clone-agent/src/freeze/freeze-memory.js';
import {
  LAYERS_OF_ONE_VM_MAX,
  type LayerStack,
} from '../../packages/clone-agent/src/freeze/layer-stack.js';
import { RESERVE_PIECES_MAX } from '../../packages/clone-agent/src/freeze/page-reserve.js';
import {
  createTransferBuffer,
  findMapping,
  type PageRuns,
  ProcessMemory,
} from '../../packages/clone-agent/src/freeze/process-memory.js';
import { contentOf, MappingProcess } from '../support/mapping-process.js';

const PAGE = 4096;
const PAGES = 2048;
/** Pages of the base snapshot that are not zero: the first so many. */
const BASE_PAGES = 1024;

let folder: string;
let ramPath: string;
let child: MappingProcess;
let base: LayerStack;
let freezes = 0;

beforeEach(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-freeze-'));
  ramPath = path.join(folder, 'ram');
  fs.writeFileSync(ramPath, randomBytes(BASE_PAGES * PAGE));
  fs.truncateSync(ramPath, PAGES * PAGE);
  const entries = new Uint16Array(PAGES).fill(1, 0, BASE_PAGES);
  base = { map: { entries, layerCount: 1 }, layers: [{ id: 'base', path: ramPath }] };
  child = await MappingProcess.start(ramPath, PAGES);
});

afterEach(async () => {
  await child.end();
  fs.rmSync(folder, { recursive: true, force: true });
});

const tell = (words: string): Promise<void> => child.tell(words);
const memoryOfChild = (): Buffer => child.memory();

async function freeze(last: LayerStack, from: LayerStack = base): Promise<FrozenMemory> {
  const id = `layer-${++freezes}`;
  const newLayer = { id, path: path.join(folder, id) };
  const freezing = prepareFreeze({ pid: child.pid, ramPath, base: from, last, newLayer });
  freezing.run();
  return await freezing.finish();
}

const idsOf = (stack: LayerStack): string[] => stack.layers.map(({ id }) => id);
const layerFiles = (): string[] => fs.readdirSync(folder).filter((name) => name !== 'ram');
const codeOf = (work: () => unknown): string => {
  try {
    work();
  } catch (error) {
    return (error as SnowforkError).code;
  }
  return 'no error';
};

function expandRuns(runs: PageRuns): number[] {
  const pages: number[] = [];
  for (let run = 0; run < runs.length; run++) {
    for (let i = 0; i < runs.counts[run]!; i++) pages.push(runs.starts[run]! + i);
  }
  return pages;
}

describe('a freeze', () => {
  it('shows the memory of the process, and stores only what it wrote', async () => {
    await tell('fill 10 300 7');
    await tell('fill 1500 1 8');
    await tell('fill 1502 1 9');
    await tell('read 700');
    const frozen = await freeze(base);
    expect(contentOf(frozen).equals(memoryOfChild())).toBe(true);
    expect(frozen.counts).toEqual({
      totalPages: PAGES,
      privatePages: 302,
      freePages: 0,
      zeroPages: 0,
      referencedPages: 0,
      storedPages: 302,
    });
    expect(frozen.storedBytes).toBe(302 * PAGE);
    const layer = fs.statSync(frozen.layers[1]!.path);
    expect([layer.size, layer.blocks * 512]).toEqual([PAGES * PAGE, 302 * PAGE]);
    expect(frozen.free.reason).toMatch(/VMCOREINFO/);
  });

  it('stores nothing, and leaves no file, when nothing was written', async () => {
    await tell('read 3');
    const frozen = await freeze(base);
    expect(idsOf(frozen)).toEqual(['base']);
    expect(frozen.map.entries).toEqual(base.map.entries);
    expect(layerFiles()).toEqual([]);
  });

  it('has zero for a page that was made zero, in the base or anew', async () => {
    await tell('fill 20 5 0');
    await tell('fill 1800 5 0');
    const frozen = await freeze(base);
    expect([...frozen.map.entries.slice(19, 26)]).toEqual([1, 0, 0, 0, 0, 0, 1]);
    expect(frozen.counts).toMatchObject({ privatePages: 10, zeroPages: 10, storedPages: 0 });
    expect(contentOf(frozen).equals(memoryOfChild())).toBe(true);
  });

  it('references what the last snapshot has, and stores what changed since', async () => {
    await tell('fill 0 600 1');
    await tell('fill 700 20 1');
    const first = await freeze(base);
    await tell('fill 100 10 2');
    const second = await freeze(first);
    expect(second.counts).toMatchObject({
      privatePages: 620,
      referencedPages: 610,
      storedPages: 10,
    });
    expect(idsOf(second)).toEqual(['base', first.layers[1]!.id, second.layers[2]!.id]);
    expect(contentOf(second).equals(memoryOfChild())).toBe(true);
  });

  it('never reads what is on another host, as nobody may answer', async () => {
    const held = path.join(folder, 'ram.held');
    HeldPages.create(held, PAGES);
    const replica = { map: base.map, layers: [{ id: 'base', path: ramPath, held }] };
    const note = { physicalAddress: 5 * PAGE, sizeBytes: 2 * PAGE };
    const newLayer = { id: 'new', path: path.join(folder, 'new') };
    const of = { pid: child.pid!, ramPath, base: replica, last: replica, newLayer, note };
    const freezing = prepareFreeze(of);
    expect(freezing.absentPages).toEqual([5]);
    const pages = HeldPages.map(held);
    pages.set(5);
    freezing.searchAgain();
    expect(freezing.absentPages).toEqual([6]);
    await tell('fill 6 1 1');
    freezing.run();
    const frozen = await freezing.finish();
    expect(freezing.absentPages).toEqual([]);
    expect(frozen.free.reason).not.toMatch(/host/);
    expect(frozen.counts).toMatchObject({ privatePages: 1, freePages: 0, storedPages: 1 });
    pages.unmap();
  });

  it('references the base for a page that was written and is as it was', async () => {
    const page = Buffer.alloc(PAGE, 1);
    page.writeUInt32LE(5, 8); // as `fill 5 1 1` leaves it
    const file = fs.openSync(ramPath, 'r+');
    fs.writeSync(file, page, 0, PAGE, 5 * PAGE);
    fs.closeSync(file);
    await tell('fill 5 1 1');
    const frozen = await freeze(base);
    expect(frozen.counts).toMatchObject({ privatePages: 1, referencedPages: 1, storedPages: 0 });
    expect(idsOf(frozen)).toEqual(['base']);
  });

  it('drops a layer that no page needs any longer', async () => {
    await tell('fill 0 50 1');
    const first = await freeze(base);
    await tell('fill 0 50 2');
    const second = await freeze(first);
    expect(idsOf(second)).toEqual(['base', second.layers[1]!.id]);
    expect(second.layers[1]!.id).not.toBe(first.layers[1]!.id);
    await tell(`fill 0 ${PAGES} 3`);
    const third = await freeze(second);
    expect(third.layers.length).toBe(1);
    expect(contentOf(third).equals(memoryOfChild())).toBe(true);
  });

  it('takes from the base, not from the last snapshot, what was not written', async () => {
    const entries = base.map.entries.slice().fill(ZERO_PAGE, 0, 64); // free when it was frozen
    const last: LayerStack = { map: { entries, layerCount: 1 }, layers: base.layers };
    const frozen = await freeze(last);
    expect([...frozen.map.entries.slice(0, 64)]).toEqual(new Array(64).fill(1));
  });

  it('stores all afresh when the stack is as high as it may be', async () => {
    await tell('fill 0 100 1');
    const first = await freeze(base);
    const own = Array.from({ length: LAYERS_OF_ONE_VM_MAX }, (_, i) => ({
      id: `own-${i}`,
      path: first.layers[1]!.path,
    }));
    const below: LayerStack = {
      map: { entries: first.map.entries, layerCount: own.length },
      layers: [...base.layers, ...own.slice(1)],
    };
    expect((await freeze(below)).counts).toMatchObject({ referencedPages: 100, storedPages: 0 });
    const full: LayerStack = {
      map: { entries: first.map.entries, layerCount: own.length + 1 },
      layers: [...base.layers, ...own],
    };
    const frozen = await freeze(full);
    expect(frozen.counts).toMatchObject({ referencedPages: 0, storedPages: 100 });
    expect(idsOf(frozen).length).toBe(2);
    expect(contentOf(frozen).equals(memoryOfChild())).toBe(true);
  });

  it('shows the moment of `run`, whatever is written before `finish`', async () => {
    await tell('fill 30 40 1');
    const newLayer = { id: 'new', path: path.join(folder, 'new') };
    const freezing = prepareFreeze({ pid: child.pid, ramPath, base, last: base, newLayer });
    await tell('fill 50 600 2');
    freezing.run();
    const atRun = Buffer.from(memoryOfChild());
    await tell('fill 0 700 3');
    expect(contentOf(await freezing.finish()).equals(atRun)).toBe(true);
  });

  it('stores within the pause what the reserve has no room for', async () => {
    await tell('fill 0 1000 1');
    const begin = (name: string) =>
      prepareFreeze({
        pid: child.pid,
        ramPath,
        base,
        last: base,
        newLayer: { id: name, path: path.join(folder, name) },
      });
    const others = [];
    for (let pieces = 4; pieces < RESERVE_PIECES_MAX - 2; pieces += 4) {
      const other = begin(`other-${pieces}`);
      other.run();
      others.push(other);
    }
    const frozen = begin('tight');
    frozen.run();
    expect(contentOf(await frozen.finish()).equals(memoryOfChild())).toBe(true);
    for (const other of others) other.abandon();
    expect(layerFiles()).toEqual(['tight']);
  });
});

it('gives back what it took of the reserve, however it ends', async () => {
  await tell('fill 0 1000 1');
  for (let round = 0; round < RESERVE_PIECES_MAX / 2; round++) {
    const newLayer = { id: 'new', path: path.join(folder, 'new') };
    const freezing = prepareFreeze({ pid: child.pid, ramPath, base, last: base, newLayer });
    freezing.run();
    freezing.abandon();
  }
  expect((await freeze(base)).counts.storedPages).toBe(1000);
});

describe('a freeze that fails', () => {
  const begin = (overrides: object = {}) => {
    const newLayer = { id: 'new', path: path.join(folder, 'new') };
    return prepareFreeze({ pid: child.pid, ramPath, base, last: base, newLayer, ...overrides });
  };

  it('says that the VM is gone, and leaves no file', async () => {
    await tell('fill 0 10 1');
    const freezing = begin();
    await child.end();
    expect(codeOf(() => freezing.run())).toBe('SF_VM_GONE');
    expect(codeOf(() => begin())).toBe('SF_VM_GONE');
    expect(layerFiles()).toEqual([]);
  });

  it('says that the RAM is not mapped, or of another size', () => {
    expect(codeOf(() => begin({ ramPath: '/nowhere' }))).toBe('SF_QEMU_FAILED');
    const map = { entries: new Uint16Array(PAGES - 1), layerCount: 0 };
    expect(codeOf(() => begin({ base: { map, layers: [] } }))).toBe('SF_INTERNAL');
    expect(layerFiles()).toEqual([]);
  });

  it('is abandoned at any time and leaves no file', async () => {
    await tell('fill 0 10 1');
    begin().abandon();
    const run = begin();
    run.run();
    run.abandon();
    run.abandon();
    await expect(run.finish()).rejects.toMatchObject({ code: 'SF_INTERNAL' });
    expect(layerFiles()).toEqual([]);
  });

  it('never overwrites a layer', () => {
    fs.writeFileSync(path.join(folder, 'new'), 'precious');
    expect(codeOf(() => begin())).toBe('SF_INTERNAL');
    expect(fs.readFileSync(path.join(folder, 'new'), 'utf8')).toBe('precious');
  });

  it.skipIf(process.getuid?.() !== 0)(
    'says that the tmpfs is full, leaves nothing there, and the process goes on (needs root)',
    async () => {
      const mount = path.join(folder, 'full');
      fs.mkdirSync(mount);
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'none', mount]);
      try {
        await tell('fill 0 500 1');
        const before = Buffer.from(memoryOfChild());
        const freezing = begin({ newLayer: { id: 'new', path: path.join(mount, 'new') } });
        freezing.run();
        await expect(freezing.finish()).rejects.toMatchObject({ code: 'SF_LAYERS_FULL' });
        expect(fs.readdirSync(mount)).toEqual([]);
        expect(memoryOfChild().equals(before)).toBe(true);
        expect(contentOf(await freeze(base)).equals(before)).toBe(true);
      } finally {
        execFileSync('umount', ['-l', mount]);
      }
    },
  );
});

describe('the memory of a process', () => {
  it('is read the same with the calls that old kernels have', async () => {
    await tell('fill 3 1 1');
    await tell('fill 7 400 0');
    await tell('read 600');
    const written = [3, ...Array.from({ length: 400 }, (_, i) => i + 7)];
    const read = [false, true].map((newCalls) => {
      const memory = new ProcessMemory({ pid: child.pid, path: ramPath, newCalls });
      expect(expandRuns(memory.privatePages())).toEqual(written);
      const buffer = createTransferBuffer(16);
      memory.readPages(Int32Array.of(3, 4, 9, 600, 601, 2047), 6, buffer);
      memory.readRange(1, 9, buffer, 6 * PAGE);
      memory.close();
      return buffer.bytes.subarray(0, 15 * PAGE);
    });
    expect(read[0]!.equals(read[1]!)).toBe(true);
    const whole = memoryOfChild();
    expect(read[0]!.subarray(0, PAGE).equals(whole.subarray(3 * PAGE, 4 * PAGE))).toBe(true);
    expect(read[0]!.subarray(6 * PAGE).equals(whole.subarray(PAGE, 10 * PAGE))).toBe(true);
  });

  it('has in its page table what was touched since it was dropped', async () => {
    const mapped = (newCalls: boolean) => {
      const memory = new ProcessMemory({ pid: child.pid, path: ramPath, newCalls });
      const pages = expandRuns(memory.mappedPages());
      memory.close();
      return pages;
    };
    await tell('fill 100 4 1');
    await tell('drop 0 2048');
    await tell('fill 3 2 1');
    expect(mapped(false)).toEqual([3, 4]);
    // The kernel maps pages of the file beside the one that is read.
    await tell('read 600');
    expect(mapped(false)).toEqual(expect.arrayContaining([3, 4, 600]));
    expect(mapped(true)).toEqual(mapped(false));
  });

  it('is mapped once, in however many lines', () => {
    const line = (from: string, to: string, offset: string, name: string): string =>
      `${from}-${to} rw-p ${offset} 00:2f 12    ${name}`;
    const other = line('7f0000000000', '7f0000001000', '00000000', '/ram2');
    const parts = [
      line('7f1000000000', '7f1000200000', '00000000', '/ram'),
      line('7f1000200000', '7f1000300000', '00200000', '/ram'),
    ];
    const expected = { startAddress: 0x7f1000000000, pages: 768 };
    expect(findMapping([other, ...parts, other].join('\n'), '/ram')).toEqual(expected);
    const deleted = parts.map((text) => `${text} (deleted)`).join('\n');
    expect(findMapping(deleted, '/ram')).toEqual(expected);
    const apart = [parts[0], line('7f2000200000', '7f2000300000', '00200000', '/ram')];
    expect(codeOf(() => findMapping(apart.join('\n'), '/ram'))).toBe('SF_QEMU_FAILED');
    expect(codeOf(() => findMapping(other, '/ram'))).toBe('SF_QEMU_FAILED');
  });
});
