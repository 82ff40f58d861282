// What a `snapshot.json` holds (docs/internals/formats.md): written and read by the snapshot store. The
// pager reads what it needs of it by a schema of its own.

import { type GuestMethod, guestMethods, machineSchema, pageCountsSchema } from '@snowfork/sdk/api';
import { z } from 'zod';
import { standingSchema } from './journal.js';
import { originSchema } from './origins.js';

/** Drawn once for a snapshot, so that receivers go on whatever dies here. */
const servedSchema = z.object({
  key: originSchema.shape.key,
  groupAddress: originSchema.shape.group.shape.address,
});
export type Served = z.infer<typeof servedSchema>;

const ownObjectSchema = z.object({
  name: z.string(),
  sizeBytes: z.number().int(),
  map: z.string(),
  layers: z.array(z.string()),
});
const inheritedObjectSchema = z.object({
  name: z.string(),
  sizeBytes: z.number().int(),
  /** `<snapshot>/<object>`: unchanged since that snapshot. */
  from: z.string(),
});
/** A request of one of the guest's programs. */
const pendingRequestSchema = z.object({
  stream: z.number(),
  id: z.number(),
  method: z.enum(Object.keys(guestMethods) as [GuestMethod, ...GuestMethod[]]),
});

export const familySchema = z.object({
  id: z.string(),
  image: z.string(),
  standing: standingSchema.optional(),
});

/** Requests of the guest's programs that were under way; clones answer them. */
export const guestStateSchema = z.object({
  caller: pendingRequestSchema.extend({ detached: z.boolean() }).optional(),
  pending: z.array(pendingRequestSchema),
  /** What its monotonic clock showed when it was stopped: `guest/clock.ts`. */
  clock: z.object({ monotonicMs: z.number(), lowMs: z.number(), highMs: z.number() }).optional(),
});

export const snapshotFileSchema = z.object({
  version: z.literal(1),
  /** The content is not there yet: a freeze is going on. */
  pending: z.literal(true).optional(),
  number: z.number().int(),
  id: z.string(),
  image: z.string().optional(),
  vm: z.string().optional(),
  /** Of the VM that was frozen, which may be forgotten sooner than this. */
  family: familySchema.optional(),
  parent: z.string().optional(),
  createdAt: z.number(),
  kept: z.boolean(),
  machine: machineSchema,
  pages: pageCountsSchema,
  layerBytes: z.number(),
  deviceStateBytes: z.number(),
  objects: z.array(z.union([ownObjectSchema, inheritedObjectSchema])),
  guest: guestStateSchema,
  /** Of layers that lie, whole, on other hosts only. */
  origins: z.array(originSchema).optional(),
  /** With which the memory server of this host serves it, since another host first wanted it. */
  served: servedSchema.optional(),
  /** Hosts that need pages of it. */
  lentTo: z.array(z.string()).optional(),
});
export type SnapshotFile = z.infer<typeof snapshotFileSchema>;
export type OwnObject = z.infer<typeof ownObjectSchema>;
