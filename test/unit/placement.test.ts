// Which hosts get the clones of a ticket: what must hold for any rooms, and the cases that people ask
// about.

import type { Placing } from '@snowfork/sdk/api';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { HostSlots } from '../../packages/clone-agent/src/cluster/cluster-store.js';
import { placeClones } from '../../packages/clone-agent/src/cluster/placement.js';

const HOSTS = ['alpha', 'beta', 'gamma', 'delta', 'epsilon'];

function slots(of: Record<string, number>): HostSlots[] {
  return Object.entries(of).map(([host, slots]) => ({ host, slots }));
}

function place(asked: number, rooms: Record<string, number>, placing: Placing = {}) {
  const placed = placeClones({ asked, hosts: slots(rooms), here: 'alpha', placing });
  return Object.fromEntries(placed.map(({ host, slots }) => [host, slots]));
}

const anyRooms = fc
  .dictionary(fc.constantFrom(...HOSTS), fc.nat({ max: 40 }), { minKeys: 1 })
  .map((rooms) => ({ alpha: 0, ...rooms }) as Record<string, number>);
const anyCase = anyRooms.chain((rooms) =>
  fc.record({
    rooms: fc.constant(rooms),
    asked: fc.integer({ min: 1, max: 256 }),
    place: fc.constantFrom(undefined, 'spread' as const, 'pack' as const),
    hosts: fc.option(fc.subarray(Object.keys(rooms), { minLength: 1 }), { nil: undefined }),
  }),
);

function placingOf({ place, hosts }: { place?: Placing['place']; hosts?: string[] | undefined }) {
  return { ...(place && { place }), ...(hosts && { hosts }) } satisfies Placing;
}

test('clones are spread evenly, the odd one to the host that asks', () => {
  const rooms = { beta: 10, alpha: 10, gamma: 10 };
  expect(place(6, rooms)).toEqual({ alpha: 2, beta: 2, gamma: 2 });
  expect(place(7, rooms)).toEqual({ alpha: 3, beta: 2, gamma: 2 });
  expect(place(1, rooms)).toEqual({ alpha: 1 });
});

test('a host with little room gets what it can hold, and the others the rest', () => {
  expect(place(9, { alpha: 10, beta: 1, gamma: 10 })).toEqual({ alpha: 4, beta: 1, gamma: 4 });
  expect(place(9, { alpha: 0, beta: 2, gamma: 3 })).toEqual({ beta: 2, gamma: 3 });
});

test('packed clones fill the own host, then one that can take the rest', () => {
  const rooms = { alpha: 3, beta: 20, gamma: 5 };
  expect(place(3, rooms, { place: 'pack' })).toEqual({ alpha: 3 });
  expect(place(8, rooms, { place: 'pack' })).toEqual({ alpha: 3, gamma: 5 });
  expect(place(25, rooms, { place: 'pack' })).toEqual({ alpha: 3, beta: 20, gamma: 2 });
});

test('named hosts are the only ones', () => {
  const rooms = { alpha: 9, beta: 9, gamma: 9 };
  expect(place(4, rooms, { hosts: ['beta', 'gamma'] })).toEqual({ beta: 2, gamma: 2 });
  expect(place(20, rooms, { hosts: ['beta'] })).toEqual({ beta: 9 });
});

test('a host that is not there is refused, with those that are', () => {
  expect(() => place(1, { alpha: 1, beta: 1 }, { hosts: ['omega'] })).toThrow(
    expect.objectContaining({
      code: 'SF_HOST_NOT_FOUND',
      message: expect.stringMatching(/omega.*alpha, beta/),
    }),
  );
});

test('as many as asked and as there is room, no host more than it has, none with nothing', () => {
  fc.assert(
    fc.property(anyCase, ({ rooms, asked, ...placing }) => {
      const placed = placeClones({
        ...{ asked, hosts: slots(rooms), here: 'alpha' },
        placing: placingOf(placing),
      });
      const allowed = placing.hosts ?? Object.keys(rooms);
      const room = allowed.reduce((sum, host) => sum + rooms[host]!, 0);
      expect(placed.reduce((sum, { slots }) => sum + slots, 0)).toBe(Math.min(asked, room));
      expect(new Set(placed.map(({ host }) => host)).size).toBe(placed.length);
      for (const { host, slots } of placed) {
        expect(allowed).toContain(host);
        expect(slots).toBeGreaterThan(0);
        expect(slots).toBeLessThanOrEqual(rooms[host]!);
      }
    }),
  );
});

test('when spread, who has less than another by two or more is full', () => {
  fc.assert(
    fc.property(anyRooms, fc.integer({ min: 1, max: 256 }), (rooms, asked) => {
      const placed = place(asked, rooms);
      const most = Math.max(0, ...Object.values(placed));
      for (const [host, room] of Object.entries(rooms)) {
        const got = placed[host] ?? 0;
        if (got < most - 1) expect(got).toBe(room);
        // Nobody gets more than the host that asks, unless that one is full.
        if (host === 'alpha' && got < most) expect(got).toBe(room);
      }
    }),
  );
});

test('when packed, at most one host is left half full, and the own one is full first', () => {
  fc.assert(
    fc.property(anyRooms, fc.integer({ min: 1, max: 256 }), (rooms, asked) => {
      const placed = place(asked, rooms, { place: 'pack' });
      const halfFull = Object.entries(placed).filter(([host, got]) => got < rooms[host]!);
      expect(halfFull.length).toBeLessThanOrEqual(1);
      expect(placed.alpha ?? 0).toBe(Math.min(asked, rooms.alpha!));
    }),
  );
});

test('the order in which hosts are listed changes nothing', () => {
  fc.assert(
    fc.property(anyCase, fc.infiniteStream(fc.nat()), ({ rooms, asked, ...of }, numbers) => {
      const hosts = slots(rooms);
      const keys = new Map(hosts.map(({ host }) => [host, numbers.next().value as number]));
      const shuffled = [...hosts].sort((a, b) => keys.get(a.host)! - keys.get(b.host)!);
      const placing = placingOf(of);
      expect(placeClones({ asked, hosts: shuffled, here: 'alpha', placing })).toEqual(
        placeClones({ asked, hosts, here: 'alpha', placing }),
      );
    }),
  );
});
