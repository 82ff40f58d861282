// A snapshot on its way to another host: all of it but the pages. Made by the host that has the
// snapshot, taken in by one that is to run clones of it; goes from agent to agent over TLS. It goes to
// each host by itself, so what of it is large is packed: page maps, device state, first touches.
//
// First touches, before they are deflated: each page as its difference to the one before it, of which the
// first is 0, zigzag (0, -1, 1, -2 …) in groups of 7 bits, the low ones first, the top bit of a byte saying
// that more follow.

import { deflateRawSync, inflateRawSync } from 'node:zlib';
import { decodePageMap, encodePageMap, type PageMap } from '@snowfork/memserver/pages';
import { machineSchema, pageCountsSchema, SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';
import { LIKELY_PAGES_MAX } from '../pager/first-touches.js';
import { idSchema, LAYERS_OF_ORIGIN_MAX, originSchema } from './origins.js';
import { familySchema, guestStateSchema } from './snapshot-file.js';

/** 1 TiB of RAM; a map is highly compressible, so the deflated size says nothing. */
const MAP_BYTES_MAX = 2 ** 29 + 64;
const OBJECTS_MAX = 14;

/** QEMU's devices have some 100 KB of it. */
const DEVICE_STATE_BYTES_MAX = 64 * 1024 * 1024;
/** 2^35 pages are 128 TiB. */
const TOUCH_BITS_MAX = 36;
const TOUCH_BYTES_MAX = 6;

const bytes = z.custom<Uint8Array>((value) => value instanceof Uint8Array);

export const descriptorSchema = z.strictObject({
  version: z.literal(1),
  id: idSchema,
  image: z.string().exactOptional(),
  vm: z.string().exactOptional(),
  family: familySchema.exactOptional(),
  parent: z.string().exactOptional(),
  createdAt: z.number(),
  machine: machineSchema,
  pages: pageCountsSchema,
  guest: guestStateSchema,
  /** Deflated. */
  deviceState: bytes,
  objects: z
    .array(
      z.strictObject({
        name: idSchema,
        sizeBytes: z.number().int().nonnegative(),
        /** A page map (`docs/internals/formats.md`), deflated. */
        map: bytes,
        layers: z.array(idSchema).max(LAYERS_OF_ORIGIN_MAX),
        /** Of a disk: the snapshot that has it, unchanged since, for all that came of it. */
        owner: idSchema.exactOptional(),
      }),
    )
    .max(OBJECTS_MAX),
  origins: z.array(originSchema),
  /** What earlier clones touched, packed. */
  faults: bytes,
});
export type Descriptor = z.infer<typeof descriptorSchema>;

export function packMap(map: PageMap): Buffer {
  return pack(encodePageMap(map));
}

/** @throws SnowforkError SF_BAD_REQUEST when it is no page map. */
export function unpackMap(packed: Uint8Array): PageMap {
  return unpack('a page map', () => decodePageMap(inflate(packed, MAP_BYTES_MAX)));
}

export function packDeviceState(deviceState: Buffer): Buffer {
  return pack(deviceState);
}

/** @throws SnowforkError SF_BAD_REQUEST when it can't be unpacked. */
export function unpackDeviceState(packed: Uint8Array): Buffer {
  return unpack('device state', () => inflate(packed, DEVICE_STATE_BYTES_MAX));
}

/** Pages in the order in which clones touched them; of more than are wanted the first. */
export function packTouches(pages: readonly number[]): Buffer {
  const wanted = pages.slice(0, LIKELY_PAGES_MAX);
  const encoded = Buffer.alloc(wanted.length * TOUCH_BYTES_MAX);
  let length = 0;
  let before = 0;
  for (const page of wanted) {
    const difference = page - before;
    before = page;
    let rest = difference < 0 ? -2 * difference - 1 : 2 * difference;
    for (; rest >= 128; rest = Math.floor(rest / 128)) encoded[length++] = 128 + (rest % 128);
    encoded[length++] = rest;
  }
  return pack(encoded.subarray(0, length));
}

/** @throws SnowforkError SF_BAD_REQUEST when they are none. */
export function unpackTouches(packed: Uint8Array): number[] {
  return unpack('first touches', () => {
    return decodeTouches(inflate(packed, LIKELY_PAGES_MAX * TOUCH_BYTES_MAX));
  });
}

function decodeTouches(encoded: Buffer): number[] {
  const pages: number[] = [];
  let page = 0;
  for (let at = 0; at < encoded.length; ) {
    let value = 0;
    let bits = 0;
    let byte: number;
    do {
      byte = encoded[at++] ?? 128;
      value += (byte % 128) * 2 ** bits;
      bits += 7;
      if (at > encoded.length || bits > TOUCH_BITS_MAX + 7) throw new RangeError('cut short');
    } while (byte >= 128);
    page += value % 2 === 0 ? value / 2 : -(value + 1) / 2;
    if (page < 0 || pages.length === LIKELY_PAGES_MAX) throw new RangeError('no page');
    pages.push(page);
  }
  return pages;
}

function pack(content: Buffer): Buffer {
  return deflateRawSync(content, { level: 1 });
}

function inflate(packed: Uint8Array, maxOutputLength: number): Buffer {
  return inflateRawSync(packed, { maxOutputLength });
}

function unpack<T>(what: string, by: () => T): T {
  try {
    return by();
  } catch (cause) {
    throw new SnowforkError('SF_BAD_REQUEST', `${what} can't be read: ${String(cause)}`, { cause });
  }
}
