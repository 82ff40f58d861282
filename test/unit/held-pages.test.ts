// The bitmap of a replica's pages: what one process sets, others see; pages that leave are noticed by
// whoever was reading them.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { ABSENT, HeldPages } from '@snowfork/memserver';
import { afterEach, beforeEach, expect, test } from 'vitest';

const PAGES = 1000;
let folder: string;
let file: string;
beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-held-'));
  file = path.join(folder, 'held');
  HeldPages.create(file, PAGES);
});
afterEach(() => fs.rmSync(folder, { recursive: true }));

test('a page is here from when it is set until it is cleared', () => {
  const held = HeldPages.map(file);
  expect(held.has(31)).toBe(false);
  for (const page of [0, 31, 32, PAGES - 1]) held.set(page);
  expect([0, 1, 31, 32, 33, PAGES - 1].map((page) => held.has(page))).toEqual([
    true,
    false,
    true,
    true,
    false,
    true,
  ]);
  expect(held.hasAll(31, 2)).toBe(true);
  expect(held.hasAll(31, 3)).toBe(false);
  expect([...held.pages()]).toEqual([0, 31, 32, PAGES - 1]);
  held.clear([31], () => {});
  expect(held.has(31)).toBe(false);
  expect(held.has(32)).toBe(true);
  held.unmap();
});

test('what one mapping sets another has, and keeps after the first has gone', () => {
  const [writer, reader] = [HeldPages.map(file), HeldPages.map(file)];
  writer.set(7);
  writer.unmap();
  expect(reader.has(7)).toBe(true);
  reader.unmap();
});

test('another thread sees the same map by its place', async () => {
  const held = HeldPages.map(file);
  held.set(99);
  expect(HeldPages.at(held.place).has(99)).toBe(true);
  const module = new URL(import.meta.resolve('@snowfork/memserver')).href;
  const code = `import(${JSON.stringify(module)}).then(({ HeldPages }) => {
    const { parentPort, workerData } = require('node:worker_threads');
    const held = HeldPages.at(workerData);
    const before = held.has(99);
    held.set(100);
    parentPort.postMessage(before);
  });`;
  const worker = new Worker(code, { eval: true, workerData: held.place });
  const before = await new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
  await worker.terminate();
  expect(before).toBe(true);
  expect(held.has(100)).toBe(true);
  held.unmap();
});

test('whoever reads while pages leave, or finds them gone and back, is told', () => {
  const held = HeldPages.map(file);
  expect(held.guard(5, 1)).toBe(ABSENT);
  held.set(5);
  const guard = held.guard(5, 1);
  expect(held.isStill(guard)).toBe(true);
  held.clear([5], () => {
    held.set(5);
    expect(held.guard(5, 1)).toBe(ABSENT);
  });
  expect(held.has(5)).toBe(true);
  expect(held.isStill(guard)).toBe(false);
  held.unmap();
});

test('a writer that was killed while pages left stops nobody for good', () => {
  const held = HeldPages.map(file);
  held.set(5);
  const begun = () => {
    throw new Error('killed here');
  };
  expect(() => held.clear([6], begun)).toThrow('killed here');
  expect(held.guard(5, 1)).not.toBe(ABSENT);
  fs.writeFileSync(file, Buffer.from([1, 0, 0, 0]), { flag: 'r+' });
  expect(held.guard(5, 1)).toBe(ABSENT);
  held.recover();
  expect(held.guard(5, 1)).not.toBe(ABSENT);
  held.unmap();
});

test('pages that are to stay are so for whoever maps the file later', () => {
  const held = HeldPages.map(file);
  expect(held.isPinned).toBe(false);
  held.set(5);
  held.pin();
  held.unmap();
  const later = HeldPages.map(file);
  expect(later.isPinned).toBe(true);
  expect([...later.pages()]).toEqual([5]);
  later.unmap();
});

test('of any range it is known how many are here', () => {
  const held = HeldPages.map(file);
  const here = new Set<number>();
  for (let page = 0; page < PAGES; page += 1 + (page % 7) * (page % 3)) {
    held.set(page);
    here.add(page);
  }
  const ranges = [
    [0, PAGES],
    [0, 32],
    [31, 1],
    [31, 2],
    [33, 62],
    [64, 0],
    [5, 700],
  ] as const;
  for (const [first, count] of ranges) {
    const right = [...here].filter((page) => page >= first && page < first + count).length;
    expect(held.countHeld(first, count), `${count} from ${first}`).toBe(right);
  }
  held.unmap();
});
