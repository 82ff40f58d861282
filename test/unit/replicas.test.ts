// Which pages of replicas stay when there are too many: what is read is what was put, or is not here.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { HeldPages } from '@snowfork/memserver/pages';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { type Replica, Replicas } from '../../packages/clone-agent/src/pager/replicas.js';

const PAGE_BYTES = 4096;
const PAGES = 2048;
const PAGES_MAX = 1000;

let folder: string;
let replicas: Replicas;
const mapped: HeldPages[] = [];

beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-replicas-'));
  fs.mkdirSync(path.join(folder, 'layers'));
  replicas = new Replicas(folder, () => PAGES_MAX);
});
afterEach(() => {
  for (const held of mapped.splice(0)) held.unmap();
  fs.rmSync(folder, { recursive: true });
});

function layer(id: string): string {
  return path.join(folder, 'layers', id);
}

function open(id: string, of = replicas): Replica {
  if (!fs.existsSync(layer(id))) {
    HeldPages.create(`${layer(id)}.held`, PAGES);
    fs.writeFileSync(layer(id), '');
    fs.truncateSync(layer(id), PAGES * PAGE_BYTES);
  }
  const held = HeldPages.map(`${layer(id)}.held`);
  mapped.push(held);
  return of.acquire(id, held);
}

function put(replica: Replica, first: number, count: number): void {
  for (let page = first; page < first + count; page += 1) {
    replica.put(page, Buffer.alloc(PAGE_BYTES, 1 + (page % 255)), 0);
    replicas.note(replica, page);
  }
}

function heldOf({ held }: Replica): number[] {
  return Array.from({ length: PAGES }, (_, page) => page).filter((page) => held.has(page));
}

/** Every page that is said to be here has its bytes. */
function assertWhole(replica: Replica): void {
  const bytes = fs.readFileSync(layer(replica.id));
  for (const page of heldOf(replica)) {
    const found = bytes.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
    expect(found.equals(Buffer.alloc(PAGE_BYTES, 1 + (page % 255)))).toBe(true);
  }
}

test('the oldest pages leave, and their place in the file with them', () => {
  const replica = open('one');
  put(replica, 0, PAGES);
  const held = heldOf(replica);
  expect(held.length).toBe(replicas.pages);
  expect(held.length).toBeLessThanOrEqual(PAGES_MAX);
  expect(held.at(0)).toBe(PAGES - held.length);
  expect(replicas.evicted).toBe(PAGES - held.length);
  expect(fs.statSync(layer('one')).blocks * 512).toBeLessThanOrEqual(PAGES_MAX * PAGE_BYTES);
  assertWhole(replica);
});

test('a page that left and came again is here again', () => {
  const replica = open('one');
  for (let round = 0; round < 3; round += 1) put(replica, 0, PAGES_MAX + 300);
  expect(replica.held.has(PAGES_MAX + 299)).toBe(true);
  expect(heldOf(replica).length).toBeLessThanOrEqual(PAGES_MAX);
  assertWhole(replica);
});

test('all replicas share the room', () => {
  const [one, two] = [open('one'), open('two')];
  put(one, 0, 800);
  put(two, 0, 800);
  expect(heldOf(one).length + heldOf(two).length).toBeLessThanOrEqual(PAGES_MAX);
  expect(heldOf(two).length).toBe(800);
});

test('pages of a pinned replica stay', () => {
  const [pinned, other] = [open('pinned'), open('other')];
  put(pinned, 0, 500);
  pinned.held.pin();
  put(other, 0, PAGES);
  put(pinned, 500, 1500);
  expect(heldOf(pinned).length).toBe(2000);
  expect(heldOf(other).length).toBeLessThanOrEqual(PAGES_MAX);
  assertWhole(pinned);
});

test('what another pager has kept counts, and leaves too', () => {
  put(open('one'), 0, 900);
  const next = new Replicas(folder, () => PAGES_MAX);
  const again = open('one', next);
  expect(next.pages).toBe(900);
  for (let page = 1000; page < 1400; page += 1) {
    again.put(page, Buffer.alloc(PAGE_BYTES, 1 + (page % 255)), 0);
    next.note(again, page);
  }
  expect(heldOf(again).length).toBeLessThanOrEqual(PAGES_MAX);
  expect(again.held.has(1399)).toBe(true);
});

test('a replica that nothing uses any more takes no room of others', () => {
  const [gone, stays] = [open('gone'), open('stays')];
  put(gone, 0, 900);
  replicas.release(gone);
  expect(replicas.pages).toBe(0);
  put(stays, 0, 900);
  expect(heldOf(stays).length).toBe(900);
});

describe('on a full tmpfs', () => {
  const write = fs.writeSync;
  /** Files of layers may have no more pages than that. */
  const holdAtMost = (pages: number) => {
    const full = Object.assign(new Error('no space left on device'), { code: 'ENOSPC' });
    const used = () =>
      fs
        .readdirSync(path.join(folder, 'layers'))
        .filter((name) => !name.endsWith('.held'))
        .reduce((sum, name) => sum + (fs.statSync(layer(name)).blocks * 512) / PAGE_BYTES, 0);
    vi.spyOn(fs, 'writeSync').mockImplementation((...args: Parameters<typeof write>) => {
      if (used() >= pages) throw full;
      return write(...args);
    });
  };
  const keep = (replica: Replica, page: number) =>
    replicas.put(replica, page, Buffer.alloc(PAGE_BYTES, 1 + (page % 255)), 0);
  afterEach(() => void vi.restoreAllMocks());

  test('the oldest pages go for one that comes', () => {
    const [pinned, other] = [open('pinned'), open('other')];
    holdAtMost(40);
    for (let page = 0; page < 20; page += 1) keep(pinned, page);
    pinned.held.pin();
    for (let page = 0; page < 100; page += 1) keep(other, page);
    expect(heldOf(pinned).length).toBe(20);
    expect(other.held.has(99)).toBe(true);
    for (const replica of [pinned, other]) assertWhole(replica);
  });

  test('a page for which none can go is not here', () => {
    const pinned = open('pinned');
    pinned.held.pin();
    holdAtMost(20);
    for (let page = 0; page < 20; page += 1) keep(pinned, page);
    expect(() => keep(pinned, 20)).toThrow('no space');
    expect(heldOf(pinned).length).toBe(20);
  });
});

test('pages of a pinned replica stay with another pager, too', () => {
  const pinned = open('pinned');
  pinned.held.pin();
  put(pinned, 0, 500);
  replicas = new Replicas(folder, () => PAGES_MAX);
  const [again, other] = [open('pinned'), open('other')];
  put(other, 0, PAGES);
  expect(heldOf(again).length).toBe(500);
  assertWhole(again);
});

test('replicas that come and go leave the others their pages and their turn', () => {
  const stays = open('stays');
  put(stays, 0, 300);
  for (let round = 0; round < 5; round += 1) {
    const goes = open(`goes${round}`);
    put(goes, 0, 100);
    replicas.release(goes);
    expect(replicas.pages).toBe(300);
  }
  put(stays, 300, 900);
  const held = heldOf(stays);
  expect(held.length).toBe(replicas.pages);
  expect(held.length).toBeLessThanOrEqual(PAGES_MAX);
  expect(held.at(0)).toBe(1200 - held.length);
  assertWhole(stays);
});
