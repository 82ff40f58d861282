// Pages of one number in several layers are several pages, all the way from the server to the
// receiver.

import { randomBytes } from 'node:crypto';
import {
  bodySizesFor,
  PAGE_BYTES,
  PageReceiver,
  PageServer,
  snapshotKey,
  TokenBucket,
} from '@snowfork/memserver';
import { expect, test } from 'vitest';

const LAYERS = [1, 2];
/** Cut where it does not fit; and one that shares a datagram. */
const [NOISE, PACKED] = [7, 8];

test.each([1500, 9000])(
  'at an MTU of %i, one page number in two layers is two pages',
  (mtuBytes) => {
    const clock = () => 0;
    const key = snapshotKey(randomBytes(32));
    const right = new Map<string, Buffer>();
    for (const layer of LAYERS) {
      right.set(`${layer}:${NOISE}`, randomBytes(PAGE_BYTES));
      right.set(`${layer}:${PACKED}`, Buffer.alloc(PAGE_BYTES, layer));
    }
    const came = new Map<string, Buffer>();
    const receiver = new PageReceiver({
      ...{ key, senderId: 1, clock, random: () => 0.5, lostAfterMs: 1000, hasGroup: false },
      sink: {
        onPage: (layer, page, bytes, offset) =>
          came.set(`${layer}:${page}`, Buffer.from(bytes.subarray(offset, offset + PAGE_BYTES))),
        onZeroPage: () => expect.fail('no page is zero'),
        onLost: () => expect.fail('no page is lost'),
        isHeld: (layer, page) => came.has(`${layer}:${page}`),
        onMembership: () => undefined,
      },
      send: (datagram) => server.receive(datagram, { host: '10.0.0.1', port: 1 }),
    });
    const server: PageServer = new PageServer({
      ...{ key, senderId: 2, clock, bodySizes: bodySizesFor(mtuBytes) },
      source: {
        readPage: (layer, page, target, offset) =>
          right.get(`${layer}:${page}`)!.copy(target, offset) > 0,
      },
      send: (datagram) => receiver.receive(datagram),
      link: new TokenBucket({ bytesPerSecond: 125_000_000, nowMs: 0 }),
    });
    for (const page of [NOISE, PACKED]) for (const layer of LAYERS) receiver.demand(layer, page);
    receiver.advance();
    server.advance();
    expect(came).toEqual(right);
  },
);
