// The page map's file: what was encoded is decoded, and nothing else is accepted.

import { decodePageMap, encodePageMap, PageMapError } from '@snowfork/memserver';
import fc from 'fast-check';
import { expect, test } from 'vitest';

const maps = fc.integer({ min: 0, max: 9 }).chain((layerCount) =>
  fc.record({
    layerCount: fc.constant(layerCount),
    entries: fc
      .array(fc.integer({ min: 0, max: layerCount }), { maxLength: 300 })
      .map((entries) => Uint16Array.from(entries)),
  }),
);

test('a page map survives its file', () => {
  fc.assert(
    fc.property(maps, (map) => {
      expect(decodePageMap(encodePageMap(map))).toEqual(map);
    }),
  );
});

test('the file is the one that formats.md draws', () => {
  const encoded = encodePageMap({ entries: Uint16Array.of(0, 2, 1), layerCount: 2 });
  expect(encoded.toString('hex')).toBe(
    ['5346504d', '01000000', '03000000', '02000000', '00000000', '0000', '0200', '0100'].join(''),
  );
});

test('any change of the header, any cut and any addition is refused', () => {
  const encoded = encodePageMap({ entries: Uint16Array.of(0, 1), layerCount: 1 });
  for (let length = 0; length < encoded.length; length += 1) {
    expect(() => decodePageMap(encoded.subarray(0, length))).toThrow(PageMapError);
  }
  expect(() => decodePageMap(Buffer.concat([encoded, Buffer.alloc(2)]))).toThrow(PageMapError);
  for (const byte of [0, 4, 8, 16]) {
    const changed = Buffer.from(encoded);
    changed[byte]! ^= 0xff;
    expect(() => decodePageMap(changed), `byte ${byte}`).toThrow(PageMapError);
  }
});

test('a page in a layer that is not there is refused', () => {
  const encoded = encodePageMap({ entries: Uint16Array.of(3), layerCount: 2 });
  expect(() => decodePageMap(encoded)).toThrow('page in layer 3 of 2');
});

test('random bytes give a map or a PageMapError', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      try {
        decodePageMap(Buffer.from(bytes));
      } catch (error) {
        expect(error).toBeInstanceOf(PageMapError);
      }
    }),
  );
});
