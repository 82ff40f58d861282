// Pages packed for the wire: what was packed comes back, what does not fit is not packed, and whatever
// is not a packed page is refused.

import { randomBytes } from 'node:crypto';
import {
  CHANNEL,
  DATAGRAM,
  PACKED_BYTES_MAX,
  PACKED_HEAD_BYTES,
  PAGE_BYTES,
  PAGE_KIND,
  PageReceiver,
  type PageSink,
  packPage,
  Sealer,
  type SnapshotKey,
  snapshotKey,
  unpackPage,
  writePages,
} from '@snowfork/memserver';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { times } from '../support/soak.js';

const GUARD_BYTES = 64;
const noise = randomBytes(PAGE_BYTES);

/** Of so many bytes that are not zero, in some places. */
function pageOf(noiseBytes: number, step: number): Buffer {
  const page = Buffer.alloc(PAGE_BYTES);
  for (let count = 0; count < noiseBytes; count++)
    page[(count * step) % PAGE_BYTES] = noise[count]!;
  return page;
}

/** Followed by bytes that nobody may write. */
function guarded(bytes: number): Buffer {
  return Buffer.alloc(bytes + GUARD_BYTES, 0xa5);
}

function isUntouched(buffer: Buffer): boolean {
  return buffer.subarray(-GUARD_BYTES).equals(Buffer.alloc(GUARD_BYTES, 0xa5));
}

test('what fits comes back, byte for byte; nothing is written beyond the room', () => {
  const noiseBytes = fc.integer({ min: 0, max: PAGE_BYTES });
  const room = fc.integer({ min: 1, max: PACKED_BYTES_MAX });
  const step = fc.constantFrom(1, 3, 8, 64);
  fc.assert(
    fc.property(noiseBytes, step, room, (bytes, apart, most) => {
      const page = pageOf(bytes, apart);
      const packed = guarded(most);
      const packedBytes = packPage(page, packed, most);
      expect(packedBytes).toBeLessThanOrEqual(most);
      expect(isUntouched(packed)).toBe(true);
      if (packedBytes === 0) return;
      const back = guarded(PAGE_BYTES);
      expect(unpackPage(packed.subarray(0, packedBytes), back)).toBe(true);
      expect(back.subarray(0, PAGE_BYTES).equals(page)).toBe(true);
      expect(isUntouched(back)).toBe(true);
    }),
    { numRuns: times(300, 100_000) },
  );
});

test('a page of noise is not packed, one of little content is', () => {
  const packed = Buffer.alloc(PACKED_BYTES_MAX);
  expect(packPage(noise, packed, PACKED_BYTES_MAX)).toBe(0);
  expect(packPage(pageOf(500, 1), packed, PACKED_BYTES_MAX)).toBeGreaterThan(500);
});

test('what is cut, longer or spoilt is no page, and writes nothing beyond one', () => {
  const packed = Buffer.alloc(PACKED_BYTES_MAX);
  const length = packPage(pageOf(1000, 3), packed, PACKED_BYTES_MAX);
  expect(length).toBeGreaterThan(0);
  const back = guarded(PAGE_BYTES);
  for (let cut = 0; cut < length; cut++) {
    expect(unpackPage(packed.subarray(0, cut), back)).toBe(false);
  }
  const longer = Buffer.concat([packed.subarray(0, length), Buffer.alloc(40, 1)]);
  expect(unpackPage(longer, back)).toBe(false);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: PAGE_BYTES }), (bytes) => {
      unpackPage(Buffer.from(bytes), back);
      expect(isUntouched(back)).toBe(true);
    }),
    { numRuns: times(300, 300_000) },
  );
});

test('a receiver drops a packed page that is none, says so, and waits for one that is', () => {
  const key = snapshotKey(randomBytes(32));
  const [server, receiver] = [new Sealer(key, 1), receiverOf(key, 2)];
  const page = pageOf(1000, 3);
  const packed = Buffer.alloc(PACKED_BYTES_MAX);
  const length = packPage(page, packed, PACKED_BYTES_MAX);
  const send = (of: Buffer): void => {
    const body = Buffer.alloc(2 * PAGE_BYTES);
    const head = {
      sequence: server.counter + 1,
      channel: CHANNEL.group,
      receiversLog2: 0,
      layer: 1,
    };
    const start = writePages(body, head, [{ page: 7, count: 1, kind: PAGE_KIND.packed }]);
    body.writeUInt16LE(of.length, start);
    const end = start + PACKED_HEAD_BYTES + of.copy(body, start + PACKED_HEAD_BYTES);
    receiver.pages.receive(server.seal(DATAGRAM.pages, body.subarray(0, end)));
  };
  receiver.pages.demand(1, 7);
  send(packed.subarray(0, length - 1));
  send(Buffer.alloc(0));
  expect(receiver.pages.counts.dropped.body).toBe(2);
  expect(receiver.came).toEqual([]);
  expect(receiver.pages.outstanding.demand).toBe(1);
  send(packed.subarray(0, length));
  expect(receiver.came).toEqual([page]);
  expect(receiver.pages.outstanding.demand).toBe(0);
});

/** A receiver, and what came to it. */
function receiverOf(key: SnapshotKey, senderId: number) {
  const came: Buffer[] = [];
  const sink: PageSink = {
    onPage: (_layer, _page, bytes, offset) => {
      came.push(Buffer.from(bytes.subarray(offset, offset + PAGE_BYTES)));
    },
    onZeroPage: () => came.push(Buffer.alloc(PAGE_BYTES)),
    onLost: () => came.push(Buffer.alloc(0)),
    isHeld: () => false,
    onMembership: () => undefined,
  };
  const pages = new PageReceiver({
    ...{ key, senderId, sink, send: () => undefined, lostAfterMs: 1000, hasGroup: true },
    clock: () => performance.now(),
    random: () => 0.5,
  });
  return { pages, came };
}
