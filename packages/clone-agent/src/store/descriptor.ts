// A snapshot on its way to another host: all of it but the pages. Made by the host that has the
// snapshot, taken in by one that is to run clones of it; goes from agent to agent over TLS.

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

/** Pages in the order in which clones touched them. */
export const touchesSchema = z.array(z.number().int().nonnegative()).max(LIKELY_PAGES_MAX);

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
  /** What earlier clones touched. */
  faults: touchesSchema,
});
export type Descriptor = z.infer<typeof descriptorSchema>;

export function packMap(map: PageMap): Buffer {
  return deflateRawSync(encodePageMap(map), { level: 1 });
}

/** @throws SnowforkError SF_BAD_REQUEST when it is no page map. */
export function unpackMap(packed: Uint8Array): PageMap {
  try {
    return decodePageMap(inflateRawSync(packed, { maxOutputLength: MAP_BYTES_MAX }));
  } catch (cause) {
    throw new SnowforkError('SF_BAD_REQUEST', `a page map can't be read: ${String(cause)}`, {
      cause,
    });
  }
}
