// What a pager has taken and not answered is found by the next one, and only that.

import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Opcode } from '../../packages/clone-agent/src/pager/fuse-wire.js';
import {
  AnsweredRequests,
  mapTakenRequests,
  TakenRequests,
} from '../../packages/clone-agent/src/pager/taken.js';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'sf-taken-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** As read(2) on /dev/fuse leaves it. */
function arrive(taken: TakenRequests, unique: number, opcode: number = Opcode.read): number {
  const request = taken.current;
  const lengthBytes = 80;
  request.fill(0, 0, lengthBytes);
  request.writeUInt32LE(lengthBytes, 0);
  request.writeUInt32LE(opcode, 4);
  request.writeUInt32LE(unique, 8);
  request.writeUInt32LE(unique % 7, 12);
  return lengthBytes;
}

const identity = (unique: number) => ({ uniqueLow: unique, uniqueHigh: unique % 7 });
/** As the next process does it, with a mapping of its own. */
const left = () => new AnsweredRequests(mapTakenRequests(folder)).left();
const uniques = () => left().map(({ request }) => request.readUInt32LE(8));

test('a request in the hands of a thread is left, whichever thread it is', () => {
  const memory = mapTakenRequests(folder);
  arrive(new TakenRequests(memory, 0), 11);
  arrive(new TakenRequests(memory, 1), 12);
  expect(uniques()).toEqual([11, 12]);
  // Nobody has answered them yet, so that the one after the next finds them too.
  expect(uniques()).toEqual([11, 12]);
});

test('what was answered at once is not left', () => {
  const taken = new TakenRequests(mapTakenRequests(folder), 0);
  arrive(taken, 11);
  taken.done();
  expect(left()).toEqual([]);
});

test('what was passed on is left until it is answered', () => {
  const memory = mapTakenRequests(folder);
  const taken = new TakenRequests(memory, 1);
  const answered = new AnsweredRequests(memory);
  for (const unique of [1, 2, 3]) {
    const slot = taken.keep(Opcode.read, arrive(taken, unique));
    answered.await(identity(unique), slot!);
    taken.done();
  }
  answered.answered(identity(2));
  answered.answered(identity(99));
  expect(uniques()).toEqual([1, 3]);
  const next = new AnsweredRequests(memory);
  for (const { request, slot } of next.left()) {
    expect(request).toHaveLength(80);
    next.await(identity(request.readUInt32LE(8)), slot);
  }
  next.answered(identity(1));
  next.answered(identity(3));
  expect(left()).toEqual([]);
});

test('what the kernel wants no answer to is not kept', () => {
  const taken = new TakenRequests(mapTakenRequests(folder), 0);
  for (const opcode of [Opcode.forget, Opcode.batchForget, Opcode.interrupt]) {
    expect(taken.keep(opcode, arrive(taken, 5, opcode))).toBeUndefined();
    taken.done();
  }
  expect(left()).toEqual([]);
});

test('when all slots are taken nothing is overwritten', () => {
  const memory = mapTakenRequests(folder);
  const taken = new TakenRequests(memory, 0);
  let kept = 0;
  while (taken.keep(Opcode.read, arrive(taken, kept + 1)) !== undefined) kept += 1;
  taken.done();
  expect(kept).toBe(2048);
  expect(uniques()).toEqual(Array.from({ length: kept }, (_, index) => index + 1));
});

test('its memory is there before it is needed, also on a tmpfs that is full later', () => {
  mapTakenRequests(folder);
  const { size, blocks } = statSync(join(folder, 'pager.requests'));
  expect(blocks * 512).toBeGreaterThanOrEqual(size);
});
