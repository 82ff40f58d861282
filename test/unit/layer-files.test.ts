// Pages of layers as the memory server reads them: whole layers, replicas of which some pages are
// here, and pages that leave while they are read.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { HeldPages, LayerFiles, PAGE_BYTES } from '@snowfork/memserver';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { eventually } from '../support/eventually.js';

const PAGES = 8;
const PAGES_READ = 20_000;
const page = Buffer.alloc(PAGE_BYTES, 0xaa);
let folder: string;
let file: string;
let files: LayerFiles;
const target = Buffer.alloc(2 * PAGE_BYTES);
beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-layer-'));
  file = path.join(folder, 'layer');
  fs.writeFileSync(file, Buffer.alloc(PAGES * PAGE_BYTES, 0xaa));
  files = new LayerFiles();
});
afterEach(() => {
  files.close();
  fs.rmSync(folder, { recursive: true });
});

function read(layer: number, index: number): string | undefined {
  target.fill(0x11);
  if (!files.readPage(layer, index, target, PAGE_BYTES)) return undefined;
  expect(target.subarray(0, PAGE_BYTES).every((byte) => byte === 0x11)).toBe(true);
  return target.toString('hex', PAGE_BYTES);
}
const whole = page.toString('hex');

test('pages of a whole layer are here, to its end and not after it', () => {
  fs.appendFileSync(file, 'end');
  files.set([{ path: file }]);
  expect(read(0, 0)).toBe(whole);
  expect(read(0, PAGES - 1)).toBe(whole);
  expect(read(0, PAGES)).toBe(
    Buffer.from('end')
      .toString('hex')
      .padEnd(PAGE_BYTES * 2, '0'),
  );
  expect(read(0, PAGES + 1)).toBe(undefined);
  expect(read(1, 0)).toBe(undefined);
  expect(read(0, 2 ** 32 - 1)).toBe(undefined);
});

test('pages of a replica are here when their bit says so', () => {
  const held = `${file}.held`;
  HeldPages.create(held, PAGES);
  const map = HeldPages.map(held);
  files.set([{ path: file, held }]);
  expect(read(0, 3)).toBe(undefined);
  map.set(3);
  expect(read(0, 3)).toBe(whole);
  map.clear([3], () => expect(read(0, 3)).toBe(undefined));
  map.unmap();
});

test('a page that is here can be read while another leaves, unless that never ends', () => {
  const held = `${file}.held`;
  HeldPages.create(held, PAGES);
  const map = HeldPages.map(held);
  files.set([{ path: file, held }]);
  map.set(3);
  map.set(4);
  map.clear([4], () => expect(read(0, 3)).toBe(undefined));
  expect(read(0, 3)).toBe(whole);
  map.unmap();
});

test('files that cannot be opened change nothing', () => {
  files.set([{ path: file }]);
  const held = `${file}.held`;
  HeldPages.create(held, 1);
  fs.truncateSync(file, 100 * PAGE_BYTES);
  expect(() => files.set([{ path: '/no/such/file' }])).toThrow('/no/such/file');
  expect(() => files.set([{ path: file }, { path: file, held }])).toThrow('not for 100 pages');
  expect(read(0, 0)).toBe(whole);
});

/** Takes page 0 away and brings it back, all the time: zeros while it is away. */
const CHURN = `import(${JSON.stringify(import.meta.resolve('@snowfork/memserver'))}).then(
  ({ HeldPages }) => {
    const fs = require('node:fs');
    const { parentPort, workerData } = require('node:worker_threads');
    const { file, held, isOver } = workerData;
    const map = HeldPages.map(held);
    const layer = fs.openSync(file, 'r+');
    const zeros = Buffer.alloc(${PAGE_BYTES});
    const bytes = Buffer.alloc(${PAGE_BYTES}, 0xaa);
    while (Atomics.load(isOver, 0) === 0) {
      map.set(0);
      for (let turn = 0; turn < 1000; turn++) Atomics.load(isOver, 0);
      map.clear([0], () => {
        fs.writeSync(layer, zeros, 0, zeros.length, 0);
        fs.writeSync(layer, bytes, 0, bytes.length, 0);
      });
    }
    map.unmap();
  },
);`;

test('a page that leaves while it is read is absent, and never other bytes', async () => {
  const held = `${file}.held`;
  HeldPages.create(held, PAGES);
  const map = HeldPages.map(held);
  files.set([{ path: file, held }]);
  const isOver = new Int32Array(new SharedArrayBuffer(4));
  const churn = new Worker(CHURN, { eval: true, workerData: { file, held, isOver } });
  const ended = new Promise((resolve, reject) => {
    churn.once('exit', resolve);
    churn.once('error', reject);
  });
  await eventually(() => expect(map.has(0)).toBe(true));
  let came = 0;
  let isRight = true;
  while (came < PAGES_READ && isRight) {
    if (!files.readPage(0, 0, target, 0)) continue;
    came++;
    isRight = target.compare(page, 0, PAGE_BYTES, 0, PAGE_BYTES) === 0;
  }
  Atomics.store(isOver, 0, 1);
  await ended;
  expect(isRight).toBe(true);
  expect(came).toBe(PAGES_READ);
  map.unmap();
});
