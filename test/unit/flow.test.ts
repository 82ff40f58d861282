// What waits to be sent in one flow: demand in front, each page once, and so many.

import { CHANNEL, QUEUE_PAGES_MAX, URGENCY, type Urgency } from '@snowfork/memserver';
import { beforeEach, expect, test } from 'vitest';
import { Flow } from '../../packages/memserver/src/server/flow.js';
import {
  type KnownReceiver,
  KnownReceivers,
} from '../../packages/memserver/src/server/known-receivers.js';

const LAYER = 2;
const { demand, prefetch } = URGENCY;
let flow: Flow;
let askers: KnownReceiver[];

beforeEach(() => {
  flow = new Flow({ receiver: undefined, bytesPerSecond: 1, nowMs: 0 });
  const receivers = new KnownReceivers({ rateStart: 1, rateMax: 1 });
  const from = { host: '10.0.0.1', port: 1 };
  const of = { from, delivery: CHANNEL.group, nowMs: 0, groupSequence: 0 };
  askers = [1, 2].map((id) => receivers.heard(id, of)!);
});

function ask(urgency: Urgency, page: number, by = 0): string {
  const asker = askers[by]!;
  return flow.add(urgency, { layer: LAYER, page, pieces: 1, asker, isRepair: true });
}

test('a page that waits as prefetch and is in demand goes to the front, once', () => {
  for (const page of [5, 6, 7]) expect(ask(prefetch, page)).toBe('added');
  ask(demand, 7, 1);
  expect(flow.queues[demand].first()).toMatchObject({ page: 7, isShared: true });
  expect(flow.queues[prefetch].has(LAYER, 7)).toBe(false);
  expect(ask(prefetch, 7)).toBe('merged');
  expect(flow.size).toBe(3);
});

test('a page that several wanted ahead is for all of them when one demands it', () => {
  for (const by of [0, 1]) ask(prefetch, 7, by);
  ask(demand, 7);
  expect(flow.queues[demand].first()).toMatchObject({ page: 7, isShared: true });
});

test('so many pages wait, and none of them is lost for one that does not fit', () => {
  for (let page = 0; page < QUEUE_PAGES_MAX; page++) {
    if (ask(demand, page) !== 'added') expect.fail(`page ${page} is not taken`);
    ask(prefetch, QUEUE_PAGES_MAX + page);
  }
  expect(ask(demand, QUEUE_PAGES_MAX)).toBe('full');
  expect(ask(prefetch, 2 * QUEUE_PAGES_MAX)).toBe('full');
  expect(ask(demand, 0)).toBe('merged');
  expect(flow.has(LAYER, QUEUE_PAGES_MAX)).toBe(true);
  expect(flow.size).toBe(2 * QUEUE_PAGES_MAX);
});
