// Values that programs hand over: MessagePack between guest and agent, JSON between agent and host
// programs. Called by the guest SDK, the agent and the host SDK; bounds are checked before decoding.

import { Packr } from 'msgpackr';
import { SnowforkError } from './errors.js';
import { checkMsgpack, VALUE_DEPTH_MAX, VALUE_ITEMS_MAX } from './msgpack-check.js';
import { VALUE_BYTES_MAX } from './port.js';

const packr = new Packr({ useRecords: false, moreTypes: false, mapsAsObjects: true });

/** A key that no decoder of JavaScript gives back: it would set the object's prototype. */
const KEY_REFUSED = '__proto__';

/**
 * −0 arrives as 0, as it does in JSON: MessagePack's integers have no other zero.
 * `bytesMax` is MESSAGE_BYTES_MAX for what goes around a value.
 * @throws SnowforkError SF_VALUE_TOO_LARGE above it; SF_BAD_REQUEST when it has no MessagePack form.
 */
export function encodeValue(value: unknown, bytesMax = VALUE_BYTES_MAX): Buffer {
  assertEncodable(value, { items: 0 }, 0);
  let encoded: Buffer;
  try {
    encoded = packr.pack(value);
  } catch (cause) {
    throw new SnowforkError('SF_BAD_REQUEST', 'the value has no MessagePack form', { cause });
  }
  assertValueSize(encoded.length, bytesMax);
  return encoded;
}

/** @throws SnowforkError SF_BAD_REQUEST when the bytes are no MessagePack, or absurd: `checkMsgpack`. */
export function decodeValue(encoded: Uint8Array, bytesMax = VALUE_BYTES_MAX): unknown {
  assertValueSize(encoded.length, bytesMax);
  try {
    checkMsgpack(encoded);
    return packr.unpack(encoded);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    const message = `the bytes are no MessagePack value: ${why.slice(0, WHY_LENGTH_MAX)}`;
    throw new SnowforkError('SF_BAD_REQUEST', message, { cause });
  }
}

function assertValueSize(sizeBytes: number, bytesMax: number): void {
  if (sizeBytes <= bytesMax) return;
  throw new SnowforkError(
    'SF_VALUE_TOO_LARGE',
    `the value takes ${sizeBytes} bytes as MessagePack, at most ${bytesMax} are allowed`,
  );
}

/** What JSON can't say (bytes, bigints, dates, NaN, undefined) goes as `{ "$msgpack": base64 }`, whole. */
export function valueToJson(value: unknown): unknown {
  if (isJson(value, 0)) return value;
  return { $msgpack: encodeValue(value).toString('base64') };
}

/** The inverse of `valueToJson`. */
export function valueFromJson(json: unknown): unknown {
  if (typeof json !== 'object' || json === null || !('$msgpack' in json)) return json;
  return decodeValue(Buffer.from(String(json.$msgpack), 'base64'));
}

/**
 * msgpackr would write something for every one of these, and something else would come out.
 * @throws SnowforkError SF_BAD_REQUEST that names what cannot travel.
 */
function assertEncodable(value: unknown, count: { items: number }, depth: number): void {
  if (++count.items > VALUE_ITEMS_MAX) {
    const message = `the value has more than ${VALUE_ITEMS_MAX} items (numbers, strings, keys …)`;
    throw new SnowforkError('SF_VALUE_TOO_LARGE', `${message}: hand over bytes instead`);
  }
  if (depth > VALUE_DEPTH_MAX) throw unencodable(`nested more than ${VALUE_DEPTH_MAX} deep`);
  if (typeof value === 'function' || typeof value === 'symbol') throw unencodable(typeof value);
  if (typeof value !== 'object' || value === null) return;
  if (value instanceof Uint8Array || value instanceof Date) return;
  if (Array.isArray(value)) {
    for (const item of value) assertEncodable(item, count, depth + 1);
    return;
  }
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer || value instanceof RegExp) {
    throw unencodable(value.constructor.name);
  }
  if (value instanceof Error || value instanceof Promise || value instanceof WeakMap) {
    throw unencodable(value.constructor.name);
  }
  const hasKey = value instanceof Map ? value.has(KEY_REFUSED) : Object.hasOwn(value, KEY_REFUSED);
  if (hasKey) throw unencodable(`an object with the key ${KEY_REFUSED}`);
  const items =
    value instanceof Map || value instanceof Set ? [...value.values()] : Object.values(value);
  // Keys are items too; those of a Map or an object are never objects here.
  if (!(value instanceof Set)) count.items += items.length;
  for (const item of items) assertEncodable(item, count, depth + 1);
}

function unencodable(what: string): SnowforkError {
  const kinds = 'numbers, strings, bytes (Uint8Array), dates, arrays and plain objects';
  return new SnowforkError('SF_BAD_REQUEST', `a value cannot be ${what}: it is made of ${kinds}`);
}

const WHY_LENGTH_MAX = 200;
const JSON_DEPTH_MAX = 64;

function isJson(value: unknown, depth: number): boolean {
  if (depth > JSON_DEPTH_MAX) return false;
  if (value === null || typeof value === 'string' || typeof value === 'boolean') return true;
  if (typeof value === 'number') return Number.isFinite(value);
  if (Array.isArray(value)) return value.every((item) => isJson(item, depth + 1));
  if (typeof value !== 'object' || Object.getPrototypeOf(value) !== Object.prototype) return false;
  if ('$msgpack' in value) return false;
  return Object.values(value).every((item) => isJson(item, depth + 1));
}
