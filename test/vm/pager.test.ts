// The pager behind a real mount. Readers are other processes, as QEMU is: whoever serves a mount must
// never touch it. Needs root and /dev/fuse, no QEMU.

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { encodePageMap, PAGE_BYTES } from '@snowfork/memserver';
import { COMMAND_LINE_BYTES_MAX } from '@snowfork/memserver/control';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type PagerProcess, startPager } from '../../packages/clone-agent/src/pager/client.js';
import {
  abortConnection,
  fuseConnection,
  mountFuse,
  openFuse,
  unmountFuse,
} from '../../packages/clone-agent/src/pager/mount.js';
import { endOf } from '../../packages/clone-agent/src/system/listening-process.js';
import { eventually } from '../support/eventually.js';
import { limitMs, times } from '../support/soak.js';

const TMPFS = '/dev/shm';
const DISK = '/var/tmp';
const PREFIX = 'snowfork-pager-test-';
const CLIENT_DEADLINE_MS = 280_000;
const KILLS = times(20, 5000);
const KILL_INTERVAL_MS_MAX = 100;

const root = path.join(TMPFS, `${PREFIX}${process.pid}`);
const onDisk = path.join(DISK, `${PREFIX}${process.pid}`);
const run = path.join(root, 'run');
const mountPoint = path.join(root, 'mnt');
let fuseFd: number;
let connection: number | undefined;
let pager: PagerProcess;

const reason =
  process.getuid?.() !== 0 ? 'needs root' : fs.existsSync('/dev/fuse') ? '' : 'needs /dev/fuse';
const canRun = reason === '' || process.env.CI !== undefined;

/** A reader in a process of its own; prints one JSON value. `file`, `args` and `libc` are at hand. */
async function client(file: string, args: object, body: string): Promise<unknown> {
  const script = `
    import fs from 'node:fs';
    import koffi from 'koffi';
    import { createHash } from 'node:crypto';
    const [file, args] = [process.argv[1], JSON.parse(process.argv[2])];
    const PAGE = ${PAGE_BYTES};
    const libc = koffi.load('libc.so.6');
    const mmap = libc.func('void *mmap(void *, size_t, int, int, int, long)');
    const madvise = libc.func('int madvise(void *, size_t, int)');
    function map(huge) {
      const fd = fs.openSync(file, 'r+');
      const bytes = fs.fstatSync(fd).size;
      const pointer = mmap(null, bytes, 3, 2, fd, 0);
      if (huge) madvise(pointer, bytes, 14);
      return Buffer.from(koffi.view(pointer, bytes));
    }
    const hash = (bytes) => createHash('sha256').update(bytes).digest('hex');
    const answer = await (async () => { ${body} })();
    process.stdout.write(JSON.stringify(answer ?? null));`;
  const child = spawn(
    process.execPath,
    ['--input-type=module', '-e', script, file, JSON.stringify(args)],
    { stdio: ['ignore', 'pipe', 'pipe'], timeout: CLIENT_DEADLINE_MS, killSignal: 'SIGKILL' },
  );
  let out = '';
  let err = '';
  child.stdout.on('data', (chunk) => {
    out += chunk;
  });
  child.stderr.on('data', (chunk) => {
    err += chunk;
  });
  const [code, signal] = await once(child, 'close');
  if (code !== 0) throw new Error(`client ended with ${code ?? signal}: ${err}`);
  return JSON.parse(out);
}

/** Touches all pages in the order of a seed, then hashes them. */
const HASH_ALL = `
  const bytes = map(args.huge);
  const order = [...Array(Math.ceil(bytes.length / PAGE)).keys()];
  let seed = args.seed;
  const random = (n) => (seed = (seed * 1103515245 + 12345) & 0x7fffffff) % n;
  for (let i = order.length - 1; i > 0; i--) {
    const j = random(i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  let sum = 0;
  for (const page of order) sum += bytes[page * PAGE + 17];
  return hash(bytes);`;

