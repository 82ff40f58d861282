// Sealed datagrams: only what a member sealed, once and for this snapshot, is opened; everything
// else is dropped with its reason and changes nothing.

import {
  AskingState,
  DATAGRAM,
  datagramsOf,
  directAead,
  HEADER_BYTES,
  keyIdOf,
  newSenderId,
  Opener,
  portableAead,
  REPLAY_WINDOW_DATAGRAMS,
  ReplayWindow,
  Sealer,
  snapshotKey,
  TAG_BYTES,
} from '@snowfork/memserver';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { times } from '../support/soak.js';

const key = snapshotKey(Buffer.alloc(32, 7));
const otherKey = snapshotKey(Buffer.alloc(32, 8));
const SENDER = 1234;
const OWN = 99;

function newOpener(sendersMax = 8): Opener {
  return new Opener({ key, ownId: OWN, sendersMax });
}

test('a body comes out as it went in', () => {
  const bodies = fc.uint8Array({ maxLength: 9000 });
  const sealer = new Sealer(key, SENDER);
  const opener = newOpener();
  fc.assert(
    fc.property(bodies, fc.constantFrom(...Object.values(DATAGRAM)), (bytes, kind) => {
      const body = Buffer.from(bytes);
      const datagram = sealer.seal(kind, body);
      expect(keyIdOf(datagram)).toBe(key.id);
      expect(datagram.length).toBe(HEADER_BYTES + body.length + TAG_BYTES);
      expect(opener.open(datagram)).toEqual({
        kind,
        senderId: SENDER,
        counter: sealer.counter,
        body,
      });
    }),
    { numRuns: times(200, 100_000) },
  );
});

test('the bytes of a datagram are those of the specification', () => {
  const datagram = new Sealer(key, SENDER).seal(DATAGRAM.pages, Buffer.from('page'));
  expect(datagram.toString('hex')).toBe(GOLDEN);
});

test('a datagram with one bit changed is not opened, and the right one still is', () => {
  const body = Buffer.from('some bytes of a page');
  const sealer = new Sealer(key, SENDER);
  const opener = newOpener();
  const bits = (HEADER_BYTES + body.length + TAG_BYTES) * 8;
  for (let bit = 0; bit < bits; bit++) {
    const datagram = sealer.seal(DATAGRAM.pages, body);
    const changed = Buffer.from(datagram);
    changed[bit >> 3]! ^= 1 << (bit & 7);
    expect(opener.open(changed)).toBeTypeOf('string');
    expect(opener.open(datagram)).toMatchObject({ body });
  }
});

test('a datagram cut short, or made longer, is not opened', () => {
  const datagram = new Sealer(key, SENDER).seal(DATAGRAM.piece, Buffer.alloc(100, 1));
  const opener = newOpener();
  for (let length = 0; length < datagram.length; length++) {
    expect(opener.open(datagram.subarray(0, length))).toBeTypeOf('string');
  }
  expect(opener.open(Buffer.concat([datagram, Buffer.alloc(1)]))).toBe('forged');
  expect(opener.senderCount).toBe(0);
});

test('whatever comes, opening it throws nothing and opens nothing', () => {
  const opener = newOpener();
  const header = new Sealer(key, SENDER).seal(DATAGRAM.pages, Buffer.alloc(0));
  const garbage = fc.uint8Array({ maxLength: 2000 });
  // As it comes, and behind a header that is right.
  fc.assert(
    fc.property(garbage, fc.boolean(), (bytes, isHeaded) => {
      const start = isHeaded ? header.subarray(0, HEADER_BYTES) : Buffer.alloc(0);
      expect(opener.open(Buffer.concat([start, bytes]))).toBeTypeOf('string');
      expect(opener.senderCount).toBe(0);
    }),
    { numRuns: times(1000, 1_000_000) },
  );
});

test('each reason to drop a datagram is told from the others', () => {
  const opener = newOpener();
  const sealer = new Sealer(key, SENDER);
  const datagram = sealer.seal(DATAGRAM.request, Buffer.alloc(4));
  const changedAt = (offset: number): Buffer => {
    const changed = Buffer.from(datagram);
    changed[offset]! ^= 0x40;
    return changed;
  };
  expect(opener.open(datagram.subarray(0, 20))).toBe('short');
  expect(opener.open(changedAt(0))).toBe('version');
  expect(opener.open(changedAt(1))).toBe('kind');
  expect(opener.open(changedAt(2))).toBe('otherKey');
  expect(opener.open(new Sealer(otherKey, SENDER).seal(1, Buffer.alloc(0)))).toBe('otherKey');
  expect(opener.open(new Sealer(key, OWN).seal(1, Buffer.alloc(0)))).toBe('own');
  expect(opener.open(changedAt(HEADER_BYTES))).toBe('forged');
  expect(opener.open(datagram)).toMatchObject({ senderId: SENDER });
  expect(opener.open(datagram)).toBe('replayed');
  for (let sent = 0; sent < REPLAY_WINDOW_DATAGRAMS; sent++) {
    const later = sealer.seal(DATAGRAM.request, Buffer.alloc(0));
    expect(opener.open(later)).toBeTypeOf('object');
  }
  expect(opener.open(datagram)).toBe('old');
});

test('no two senders of a snapshot, and no two snapshots, seal alike', () => {
  const body = Buffer.alloc(64);
  const sealed = [
    new Sealer(key, 1),
    new Sealer(key, 2),
    new Sealer(otherKey, 1),
    new Sealer(key, 2 ** 52 + 1),
  ].map((sealer) => sealer.seal(DATAGRAM.pages, body).subarray(HEADER_BYTES).toString('hex'));
  expect(new Set(sealed).size).toBe(sealed.length);
});

