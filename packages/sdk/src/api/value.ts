// Values that programs hand over: MessagePack between guest and agent, JSON between agent and host
// programs. Called by the guest SDK, the agent and the host SDK; bounds are checked before decoding.

import { Packr } from 'msgpackr';
import { SnowforkError } from './errors.js';
import { VALUE_BYTES_MAX } from './port.js';

const packr = new Packr({ useRecords: false, moreTypes: false, mapsAsObjects: true });

/**
 * `bytesMax` is MESSAGE_BYTES_MAX for what goes around a value.
 * @throws SnowforkError SF_VALUE_TOO_LARGE above it; SF_BAD_REQUEST when it has no MessagePack form.
 */
export function encodeValue(value: unknown, bytesMax = VALUE_BYTES_MAX): Buffer {
  let encoded: Buffer;
  try {
    encoded = packr.pack(value);
  } catch (cause) {
    throw new SnowforkError('SF_BAD_REQUEST', 'the value has no MessagePack form', { cause });
  }
  assertValueSize(encoded.length, bytesMax);
  return encoded;
}

/** @throws SnowforkError SF_BAD_REQUEST when the bytes are no MessagePack. */
export function decodeValue(encoded: Uint8Array, bytesMax = VALUE_BYTES_MAX): unknown {
  assertValueSize(encoded.length, bytesMax);
  try {
    return packr.unpack(encoded);
  } catch (cause) {
    throw new SnowforkError('SF_BAD_REQUEST', 'the bytes are no MessagePack value', { cause });
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

const JSON_DEPTH_MAX = 64;

function isJson(value: unknown, depth: number): boolean {
  if (depth > JSON_DEPTH_MAX) return false;
  if (value === null || typeof value === 'string' || typeof value === 'boolean') return true;
  if (typeof value === 'number') return Number.isFinite(value) && !Object.is(value, -0);
  if (Array.isArray(value)) return value.every((item) => isJson(item, depth + 1));
  if (typeof value !== 'object' || Object.getPrototypeOf(value) !== Object.prototype) return false;
  if ('$msgpack' in value) return false;
  return Object.values(value).every((item) => isJson(item, depth + 1));
}
