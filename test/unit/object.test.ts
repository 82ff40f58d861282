// A paged object over files in memory: every page comes from the layer that the map names.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {
  ObjectError,
  PAGE_BYTES,
  PagedObject,
  readWaiting,
  WOULD_BLOCK,
} from '@snowfork/memserver';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';

const LAYERS = 3;
const PAGES = 64;
let folder: string;
const layers: { descriptor: number; onDisk: boolean }[] = [];

/** Each page of each layer says which it is, all over. */
function pageOf(layer: number, page: number): Buffer {
  return Buffer.alloc(PAGE_BYTES, layer === 0 ? 0 : `${layer}:${page};`);
}

beforeAll(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-object-'));
  for (let layer = 1; layer <= LAYERS; layer += 1) {
    const file = path.join(folder, String(layer));
    const pages = Array.from({ length: PAGES }, (_, page) => pageOf(layer, page));
    fs.writeFileSync(file, Buffer.concat(pages));
    layers.push({ descriptor: fs.openSync(file, 'r'), onDisk: false });
  }
});

afterAll(() => {
  for (const { descriptor } of layers) fs.closeSync(descriptor);
  fs.rmSync(folder, { recursive: true });
});

const maps = fc
  .array(fc.tuple(fc.integer({ min: 0, max: LAYERS }), fc.integer({ min: 1, max: 9 })), {
    minLength: 1,
    maxLength: 12,
  })
  .map((runs) => runs.flatMap(([layer, length]) => new Array<number>(length).fill(layer)))
  .map((entries) => Uint16Array.from(entries.slice(0, PAGES)));

function objectOf(entries: Uint16Array, sizeBytes = entries.length * PAGE_BYTES): PagedObject {
  return new PagedObject({ entries, layers, sizeBytes });
}

test('any range has exactly the bytes of the layers that the map names', () => {
  const property = fc.property(maps, fc.nat(), fc.nat(), (entries, from, length) => {
    const first = from % entries.length;
    const count = 1 + (length % (entries.length - first));
    const buffer = Buffer.alloc(count * PAGE_BYTES, 'what was there before');
    expect(objectOf(entries).readInto(buffer, first, count)).toBe(true);
    for (let page = first; page < first + count; page += 1) {
      const at = (page - first) * PAGE_BYTES;
      const expected = pageOf(entries[page]!, page);
      expect(buffer.subarray(at, at + PAGE_BYTES).equals(expected), `page ${page}`).toBe(true);
    }
  });
  fc.assert(property);
});

test('runs cover a range without gap, each in one layer and as long as can be', () => {
  const property = fc.property(maps, (entries) => {
    const object = objectOf(entries);
    let page = 0;
    let before: number | undefined;
    while (page < entries.length) {
      const run = object.runLength(page, entries.length - page);
      const layer = object.layerOf(page);
      expect(layer).not.toBe(before);
      expect([...entries.subarray(page, page + run)].every((entry) => entry === layer)).toBe(true);
      before = layer;
      page += run;
    }
    expect(page).toBe(entries.length);
  });
  fc.assert(property);
});

test('a range is zero only if all of its pages are', () => {
  const object = objectOf(Uint16Array.of(0, 0, 1, 0));
  expect(object.isZero(0, 2)).toBe(true);
  expect(object.isZero(0, 3)).toBe(false);
  expect(object.isZero(2, 1)).toBe(false);
  expect(object.isZero(3, 1)).toBe(true);
});

test('after the last byte there are zeros, also where the layer goes on', () => {
  const object = objectOf(Uint16Array.of(1, 1), PAGE_BYTES + 100);
  const buffer = Buffer.alloc(3 * PAGE_BYTES, 0xff);
  expect(object.readInto(buffer, 0, 3)).toBe(true);
  const expected = Buffer.alloc(3 * PAGE_BYTES);
  pageOf(1, 0).copy(expected);
  pageOf(1, 1).copy(expected, PAGE_BYTES, 0, 100);
  expect(buffer.equals(expected)).toBe(true);
});

test('a layer that ends too early is an error, not zeros', () => {
  const short = path.join(folder, 'short');
  fs.writeFileSync(short, pageOf(1, 0));
  const descriptor = fs.openSync(short, 'r');
  const object = new PagedObject({
    entries: Uint16Array.of(1, 1),
    layers: [{ descriptor, onDisk: false }],
    sizeBytes: 2 * PAGE_BYTES,
  });
  const buffer = Buffer.alloc(2 * PAGE_BYTES);
  expect(() => object.readInto(buffer, 0, 2)).toThrow(ObjectError);
  fs.closeSync(descriptor);
});

test('a read that would have to wait is said to, and pages of zeros never wait', () => {
  const object = objectOf(Uint16Array.of(0, 1));
  const buffer = Buffer.alloc(2 * PAGE_BYTES);
  expect(object.readInto(buffer, 0, 2, () => WOULD_BLOCK)).toBe(false);
  expect(object.readInto(buffer, 0, 1, () => WOULD_BLOCK)).toBe(true);
});

test('a read in pieces gives the same bytes', () => {
  const object = objectOf(Uint16Array.of(1, 1, 1));
  const whole = Buffer.alloc(3 * PAGE_BYTES);
  const pieces = Buffer.alloc(3 * PAGE_BYTES);
  object.readInto(whole, 0, 3);
  object.readInto(pieces, 0, 3, (layer, buffer, offset, lengthBytes, position) =>
    readWaiting(layer, buffer, offset, Math.min(lengthBytes, 1000), position),
  );
  expect(pieces.equals(whole)).toBe(true);
});

test('a map that does not fit the size is refused', () => {
  expect(() => objectOf(Uint16Array.of(0, 0), PAGE_BYTES)).toThrow(ObjectError);
  expect(() => objectOf(Uint16Array.of(0), PAGE_BYTES + 1)).toThrow(ObjectError);
});
