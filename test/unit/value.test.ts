// Values that come from guests: whatever the bytes, decoding ends with a value that can be handed on
// as JSON or with one kind of error, and costs no more than its bounds.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { SnowforkError } from '../../packages/sdk/src/api/errors.js';
import {
  checkMsgpack,
  VALUE_DEPTH_MAX,
  VALUE_ITEMS_MAX,
} from '../../packages/sdk/src/api/msgpack-check.js';
import { VALUE_BYTES_MAX } from '../../packages/sdk/src/api/port.js';
import {
  decodeValue,
  encodeValue,
  valueFromJson,
  valueToJson,
} from '../../packages/sdk/src/api/value.js';
import { times } from '../support/soak.js';

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(' ', ''), 'hex');

/** What the host hands on of a value, or the code of the refusal. */
function outcome(bytes: Uint8Array): unknown {
  let value: unknown;
  try {
    value = decodeValue(bytes);
  } catch (error) {
    expect(error).toBeInstanceOf(SnowforkError);
    return (error as SnowforkError).code;
  }
  return { json: JSON.stringify(valueToJson(value)) };
}

/** Bytes that are MessagePack more often than not: heads of all types, and lies about lengths. */
const likely = fc
  .array(
    fc.oneof(
      fc.integer({ min: 0x80, max: 0xff }).map((type) => [type]),
      fc.uint8Array({ maxLength: 6 }).map((bytes) => [...bytes]),
      fc.constantFrom([0xd4, 0xff, 0xff], [0xd6, 0xff, 0, 0, 0, 1], [0xc7, 12, 0xff]),
      fc.constantFrom([0xdd, 0, 0, 0, 2], [0xdf, 0, 0, 0, 1], [0xa1, 0x61], [0xd4, 0, 0]),
    ),
    { maxLength: 40 },
  )
  .map((parts) => Buffer.from(parts.flat()));

describe('values of guests', () => {
  it('become JSON or one kind of error, whatever the bytes', () => {
    const random = fc.uint8Array({ maxLength: 200 });
    fc.assert(
      fc.property(fc.oneof(likely, random), (bytes) => void outcome(bytes)),
      { numRuns: times(3000, 3_000_000) },
    );
  });

  it('pass the check when this side has encoded them, and come back the same', () => {
    const leaf = fc.oneof(
      fc.string(),
      // −0 arrives as 0: below.
      fc.double({ noNaN: true }).map((number) => number + 0),
      fc.integer(),
      fc.boolean(),
      fc.constant(null),
      fc.constant(undefined),
      fc.date({ noInvalidDate: true }),
      fc.uint8Array().map((bytes) => Buffer.from(bytes)),
    );
    const value = fc.letrec((tie) => ({
      any: fc.oneof(
        leaf,
        fc.array(tie('any'), { maxLength: 20 }),
        fc.dictionary(
          fc.string().filter((key) => key !== '__proto__'),
          tie('any'),
        ),
      ),
    })).any;
    fc.assert(
      fc.property(value, (original) => {
        const encoded = encodeValue(original);
        expect(checkMsgpack(encoded)).toBeGreaterThan(0);
        expect(decodeValue(encoded)).toEqual(original);
        expect(valueFromJson(valueToJson(original))).toEqual(original);
      }),
    );
  });

  it('have one zero, as in JSON', () => {
    expect(decodeValue(encodeValue([-0]))).toEqual([0]);
    expect(valueFromJson(JSON.parse(JSON.stringify(valueToJson([-0]))))).toEqual([0]);
  });

  it('are refused when a key would be lost on the way', () => {
    for (const value of [JSON.parse('{"__proto__": 1}'), new Map([['__proto__', 1]])]) {
      expect(() => encodeValue([value])).toThrow(
        expect.objectContaining({ code: 'SF_BAD_REQUEST' }),
      );
    }
  });

  it.each([
    ['an array of more items than bytes', 'dd 01ffffff'],
    ['a map that goes on', 'df 7fffffff 01'],
    ['bytes that end early', 'c6 00001000 00'],
    ['a string that ends early', 'd9 ff 61'],
    ['nothing', ''],
    ['two values', '01 02'],
    ['the type that is never used', 'c1'],
    ['an error made by an extension', 'd4 65 00 93 a161 a162 c0'],
    ['a record, which msgpackr would compile', 'd4 72 40 91 a161 01'],
    ['a reference to itself', 'd6 69 00000001 91 d6 70 00000001'],
    ['a regular expression', 'c7 00 78 92 a161 a0'],
    ['a map with an array as its key', '81 91 01 01'],
  ])('are refused when they are %s', (_, bytes) => {
    expect(outcome(hex(bytes))).toBe('SF_BAD_REQUEST');
  });

  it('are refused when a few bytes announce much, level by level', () => {
    const bytes = Buffer.alloc(VALUE_BYTES_MAX);
    for (let at = 0; at < 5000; at += 5) {
      bytes[at] = 0xdd;
      bytes.writeUInt32BE(bytes.length - at - 5, at + 1);
    }
    expect(() => checkMsgpack(bytes)).toThrow(`more than ${VALUE_ITEMS_MAX} items`);
    expect(outcome(bytes)).toBe('SF_BAD_REQUEST');
  });

  it('are refused when they have too many items, by both sides', () => {
    const many = new Array(VALUE_ITEMS_MAX).fill(0);
    expect(() => encodeValue(many)).toThrow(
      expect.objectContaining({ code: 'SF_VALUE_TOO_LARGE' }),
    );
    const bytes = Buffer.alloc(5 + VALUE_ITEMS_MAX, 0x80);
    bytes.writeUInt8(0xdd, 0);
    bytes.writeUInt32BE(VALUE_ITEMS_MAX, 1);
    expect(outcome(bytes)).toBe('SF_BAD_REQUEST');
    many.pop();
    expect(decodeValue(encodeValue(many))).toHaveLength(VALUE_ITEMS_MAX - 1);
  });

  it('are refused when they nest too deep, by both sides', () => {
    const nest = (depth: number) => {
      let value: unknown = 1;
      for (let level = 0; level < depth; level++) value = [value];
      return value;
    };
    const deep = Buffer.concat([Buffer.alloc(VALUE_DEPTH_MAX + 1, 0x91), hex('01')]);
    expect(outcome(deep)).toBe('SF_BAD_REQUEST');
    expect(() => encodeValue(nest(VALUE_DEPTH_MAX + 1))).toThrow(SnowforkError);
    const whole = encodeValue(nest(VALUE_DEPTH_MAX));
    expect(outcome(whole)).toHaveProperty('json');
    expect(outcome(Buffer.alloc(VALUE_BYTES_MAX, 0x91))).toBe('SF_BAD_REQUEST');
  });
});
