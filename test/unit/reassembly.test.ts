// Pages from pieces: in any order, each once, bounded in bytes and in time.

import { CHANNEL, PAGE_BYTES, type Piece, pieceBytes } from '@snowfork/memserver';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  ASSEMBLIES_MAX,
  ASSEMBLY_MS_MAX,
  Reassembly,
} from '../../packages/memserver/src/receiver/reassembly.js';
import { times } from '../support/soak.js';

const head = { sequence: 1, channel: CHANNEL.group, receiversLog2: 0, layer: 0 };

function pieceOf(page: Buffer, piece: number, pieceCount: number): Piece {
  const step = pieceBytes(pieceCount);
  const data = page.subarray(piece * step, Math.min((piece + 1) * step, PAGE_BYTES));
  return { ...head, page: 0, piece, pieceCount, data };
}

/** As many piece numbers as there are, and more, shuffled. */
const orders = fc
  .integer({ min: 2, max: 8 })
  .chain((count) =>
    fc.tuple(
      fc.constant(count),
      fc.shuffledSubarray([...Array(count).keys(), ...Array(count).keys()], { minLength: 1 }),
    ),
  );

test('a page is complete with its last piece, whatever the order, and not before', () => {
  fc.assert(
    fc.property(
      orders,
      fc.uint8Array({ minLength: PAGE_BYTES, maxLength: PAGE_BYTES }),
      (of, bytes) => {
        const [pieceCount, order] = of;
        const page = Buffer.from(bytes);
        const reassembly = new Reassembly();
        const came = new Set<number>();
        for (const piece of order) {
          const isDuplicate = came.has(piece);
          came.add(piece);
          const outcome = reassembly.put(7, pieceOf(page, piece, pieceCount), 0);
          if (came.size === pieceCount) {
            expect(outcome).toEqual(page);
            break;
          }
          expect(outcome).toBe(isDuplicate ? 'duplicate' : 'more');
          const lacks = [...Array(pieceCount).keys()].filter((number) => !came.has(number));
          const pieces = lacks.reduce((bits, number) => bits | (1 << number), 0);
          expect(reassembly.missing(7)).toEqual({ pieces, pieceCount });
        }
        expect(reassembly.size).toBe(came.size === pieceCount ? 0 : 1);
      },
    ),
    { numRuns: times(50, 50_000) },
  );
});

test('pieces of another cut are not put together with those before', () => {
  const old = Buffer.alloc(PAGE_BYTES, 1);
  const page = Buffer.alloc(PAGE_BYTES, 2);
  const reassembly = new Reassembly();
  expect(reassembly.put(7, pieceOf(old, 0, 3), 0)).toBe('more');
  expect(reassembly.put(7, pieceOf(page, 1, 2), 0)).toBe('more');
  expect(reassembly.put(7, pieceOf(page, 0, 2), 0)).toEqual(page);
});

test('the page begun first goes when there are too many', () => {
  const page = Buffer.alloc(PAGE_BYTES, 3);
  const reassembly = new Reassembly();
  for (let key = 0; key <= ASSEMBLIES_MAX; key++) reassembly.put(key, pieceOf(page, 0, 3), key);
  expect(reassembly.size).toBe(ASSEMBLIES_MAX);
  expect(reassembly.evicted).toBe(1);
  expect(reassembly.missing(0)).toEqual({ pieces: 0, pieceCount: 0 });
  expect(reassembly.missing(1)).toEqual({ pieces: 0b110, pieceCount: 3 });
});

test('what is too old goes, but not what somebody waits for', () => {
  const page = Buffer.alloc(PAGE_BYTES, 3);
  const reassembly = new Reassembly();
  for (const key of [1, 2, 3]) reassembly.put(key, pieceOf(page, 0, 3), key * 10);
  reassembly.expire(ASSEMBLY_MS_MAX + 20, (key) => key === 1);
  expect([1, 2, 3].map((key) => reassembly.missing(key).pieceCount)).toEqual([3, 0, 3]);
  expect(reassembly.expired).toBe(1);
});
