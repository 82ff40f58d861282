// A serving thread asks for the one page that a READ waits for, as the receiver whose terms it was
// told, and for nothing else.

import dgram, { type Socket } from 'node:dgram';
import { once } from 'node:events';
import {
  AskingState,
  CHANNEL,
  DATAGRAM,
  decodeRequest,
  Opener,
  PAGE_BYTES,
  snapshotKey,
  URGENCY,
} from '@snowfork/memserver';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { EarlyAsks } from '../../packages/clone-agent/src/pager/early-asks.js';
import {
  newSharedObject,
  ServedObject,
} from '../../packages/clone-agent/src/pager/served-object.js';
import { openUdp } from '../../packages/memserver/src/net/system-socket.js';

const NODE = 18;
const SENDER = 77;
const LAYER = 5;
const HERE = 1;
const ELSEWHERE = 2;
const entries = Uint16Array.from([0, HERE, ELSEWHERE, ELSEWHERE]);
const key = snapshotKey(Buffer.alloc(32, 7));
const state = new AskingState();
const object = new ServedObject(
  newSharedObject({
    nodeid: NODE,
    snapshot: 's1',
    name: 'ram',
    sizeBytes: entries.length * PAGE_BYTES,
    layers: [],
    touches: undefined,
    entries,
  }),
  0,
);

let server: Socket;
let descriptor: number;
let client: Socket;
let asks: EarlyAsks;

beforeEach(async () => {
  server = dgram.createSocket('udp4').bind(0, '127.0.0.1');
  await once(server, 'listening');
  descriptor = openUdp({ address: '127.0.0.1', port: 0 });
  client = dgram.createSocket('udp4').bind({ fd: descriptor });
  const nobody = { host: '127.0.0.1', port: 9 };
  const addresses = [nobody, { host: '127.0.0.1', port: server.address().port }];
  state.addressIndex = 1;
  const senderKey = new Uint8Array(key.senderKey(SENDER));
  const { memory } = state;
  const terms = { descriptor, addresses, keyId: key.id, senderId: SENDER, senderKey, memory };
  asks = new EarlyAsks();
  asks.know(NODE, [undefined, undefined, { number: LAYER, terms }]);
});

afterEach(() => {
  server.close();
  client.close();
});

const read = (offset: number, sizeBytes = PAGE_BYTES) => ({ offset, sizeBytes });

test('the page is asked for as the receiver asks', async () => {
  state.set(CHANNEL.unicast, 41, 250);
  const taken = state.take();
  const came = once(server, 'message');
  expect(asks.ask(object, read(3 * PAGE_BYTES))).toBe(true);
  const [datagram, from] = await came;
  expect(from.port).toBe(client.address().port);
  const opened = new Opener({ key, ownId: 1, sendersMax: 8 }).open(datagram);
  expect(opened).toMatchObject({ kind: DATAGRAM.request, senderId: SENDER });
  expect(state.taken).toBe(taken + 1);
  expect(typeof opened === 'string' ? opened : decodeRequest(opened.body)).toEqual({
    urgency: URGENCY.demand,
    delivery: CHANNEL.unicast,
    seen: 41,
    roundTripUs: 250,
    runs: [{ layer: LAYER, page: 3, count: 1, pieces: 0, pieceCount: 0 }],
  });
});

test('nothing else is asked for: pages that are here, more than one page, a part of one', () => {
  const before = state.taken;
  for (const page of [0, HERE, entries.length]) {
    expect(asks.ask(object, read(page * PAGE_BYTES))).toBe(false);
  }
  expect(asks.ask(object, read(2 * PAGE_BYTES, 2 * PAGE_BYTES))).toBe(false);
  expect(asks.ask(object, read(2 * PAGE_BYTES, 512))).toBe(false);
  expect(asks.ask(object, read(2 * PAGE_BYTES + 512))).toBe(false);
  asks.forget(NODE);
  expect(asks.ask(object, read(2 * PAGE_BYTES))).toBe(false);
  expect(state.taken).toBe(before);
});