function command(execute: string, args: object = {}): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const socket = net.connect(path.join(run, 'pager.sock'));
    let text = '';
    socket.on('error', reject);
    socket.on('data', (chunk) => {
      text += chunk;
      if (!text.endsWith('\n')) return;
      socket.end();
      const reply = JSON.parse(text);
      if (reply.error) reject(new Error(reply.error.desc));
      else resolve(reply.return);
    });
    socket.write(`${JSON.stringify({ execute, arguments: args, id: 7 })}\n`);
  });
}

interface Stats {
  objects: {
    snapshot: string;
    object: string;
    reads: number;
    storedPages: number;
    aheadPages: number;
    replayedPages: number;
    firstTouches: number;
  }[];
  latencyUsBuckets: number[];
  parkedReads: number;
}
const stats = () => command('stats') as Promise<Stats>;
/** Whether this pager has answered a READ. */
async function hasServed(): Promise<boolean> {
  return (await stats()).latencyUsBuckets.some((reads) => reads > 0);
}
async function objectStats(snapshot: string): Promise<Stats['objects'][number]> {
  const found = (await stats()).objects.find((object) => object.snapshot === snapshot);
  if (found === undefined) throw new Error(`the pager serves nothing of ${snapshot}`);
  return found;
}

async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  await eventually(async () => {
    if (!(await holds())) throw new Error(`never: ${what}`);
  });
}

/** Bytes that depend on layer and page. */
function pageOf(layer: string, page: number): Buffer {
  return Buffer.alloc(PAGE_BYTES, `${layer} ${page} `);
}

interface TestObject {
  name: string;
  entries: Uint16Array;
  layers: string[];
  sizeBytes?: number;
}

/** Writes the layers' files: the pages that the map says are there, holes elsewhere. */
function writeLayers(object: TestObject, folder = path.join(run, 'layers')): void {
  for (const [index, layer] of object.layers.entries()) {
    const fd = fs.openSync(path.join(folder, layer), 'w');
    for (const [page, entry] of object.entries.entries()) {
      if (entry !== index + 1) continue;
      fs.writeSync(fd, pageOf(layer, page), 0, PAGE_BYTES, page * PAGE_BYTES);
    }
    fs.closeSync(fd);
    const file = path.join(run, 'layers', layer);
    if (!fs.existsSync(file)) fs.symlinkSync(path.join(folder, layer), file);
  }
}

function contentOf({ entries, layers, sizeBytes }: TestObject): Buffer {
  const content = Buffer.alloc(entries.length * PAGE_BYTES);
  for (const [page, entry] of entries.entries()) {
    if (entry > 0) pageOf(layers[entry - 1]!, page).copy(content, page * PAGE_BYTES);
  }
  return content.subarray(0, sizeBytes ?? content.length);
}

const hashOf = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');

let nextNumber = 1;
function writeSnapshot(
  objects: TestObject[],
  options: { pending?: boolean; number?: number; others?: object[] } = {},
): { id: string; number: number } {
  const number = options.number ?? nextNumber++;
  const id = `s${number}`;
  const folder = path.join(run, 'snapshots', id);
  fs.mkdirSync(folder, { recursive: true });
  const described = objects.map(({ name, entries, layers, sizeBytes }) => {
    const encoded = encodePageMap({ entries, layerCount: layers.length });
    if (!options.pending) fs.writeFileSync(path.join(folder, `${name}.map`), encoded);
    return {
      name,
      sizeBytes: sizeBytes ?? entries.length * PAGE_BYTES,
      map: `${name}.map`,
      layers: options.pending ? [] : layers,
    };
  });
  const file = {
    version: 1,
    number,
    id,
    ...(options.pending ? { pending: true } : {}),
    objects: [...described, ...(options.others ?? [])],
  };
  fs.writeFileSync(path.join(folder, 'snapshot.json.new'), JSON.stringify(file));
  fs.renameSync(path.join(folder, 'snapshot.json.new'), path.join(folder, 'snapshot.json'));
  return { id, number };
}