test('a sender never seals twice alike, and counts what it sealed', () => {
  const sealer = new Sealer(key, newSenderId(Buffer.alloc(8, 255)));
  const sealed = new Set<string>();
  for (let count = 0; count < 100; count++) {
    const datagram = sealer.seal(DATAGRAM.pages, Buffer.alloc(16));
    sealed.add(datagram.subarray(HEADER_BYTES).toString('hex'));
  }
  expect(sealed.size).toBe(100);
  expect(sealer.counter).toBe(100);
});

test('two that seal as one sender and share its count are opened as one', () => {
  const state = new AskingState();
  const one = new Sealer(key, SENDER, state);
  const other = new Sealer(key, SENDER, new AskingState(state.memory));
  const opener = newOpener();
  for (let count = 0; count < 100; count++) {
    const sealer = count % 3 === 0 ? one : other;
    expect(opener.open(sealer.seal(DATAGRAM.request, Buffer.alloc(8)))).toBeTypeOf('object');
  }
  expect([one.counter, other.counter]).toEqual([100, 100]);
  expect(opener.senderCount).toBe(1);
});

test('senders are bounded: the one silent for longest is forgotten', () => {
  const opener = newOpener(3);
  const sealers = [1, 2, 3].map((id) => new Sealer(key, id));
  const hear = (sealer: Sealer): void => {
    expect(opener.open(sealer.seal(1, Buffer.alloc(0)))).toBeTypeOf('object');
  };
  const first = sealers[0]!.seal(1, Buffer.alloc(0));
  expect(opener.open(first)).toBeTypeOf('object');
  for (const sealer of sealers) hear(sealer);
  hear(sealers[0]!);
  hear(new Sealer(key, 4)); // 2 must go
  expect(opener.senderCount).toBe(3);
  expect(opener.open(first)).toBe('replayed');
});

test('the replay window takes each counter once, whatever the order', () => {
  const counters = fc.array(fc.integer({ min: 1, max: 3 * REPLAY_WINDOW_DATAGRAMS }), {
    maxLength: 300,
  });
  fc.assert(
    fc.property(counters, fc.integer({ min: 0, max: 2 ** 40 }), (list, base) => {
      const window = new ReplayWindow();
      const taken = new Set<number>();
      let highest = 0;
      for (const counter of list.map((offset) => base + offset)) {
        const verdict = window.verdict(counter);
        const isOld = counter <= highest - REPLAY_WINDOW_DATAGRAMS;
        expect(verdict).toBe(isOld ? 'old' : taken.has(counter) ? 'replayed' : 'new');
        if (verdict !== 'new') continue;
        window.take(counter);
        taken.add(counter);
        highest = Math.max(highest, counter);
      }
    }),
    { numRuns: times(300, 300_000) },
  );
});

test("OpenSSL's own functions seal as node:crypto does, and refuse what it refuses", () => {
  const direct = directAead()!;
  expect(direct).toBeDefined();
  const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
  const some = fc.uint8Array({ maxLength: 9000 });
  fc.assert(
    fc.property(bytes(32), bytes(12), some, bytes(28), fc.nat(), (...args) => {
      const [key, nonce, body, header] = args
        .slice(0, 4)
        .map((of) => Buffer.from(of as Uint8Array));
      const [one, other] = [direct, portableAead].map((by) => {
        const into = Buffer.concat([header!, Buffer.alloc(body!.length + TAG_BYTES)]);
        by.seal(key!, nonce!, body!, into, header!.length);
        return into;
      });
      expect(one!.equals(other!)).toBe(true);
      const bit = (args[4] as number) % (one!.length * 8);
      for (const by of [direct, portableAead]) {
        const opened = Buffer.alloc(body!.length);
        expect(by.open(key!, nonce!, one!, header!.length, opened)).toBe(true);
        expect(opened.equals(body!)).toBe(true);
        other![bit >> 3]! ^= 1 << (bit & 7);
        expect(by.open(key!, nonce!, other!, header!.length, opened)).toBe(false);
        other![bit >> 3]! ^= 1 << (bit & 7);
      }
    }),
    { numRuns: times(200, 100_000) },
  );
  expect(() =>
    direct.seal(Buffer.alloc(32), Buffer.alloc(12), Buffer.alloc(9), Buffer.alloc(30), 6),
  ).toThrow('no room');
  expect(() =>
    direct.open(Buffer.alloc(32), Buffer.alloc(12), Buffer.alloc(99), 6, Buffer.alloc(9)),
  ).toThrow('no room');
});

test('datagrams that come in one piece are told apart', () => {
  const sealer = new Sealer(key, SENDER);
  const bodies = fc.array(fc.uint8Array({ maxLength: 1400 }), { minLength: 1, maxLength: 8 });
  fc.assert(
    fc.property(bodies, fc.uint8Array({ maxLength: 43 }), (contents, rest) => {
      const sealed = contents.map((body) => sealer.seal(DATAGRAM.pages, Buffer.from(body)));
      const parts = [...datagramsOf(Buffer.concat([...sealed, rest]))];
      expect(parts).toEqual(rest.length > 0 ? [...sealed, Buffer.from(rest)] : sealed);
    }),
    { numRuns: times(200, 100_000) },
  );
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 3000 }), (garbage) => {
      const parts = [...datagramsOf(Buffer.from(garbage))];
      expect(parts.length).toBeGreaterThan(0);
      expect(Buffer.concat(parts).equals(garbage)).toBe(true);
    }),
    { numRuns: times(200, 100_000) },
  );
});

const GOLDEN =
  '0103613e9adcf98c0a00d204000000000000010000000000' + // version, kind, key, sender, counter
  '2e00' + // length
  'f56eb633' + // sealed body
  'cc9b6096dd692bd8454ba13fede5e7dd'; // tag
