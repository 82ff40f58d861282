// Tables of server and receiver that others can fill end somewhere: what is beyond is refused, or the
// oldest goes.

import { PageReceiver, RECEIVERS_MAX, snapshotKey } from '@snowfork/memserver';
import { expect, test } from 'vitest';
import { PREFETCH_RUNS_MAX } from '../../packages/memserver/src/receiver/prefetch-queue.js';
import {
  FORGOTTEN_MS,
  type KnownReceiver,
  KnownReceivers,
} from '../../packages/memserver/src/server/known-receivers.js';
import { SentPages } from '../../packages/memserver/src/server/sent-pages.js';

const LAYER = 2;
const from = { host: '10.0.0.1', port: 1 };

function heard(receivers: KnownReceivers, id: number, nowMs = 0): KnownReceiver | undefined {
  return receivers.heard(id, { from, delivery: 0, nowMs, groupSequence: 0 });
}

test('so many receivers are known, and those that are silent for long are forgotten', () => {
  const receivers = new KnownReceivers({ rateStart: 1, rateMax: 1 });
  for (let id = 1; id <= RECEIVERS_MAX; id++) expect(heard(receivers, id)).toBeDefined();
  expect(heard(receivers, RECEIVERS_MAX + 1)).toBeUndefined();
  const known = heard(receivers, 1, FORGOTTEN_MS);
  expect(known).toBeDefined();
  const forgotten: number[] = [];
  receivers.survey(FORGOTTEN_MS + 1, ({ id }) => forgotten.push(id));
  expect(forgotten).toHaveLength(RECEIVERS_MAX - 1);
  expect(receivers.size).toBe(1);
  expect(heard(receivers, 1)).toBe(known);
});

test('so many pages that were sent are remembered, the last ones', () => {
  const sent = new SentPages(4);
  for (let key = 0; key <= 4; key++) {
    sent.note(key, { sequence: key, sentMs: key, pieces: 1, isRepair: false });
  }
  expect(sent.size).toBe(4);
  expect(sent.find(0)).toBeUndefined();
  for (let key = 1; key <= 4; key++) expect(sent.find(key)).toMatchObject({ sequence: key });
});

test('so many runs of prefetch are taken, and the others counted', () => {
  const receiver = new PageReceiver({
    key: snapshotKey(Buffer.alloc(32, 3)),
    senderId: 1,
    sink: {
      onPage: () => undefined,
      onZeroPage: () => undefined,
      onLost: () => undefined,
      isHeld: () => false,
      onMembership: () => undefined,
    },
    send: () => undefined,
    clock: () => 0,
    random: () => 0.5,
    lostAfterMs: 1000,
    hasGroup: false,
  });
  for (let page = 0; page < PREFETCH_RUNS_MAX; page++) {
    if (!receiver.prefetch(LAYER, page, 1)) expect.fail(`run ${page} is not taken`);
  }
  expect(receiver.prefetch(LAYER, 0, 1)).toBe(false);
  expect(receiver.prefetch(LAYER, 0, 1, { isFirst: true })).toBe(false);
  expect(receiver.counts.prefetchRunsRefused).toBe(2);
});
