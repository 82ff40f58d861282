// A process's connection to an origin: what a neighbour says it has no more is asked of the origin, even
// when as many pages are waited for as there may be.

import { randomBytes } from 'node:crypto';
import {
  type Address,
  CHANNEL,
  DATAGRAM,
  DEMANDS_MAX,
  decodeRequest,
  newSenderId,
  Opener,
  OriginClient,
  PAGE_KIND,
  Sealer,
  snapshotKey,
  writePages,
} from '@snowfork/memserver';
import { expect, test } from 'vitest';
import { AskedHost } from '../../packages/memserver/src/net/asked-host.js';
import { eventually } from '../support/eventually.js';

const ORIGIN = { host: '10.0.0.1', port: 1 };
const NEIGHBOUR = { host: '10.0.0.2', port: 1 };
const LOST_AFTER_MS = 60_000;
const LAYER = 0;
const PAGE = 1;

test('there is no room for a page that a neighbour has no more: its origin is asked later', async () => {
  const key = snapshotKey(randomBytes(32));
  const serverId = newSenderId(randomBytes(8));
  const neighbour = new Sealer(key, serverId);
  const opener = new Opener({ key, ownId: serverId, sendersMax: 4 });
  const asked = new AskedHost({
    origin: ORIGIN,
    neighbour: NEIGHBOUR,
    lostAfterMs: LOST_AFTER_MS,
  });
  const askedOfOrigin = new Set<number>();
  const lost: number[] = [];
  const client = new OriginClient({
    key,
    sink: {
      onPage: () => undefined,
      onZeroPage: () => undefined,
      onLost: (_, page) => void lost.push(page),
      isHeld: () => false,
    },
    lostAfterMs: LOST_AFTER_MS,
    hasGroup: false,
    asked,
    send: (datagram: Buffer, to: Address) => {
      const opened = opener.open(datagram);
      if (to !== ORIGIN || typeof opened === 'string') return;
      for (const run of decodeRequest(opened.body)?.runs ?? []) {
        for (let page = run.page; page < run.page + run.count; page++) askedOfOrigin.add(page);
      }
    },
    descriptor: -1,
    linger: () => undefined,
    isBehind: () => false,
    setMembership: () => undefined,
    closed: async () => undefined,
  });
  let sequence = 0;
  const say = (page: number, kind: 1 | 2): void => {
    const body = Buffer.alloc(64);
    const head = { sequence: ++sequence, channel: CHANNEL.unicast, receiversLog2: 0, layer: LAYER };
    const end = writePages(body, head, [{ page, count: 1, kind }]);
    client.take(neighbour.seal(DATAGRAM.pages, body.subarray(0, end)), NEIGHBOUR);
    client.advance();
  };
  try {
    for (let page = PAGE; page < PAGE + DEMANDS_MAX; page++) {
      expect(client.demand(LAYER, page)).toBe(true);
    }
    say(PAGE, PAGE_KIND.absent);
    // Somebody else takes its place.
    expect(client.demand(LAYER, PAGE + DEMANDS_MAX)).toBe(true);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(client.outstanding.demand).toBe(DEMANDS_MAX);
    expect(askedOfOrigin.has(PAGE)).toBe(false);
    say(PAGE + 1, PAGE_KIND.zero);
    await eventually(() => expect(askedOfOrigin.has(PAGE)).toBe(true));
    expect(lost).toEqual([]);
  } finally {
    await client.close();
  }
});
