// What a receiver says of a channel: which datagrams should have come and which did, in whatever order,
// also when the server counts anew.

import { expect, test } from 'vitest';
import { ChannelWatch } from '../../packages/memserver/src/receiver/channel-watch.js';

const BYTES = 1000;

/** Datagrams that a server sent one after another, as far as they came. */
function take(watch: ChannelWatch, sequences: readonly number[], firstCounter: number): void {
  for (const sequence of sequences) watch.came(sequence, firstCounter + sequence - 1, BYTES);
}

test('what did not come is known by the gaps', () => {
  const watch = new ChannelWatch();
  take(watch, [1, 2, 4, 5, 7], 1);
  expect(watch.takeReport()).toMatchObject({ highest: 7, expected: 7, received: 5 });
  take(watch, [8, 9], 1);
  expect(watch.takeReport()).toMatchObject({ highest: 9, expected: 2, received: 2 });
});

test('what was overtaken on the way is not a new beginning', () => {
  const watch = new ChannelWatch();
  take(watch, [5, 6, 1, 2, 9, 3, 4, 8], 1);
  expect(watch.takeReport()).toMatchObject({ highest: 9, expected: 5, received: 8 });
});

test('a server that counts from 1 again is believed', () => {
  const watch = new ChannelWatch();
  take(watch, [1, 2, 3, 5, 6], 1);
  watch.takeReport();
  take(watch, [1, 2, 4], 1000);
  expect(watch.takeReport()).toMatchObject({ highest: 4, expected: 4, received: 3 });
  // One of those before that comes late changes nothing.
  take(watch, [4], 1);
  take(watch, [5], 1000);
  expect(watch.takeReport()).toMatchObject({ highest: 5, expected: 1 });
});

test('a sequence that goes round is none', () => {
  const watch = new ChannelWatch();
  const last = 0xffff_ffff;
  watch.came(last - 1, 10, BYTES);
  watch.came(last, 11, BYTES);
  watch.came(1, 12, BYTES);
  watch.came(2, 13, BYTES);
  expect(watch.highest).toBe(2);
  // 0 is left out.
  expect(watch.takeReport().expected).toBe(5);
});