let nextLayer = 1;
/** Pages in runs of several lengths, over `layerCount` layers and zeros. */
function randomObject(name: string, pages: number, layerCount: number, seed: number): TestObject {
  let state = seed;
  const random = (n: number) => {
    state = (state * 1_103_515_245 + 12_345) & 0x7fff_ffff;
    return Math.floor(state / 8) % n;
  };
  const entries = new Uint16Array(pages);
  for (let page = 0; page < pages; ) {
    const run = 1 + random(random(2) === 0 ? 4 : 300);
    entries.fill(random(layerCount + 1), page, page + run);
    page += run;
  }
  const layers = Array.from({ length: layerCount }, () => `l${nextLayer++}`);
  return { name, entries, layers };
}

const fileOf = (id: string, name = 'ram') => path.join(mountPoint, id, name);

async function clearAway(folder: string): Promise<void> {
  const mount = path.join(folder, 'mnt');
  const stuck = await fuseConnection(mount);
  await unmountFuse(mount);
  if (stuck !== undefined) await abortConnection(stuck);
  fs.rmSync(folder, { recursive: true, force: true });
}

/** What a test that was killed has left. */
async function clearAwayOld(): Promise<void> {
  for (const parent of [TMPFS, DISK]) {
    for (const name of fs.readdirSync(parent)) {
      const pid = name.startsWith(PREFIX) ? name.slice(PREFIX.length) : undefined;
      if (pid === undefined || fs.existsSync(`/proc/${pid}`)) continue;
      await clearAway(path.join(parent, name));
    }
  }
}

