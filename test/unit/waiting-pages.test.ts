// Pages of a replica that neighbours asked for and that are not here yet: what the host is told, who
// gets them when they come, and how many may wait.

import { once } from 'node:events';
import fs from 'node:fs';
import net, { type Socket } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { ASKERS_MAX, URGENCY, WAITING_PAGES_MAX, type WantedPage } from '@snowfork/memserver';
import { beforeEach, expect, test } from 'vitest';
import { WantedLine } from '../../packages/memserver/src/net/wanted-line.js';
import {
  type KnownReceiver,
  KnownReceivers,
} from '../../packages/memserver/src/server/known-receivers.js';
import { WaitingPages } from '../../packages/memserver/src/server/waiting-pages.js';
import { eventually } from '../support/eventually.js';

const LAYER = 2;
const { demand, prefetch } = URGENCY;
let here: Set<number>;
let told: WantedPage[];
let given: string[];
let waiting: WaitingPages;
let receivers: KnownReceivers;

beforeEach(() => {
  here = new Set();
  told = [];
  given = [];
  receivers = new KnownReceivers({ rateStart: 1, rateMax: 1 });
  waiting = new WaitingPages({
    source: { readPage: (_, page) => here.has(page), isAwaited: (_, page) => !here.has(page) },
    wanted: (pages) => told.push(...pages.map((page) => ({ ...page }))),
  });
});

function receiver(id: number): KnownReceiver {
  const from = { host: '10.0.0.1', port: id };
  return receivers.heard(id, { from, delivery: 1, nowMs: 0, groupSequence: 0 })!;
}

function ask(page: number, of: { nowMs?: number; by?: number; urgency?: 0 | 1 } = {}) {
  const { nowMs = 0, by = 1, urgency = demand } = of;
  return waiting.take({ layer: LAYER, page, urgency, asker: receiver(by) }, nowMs);
}

function advance(nowMs: number): void {
  waiting.advance(nowMs, ({ page }, { id }) => given.push(`${page} to ${id}`));
}

test('a page that is here need not wait', () => {
  here.add(7);
  expect(ask(7)).toBeUndefined();
  expect(waiting.nextMs).toBe(Number.POSITIVE_INFINITY);
});

test('one that is not goes to each who asked, once, when it has come', () => {
  expect(ask(7)).toBe('added');
  expect(ask(7, { by: 2 })).toBe('merged');
  expect(ask(7)).toBe('merged');
  advance(10);
  expect(given).toEqual([]);
  here.add(7);
  advance(20);
  advance(30);
  expect(given).toEqual(['7 to 1', '7 to 2']);
  expect(waiting.size).toBe(0);
});

test('the host is told once of a page, again when somebody waits for it, and when it takes long', () => {
  ask(7, { urgency: prefetch });
  ask(7, { urgency: prefetch, nowMs: 10 });
  advance(10);
  expect(told).toMatchObject([{ layer: LAYER, page: 7, urgency: prefetch }]);
  ask(7, { nowMs: 20 });
  advance(20);
  expect(told.slice(1)).toMatchObject([{ page: 7, urgency: demand }]);
  ask(7, { nowMs: 400 });
  advance(400);
  expect(told).toHaveLength(3);
});

test('what nobody asks for any more is forgotten', () => {
  ask(7);
  advance(10);
  advance(10_000);
  expect(waiting.size).toBe(0);
  here.add(7);
  advance(10_010);
  expect(given).toEqual([]);
});

test('so many pages may wait, and so many ask for one', () => {
  for (let page = 0; page < WAITING_PAGES_MAX; page++) expect(ask(page)).toBe('added');
  expect(ask(WAITING_PAGES_MAX)).toBe('full');
  for (let by = 2; by <= ASKERS_MAX; by++) expect(ask(0, { by })).toBe('merged');
  expect(ask(0, { by: ASKERS_MAX + 1 })).toBe('full');
});

test('what the host does not read is not kept for it, and what it can read is told again', async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-wanted-'));
  const socket = path.join(folder, 'socket');
  const host = net.createServer().listen(socket);
  await once(host, 'listening');
  const line = new WantedLine(socket);
  const of = { snapshot: 's1', key: 'k' };
  const tell = (page: number) => line.tell(of, [{ layer: LAYER, page, urgency: demand }]);
  const connected = once(host, 'connection');
  for (let count = 0; count < 10_000; count++) tell(7);
  const [peer] = (await connected) as [Socket];
  let text = '';
  peer.on('data', (chunk) => {
    text += String(chunk);
  });
  await eventually(() => {
    tell(8);
    expect(text).toContain('[[8,1]]');
  });
  const kept = text.split('[[7,1]]').length - 1;
  expect(kept).toBeGreaterThan(1000);
  expect(kept).toBeLessThan(5000);
  line.close();
  peer.destroy();
  host.close();
  fs.rmSync(folder, { recursive: true, force: true });
});