describe.skipIf(!canRun)(`pager${reason && ` (skipped: ${reason})`}`, () => {
  beforeAll(async () => {
    await clearAwayOld();
    for (const folder of ['snapshots', 'layers']) {
      fs.mkdirSync(path.join(run, folder), { recursive: true });
    }
    fs.mkdirSync(mountPoint);
    fs.mkdirSync(onDisk);
    fuseFd = openFuse();
    await mountFuse({ fd: fuseFd, mountPoint });
    connection = await fuseConnection(mountPoint);
    pager = await startPager({ fuseFd, runFolder: run });
  });

  afterAll(async () => {
    // Ends whatever still waits for a page, also where a test has failed half way.
    if (connection !== undefined) await abortConnection(connection);
    await pager?.exited;
    await clearAway(root);
    fs.rmSync(onDisk, { recursive: true, force: true });
    if (fuseFd !== undefined) fs.closeSync(fuseFd);
  });

  test.each([
    { seed: 1, layers: 1, huge: false },
    { seed: 2, layers: 3, huge: false },
    { seed: 3, layers: 7, huge: false },
    { seed: 4, layers: 3, huge: true },
  ])('memory has the bytes of its layers: $layers layers, huge pages $huge', async (of) => {
    const object = randomObject('ram', 3000, of.layers, of.seed);
    writeLayers(object);
    const { id } = writeSnapshot([object]);
    const hash = await client(fileOf(id), { seed: of.seed, huge: of.huge }, HASH_ALL);
    expect(hash).toBe(hashOf(contentOf(object)));
  });

  test('a disk gives any range at any offset, and nothing after its end', async () => {
    const object = { ...randomObject('root', 700, 2, 5), sizeBytes: 700 * PAGE_BYTES - 512 };
    writeLayers(object);
    const { id } = writeSnapshot([object]);
    const content = contentOf(object);
    const ranges = [
      [0, content.length],
      [1, 3],
      [4095, 2],
      [8192, 131_072],
      [123_457, 654_321],
      [100, 1_048_576],
      [content.length - 10, 100],
      [content.length, 10],
      [content.length + 4096, 4096],
    ] as const;
    const hashes = await client(
      fileOf(id, 'root'),
      { ranges },
      `const fd = fs.openSync(file, 'r');
       return args.ranges.map(([offset, length]) => {
         const bytes = Buffer.alloc(length);
         return hash(bytes.subarray(0, fs.readSync(fd, bytes, 0, length, offset)));
       });`,
    );
    const expected = ranges.map(([offset, length]) =>
      hashOf(content.subarray(offset, offset + length)),
    );
    expect(hashes).toEqual(expected);
  });

  test('what a disk does not have in the page cache is waited for, not made up', async () => {
    const ram = randomObject('ram', 2000, 2, 6);
    const disk = randomObject('root', 2000, 2, 7);
    for (const object of [ram, disk]) writeLayers(object, onDisk);
    const { id } = writeSnapshot([ram, disk]);
    for (const layer of [...ram.layers, ...disk.layers]) await evict(path.join(onDisk, layer));
    const [memory, whole] = await Promise.all([
      client(fileOf(id), { seed: 6 }, HASH_ALL),
      client(fileOf(id, 'root'), {}, 'return hash(fs.readFileSync(file));'),
    ]);
    expect(memory).toBe(hashOf(contentOf(ram)));
    expect(whole).toBe(hashOf(contentOf(disk)));
  });

  test('what a guest writes stays its own: the next reader sees the snapshot', async () => {
    const object = randomObject('ram', 500, 2, 8);
    writeLayers(object);
    const { id } = writeSnapshot([object]);
    await client(fileOf(id), {}, 'map().fill(0xee);');
    expect(await client(fileOf(id), { seed: 1 }, HASH_ALL)).toBe(hashOf(contentOf(object)));
  });

  test('nothing can be changed through the mount', async () => {
    const object = randomObject('ram', 10, 1, 9);
    writeLayers(object);
    const { id } = writeSnapshot([object]);
    const codes = await client(
      fileOf(id),
      {},
      `const fd = fs.openSync(file, 'r+');
       const attempts = [
         () => fs.writeSync(fd, 'x', 0), () => fs.ftruncateSync(fd, 0), () => fs.unlinkSync(file),
         () => fs.writeFileSync(file + '2', 'x'), () => fs.mkdirSync(file + '3'),
       ];
       return attempts.map((attempt) => { try { attempt(); return 'done'; } catch (e) { return e.code; } });`,
    );
    expect(codes).toEqual(['EROFS', 'EROFS', 'ENOSYS', 'ENOSYS', 'ENOSYS']);
  });

  test('only what is there and own is found', async () => {
    const object = randomObject('ram', 10, 1, 10);
    writeLayers(object);
    const inherited = { name: 'root', sizeBytes: 4096, from: 's1/root' };
    const { id } = writeSnapshot([object], { others: [inherited] });
    const names = [`${id}/root`, `${id}/ram2`, `${id}x`, '..hidden', 'snapshots', `${id}/ram/x`];
    const codes = await client(
      mountPoint,
      { names },
      `return args.names.map((name) => {
         try { fs.statSync(file + '/' + name); return 'found'; } catch (e) { return e.code; }
       });`,
    );
    expect(codes).toEqual(['ENOENT', 'ENOENT', 'ENOENT', 'ENOENT', 'ENOENT', 'ENOTDIR']);
  });

  test('a layer that is cut short is an error to the reader, never zeros', async () => {
    const object: TestObject = {
      name: 'root',
      entries: new Uint16Array(8).fill(1),
      layers: [`l${nextLayer++}`],
    };
    writeLayers(object);
    fs.truncateSync(path.join(run, 'layers', object.layers[0]!), 4 * PAGE_BYTES);
    const { id } = writeSnapshot([object]);
    const codes = await client(
      fileOf(id, 'root'),
      {},
      `const fd = fs.openSync(file, 'r'); const page = Buffer.alloc(PAGE);
       return [3, 4].map((index) => {
         try { return fs.readSync(fd, page, 0, PAGE, index * PAGE); } catch (e) { return e.code; }
       });`,
    );
    expect(codes).toEqual([PAGE_BYTES, 'EIO']);
  });

  test.each(['ready', 'nothing'])(
    'a pending snapshot: readers wait, then %s is said',
    async (word) => {
      const object = randomObject('ram', 400, 2, 11);
      const { id, number } = writeSnapshot([object], { pending: true });
      const size = await client(fileOf(id), {}, 'return fs.statSync(file).size;');
      expect(size).toBe(400 * PAGE_BYTES);
      const hashes = [1, 2].map((seed) => client(fileOf(id), { seed }, HASH_ALL));
      await until('a READ waits', async () => (await stats()).parkedReads > 0);
      await expect(command('ready', { snapshot: id })).rejects.toThrow('pending');
      writeLayers(object);
      writeSnapshot([object], { number });
      if (word === 'ready') await command('ready', { snapshot: id });
      const expected = hashOf(contentOf(object));
      expect(await Promise.all(hashes)).toEqual([expected, expected]);
      expect((await stats()).parkedReads).toBe(0);
    },
  );

  test('a pending snapshot that is dropped: its readers get an error', async () => {
    const object = randomObject('ram', 10, 1, 12);
    const { id } = writeSnapshot([object], { pending: true });
    const reader = client(
      fileOf(id),
      {},
      `const page = Buffer.alloc(PAGE);
       try { return fs.readSync(fs.openSync(file, 'r'), page, 0, PAGE, 0); } catch (e) { return e.code; }`,
    );
    await until('a READ waits', async () => (await stats()).parkedReads > 0);
    fs.rmSync(path.join(run, 'snapshots', id), { recursive: true });
    await command('drop', { snapshot: id });
    expect(await reader).toBe('EIO');
  });

  test('a dropped snapshot leaves nothing open and no name', async () => {
    const object = randomObject('ram', 300, 2, 13);
    writeLayers(object);
    const { id } = writeSnapshot([object]);
    expect(await client(fileOf(id), { seed: 1 }, HASH_ALL)).toBe(hashOf(contentOf(object)));
    const open = () =>
      fs
        .readdirSync(`/proc/${pager.pid}/fd`)
        .map((fd) => readLink(`/proc/${pager.pid}/fd/${fd}`))
        .filter((file) => object.layers.includes(path.basename(file)));
    expect(open()).toHaveLength(2);
    fs.rmSync(path.join(run, 'snapshots', id), { recursive: true });
    await command('drop', { snapshot: id });
    expect(open()).toEqual([]);
    const code = await client(
      fileOf(id),
      {},
      `try { fs.statSync(file); return 'found'; } catch (e) { return e.code; }`,
    );
    expect(code).toBe('ENOENT');
    await command('drop', { snapshot: id });
  });

  test('of a dropped snapshot the kernel keeps no page', async () => {
    const object = randomObject('ram', 10, 1, 18);
    writeLayers(object);
    const { id } = writeSnapshot([object]);
    const [seen, dropped] = [path.join(root, 'seen'), path.join(root, 'dropped')];
    const reader = client(
      fileOf(id),
      { seen, dropped },
      `const fd = fs.openSync(file, 'r');
       const page = Buffer.alloc(PAGE);
       const read = () => { try { return fs.readSync(fd, page, 0, PAGE, 0); } catch (e) { return e.code; } };
       const first = [read(), read()];
       fs.writeFileSync(args.seen, '');
       while (!fs.existsSync(args.dropped)) await new Promise((resolve) => setTimeout(resolve, 5));
       return [...first, read()];`,
    );
    await until('it was read', async () => fs.existsSync(seen));
    fs.rmSync(path.join(run, 'snapshots', id), { recursive: true });
    await command('drop', { snapshot: id });
    fs.writeFileSync(dropped, '');
    expect(await reader).toEqual([PAGE_BYTES, PAGE_BYTES, 'EIO']);
  });

  test('layers that another snapshot stands on stay open', async () => {
    const object = randomObject('ram', 300, 2, 14);
    writeLayers(object);
    const first = writeSnapshot([object]);
    const second = writeSnapshot([object]);
    for (const { id } of [first, second]) await client(fileOf(id), {}, 'map()[0];');
    await command('drop', { snapshot: first.id });
    const hash = await client(fileOf(second.id), { seed: 1 }, HASH_ALL);
    expect(hash).toBe(hashOf(contentOf(object)));
  });

  test('fresh memory is pushed: the pages around a touched one are not asked for', async () => {
    const entries = new Uint16Array(64);
    const { id } = writeSnapshot([{ name: 'ram', entries, layers: [] }]);
    await client(fileOf(id), {}, 'return map()[5 * PAGE];');
    // Of 16 pages the first is left out to see who comes by, and the touched one is there.
    await until('the block is pushed', async () => (await objectStats(id)).storedPages >= 14);
    const before = await objectStats(id);
    const zeros = await client(
      fileOf(id),
      {},
      'return map().subarray(PAGE, 16 * PAGE).every((byte) => byte === 0);',
    );
    expect(zeros).toBe(true);
    expect((await objectStats(id)).reads).toBe(before.reads);
  });

  test('memory that is gone through is pushed ahead, and stray touches push nothing', async () => {
    const object = { ...randomObject('ram', 4096, 1, 23), entries: new Uint16Array(4096).fill(1) };
    writeLayers(object);
    const { id } = writeSnapshot([object]);
    const strays = 'const bytes = map(); for (let at = 3; at < 4096; at += 64) bytes[at * PAGE];';
    await client(fileOf(id), {}, strays);
    expect(await objectStats(id)).toMatchObject({ reads: 4096 / 64, aheadPages: 0 });
    await client(fileOf(id), { pages: 6 }, 'map().fill(1, 0, args.pages * PAGE);');
    await until('the block is pushed', async () => (await objectStats(id)).aheadPages >= 10);
    // Not faster than a busy machine can push.
    const goes = `const bytes = map();
      for (let page = 0; page < bytes.length / PAGE; page++) {
        if (page % 16 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
        bytes[page * PAGE];
      }
      return hash(bytes);`;
    expect(await client(fileOf(id), {}, goes)).toBe(hashOf(contentOf(object)));
    expect((await objectStats(id)).reads).toBeLessThan(4096 / 2);
  });

  test('readers and pushes at once: no dead-lock, no wrong byte', async () => {
    const objects = [21, 22].map((seed) => {
      const object = randomObject('ram', 20_000, 2, seed);
      // Mostly fresh, so that pushes and READs meet all over.
      for (let page = 0; page < object.entries.length; page += 1) {
        if (page % 5 !== 0) object.entries[page] = 0;
      }
      writeLayers(object);
      return { object, ...writeSnapshot([object]) };
    });
    const readers = objects.flatMap(({ id }) =>
      [1, 2, 3].map((seed) =>
        client(
          fileOf(id),
          { seed },
          `const bytes = map(args.seed === 3);
           if (args.seed === 2) for (let at = 0; at < bytes.length; at += PAGE) bytes[at] ^= 0;
           ${HASH_ALL.replace('const bytes = map(args.huge);', '')}`,
        ),
      ),
    );
    const expected = objects.flatMap(({ object }) => Array(3).fill(hashOf(contentOf(object))));
    expect(await Promise.all(readers)).toEqual(expected);
  });

  test(
    `${KILLS} pagers are killed one after another, and readers get every byte`,
    async () => {
      for (let kills = 0, seed = 30; kills < KILLS; seed += 3) {
        const object = randomObject('ram', 20_000, 3, seed);
        // Mostly fresh memory in every second one, so that kills meet pushes too.
        for (let page = 0; seed % 2 === 0 && page < object.entries.length; page += 1) {
          if (page % 5 !== 0) object.entries[page] = 0;
        }
        writeLayers(object);
        const { id } = writeSnapshot([object]);
        let isRead = false;
        const hashes = Promise.all(
          [1, 2, 3].map((reader) =>
            client(fileOf(id), { seed: seed + reader, huge: reader === 3 }, HASH_ALL),
          ),
        ).finally(() => {
          isRead = true;
        });
        hashes.catch(() => {}); // said below
        for (; !isRead; kills += 1) {
          // On a busy machine all would be killed before they have served a page.
          if (kills % 2 === 1) await until('it serves', async () => isRead || (await hasServed()));
          await delay(Math.random() * KILL_INTERVAL_MS_MAX);
          await killPager();
          pager = await startPager({ fuseFd, runFolder: run });
        }
        expect(await hashes).toEqual(Array(3).fill(hashOf(contentOf(object))));
        await command('drop', { snapshot: id });
        for (const layer of object.layers) fs.rmSync(path.join(run, 'layers', layer));
      }
    },
    limitMs(300_000),
  );

  test('a READ that a killed pager had taken is answered by the next one', async () => {
    const object = randomObject('ram', 400, 2, 17);
    const { id, number } = writeSnapshot([object], { pending: true });
    const readers = [1, 2].map((seed) => client(fileOf(id), { seed }, HASH_ALL));
    await until('a READ waits', async () => (await stats()).parkedReads > 0);
    await killPager();
    writeLayers(object);
    writeSnapshot([object], { number });
    pager = await startPager({ fuseFd, runFolder: run });
    const expected = hashOf(contentOf(object));
    expect(await Promise.all(readers)).toEqual([expected, expected]);
  });

  // So is a pager that is killed while it pushes a page that somebody reads: were it waited for, nobody
  // would start the next one.
  test('a killed process counts as ended while a thread of it waits for a page', async () => {
    const object = randomObject('ram', 16, 1, 18);
    const { id, number } = writeSnapshot([object], { pending: true });
    // A fault in a thread that is not the first.
    const faults = `
      const koffi = require('koffi');
      const mmap = koffi.load('libc.so.6').func('void *mmap(void *, size_t, int, int, int, long)');
      const fd = require('node:fs').openSync(process.argv[2]);
      new Uint8Array(koffi.view(mmap(null, 4096, 1, 2, fd, 0), 4096))[0];`;
    const thread = `new (require('node:worker_threads').Worker)(
      ${JSON.stringify(faults)}, { eval: true, argv: [process.argv[1]] });`;
    const child = spawn(process.execPath, ['-e', thread, fileOf(id)], { stdio: 'ignore' });
    const reaped = once(child, 'exit');
    const ended = endOf(child);
    await until('a READ waits', async () => (await stats()).parkedReads > 0);
    child.kill('SIGKILL');
    await ended;
    expect(child.signalCode).toBeNull();
    writeLayers(object);
    writeSnapshot([object], { number });
    await command('ready', { snapshot: id });
    expect(await reaped).toEqual([null, 'SIGKILL']);
  });

  test('what clones touched first outlives the pager, and is pushed to later ones', async () => {
    const touched = [700, 3, 512, 90, 41];
    const object = { name: 'ram', entries: new Uint16Array(1000).fill(1), layers: ['touched'] };
    writeLayers(object);
    const { id } = writeSnapshot([object]);
    const touch = 'const bytes = map(false); return args.pages.map((page) => bytes[page * PAGE]);';
    await client(fileOf(id), { pages: touched }, touch);
    // Each is noted after it was answered.
    await until('all are noted', async () => {
      const { pages } = (await command('faults', { snapshot: id })) as { pages: number[] };
      return pages.length === touched.length;
    });
    await killPager();
    pager = await startPager({ fuseFd, runFolder: run, replays: false });
    const open = 'fs.openSync(file, "r"); return null;';
    await client(fileOf(id), {}, open);
    await until('it is loaded', async () => (await stats()).objects.length > 0);
    // Time enough for a push, which takes less than to start a process.
    await client(fileOf(id), {}, open);
    expect((await objectStats(id)).replayedPages).toBe(0);
    await killPager();
    pager = await startPager({ fuseFd, runFolder: run });
    await client(fileOf(id), {}, open);
    await until('it is pushed to the next one of the same', async () => {
      const { objects } = await stats();
      return objects.some((of) => of.snapshot === id && of.replayedPages === touched.length);
    });
    const later = writeSnapshot([{ ...object, layers: ['touched'] }]);
    // The kernel takes pages only of a file that it knows.
    await client(fileOf(later.id), {}, open);
    await command('ready', { snapshot: later.id, like: [id] });
    expect((await objectStats(id)).firstTouches).toBe(touched.length);
    // Two that are answered by two threads may change places.
    const noted = async (snapshot: string) => {
      const { pages } = (await command('faults', { snapshot })) as { pages: number[] };
      return pages.toSorted((a, b) => a - b);
    };
    const expected = touched.toSorted((a, b) => a - b);
    expect(await noted(id)).toEqual(expected);
    await until('they are pushed', async () => {
      return (await objectStats(later.id)).replayedPages === touched.length;
    });
    expect(await noted(later.id)).toEqual(expected);
  });

  test('SIGTERM ends it at once, and its successor serves what it had open', async () => {
    const object = randomObject('ram', 300, 2, 16);
    writeLayers(object);
    const { id } = writeSnapshot([object]);
    const [stopped, hash] = await Promise.all([
      pager.stop().then(async (exit) => {
        pager = await startPager({ fuseFd, runFolder: run });
        return exit;
      }),
      client(fileOf(id), { seed: 1 }, HASH_ALL),
    ]);
    expect(stopped).toEqual({ code: 0, signal: null });
    expect(hash).toBe(hashOf(contentOf(object)));
  });

  test('SIGINT and SIGHUP are not for the pager', async () => {
    for (const signal of ['SIGINT', 'SIGHUP'] as const) process.kill(pager.pid, signal);
    expect(await command('ping')).toEqual({ pid: pager.pid });
  });

  test('the control socket answers nonsense with an error and goes on', async () => {
    await expect(command('dance')).rejects.toThrow('there is no command dance');
    await expect(command('constructor')).rejects.toThrow('there is no command');
    await expect(command('drop', { snapshot: 5 })).rejects.toThrow();
    await expect(command('ready', { snapshot: '../..' })).rejects.toThrow('there is no snapshot');
    const socket = net.connect(path.join(run, 'pager.sock'));
    socket.on('error', () => {});
    socket.write('x'.repeat(COMMAND_LINE_BYTES_MAX + 1));
    await once(socket, 'close');
    expect(await command('ping')).toEqual({ pid: pager.pid });
  });

  test('every READ is in the latency histogram', async () => {
    const { objects, latencyUsBuckets } = await stats();
    const reads = objects.reduce((sum, object) => sum + object.reads, 0);
    const counted = latencyUsBuckets.reduce((sum, count) => sum + count, 0);
    // Those of dropped snapshots, and READs past an end, are only there.
    expect(counted).toBeGreaterThanOrEqual(reads);
    expect(reads).toBeGreaterThan(0);
  });

  // Last: it ends the mount.
  test('when the mount has gone, the pager ends', async () => {
    await unmountFuse(mountPoint);
    expect(await pager.exited).toEqual({ code: 0, signal: null });
    await unmountFuse(mountPoint);
  });
});

async function killPager(): Promise<void> {
  process.kill(pager.pid, 'SIGKILL');
  await pager.exited;
}

function readLink(file: string): string {
  try {
    return fs.readlinkSync(file);
  } catch {
    return '';
  }
}

/** Makes the kernel drop a file's pages, so that reading them waits for the disk. */
async function evict(file: string): Promise<void> {
  const { default: koffi } = await import('koffi');
  const fadvise = koffi
    .load('libc.so.6')
    .func('int posix_fadvise(int descriptor, long offset, long length, int advice)');
  const fd = fs.openSync(file, 'r');
  fs.fsyncSync(fd);
  expect(fadvise(fd, 0, 0, 4)).toBe(0);
  fs.closeSync(fd);
}
