// What agents ask of each other about clones. A host that forks asks others to run some of the clones;
// they tell it what becomes of those. Both ends check with these schemas.

import {
  cloneCountSchema,
  type ForkResult,
  forkResultSchema,
  ticketSchema,
} from '@snowfork/sdk/api';
import { z } from 'zod';
import { descriptorSchema } from '../store/descriptor.js';
import { standingSchema } from '../store/journal.js';
import { idSchema } from '../store/origins.js';

const bytes = z.custom<Uint8Array>((value) => value instanceof Uint8Array);
const cloneId = z.number().int().min(1);

export const startedCloneSchema = forkResultSchema.shape.clones.element;
export type StartedClone = ForkResult['clones'][number];

export const cloneMethods = {
  /** Run these clones of the snapshot: answered when each has come up, or not. */
  startClones: {
    params: z.strictObject({
      descriptor: descriptorSchema,
      ticket: ticketSchema.extend({ id: idSchema }),
      cloneIds: z
        .array(cloneId)
        .min(1)
        .max(cloneCountSchema.maxValue ?? 256),
      descent: z.strictObject({
        image: z.string(),
        parent: z.string().exactOptional(),
        family: z.string().exactOptional(),
        launched: z.boolean().exactOptional(),
      }),
      /** Of the clone with id 0, if there were one: the others count on from its ordinal. */
      standing: standingSchema,
    }),
    result: z.strictObject({ clones: z.array(startedCloneSchema) }),
  },
  /** A clone of a ticket of the asked host has come to its end. */
  settle: {
    params: z.strictObject({
      ticket: idSchema,
      cloneId,
      how: z.union([z.strictObject({ value: bytes }), z.strictObject({ reason: z.string() })]),
    }),
    result: z.null(),
  },
  /** Which clones of the asking host's ticket the asked host runs, or has still to tell of. */
  clonesOf: {
    params: z.strictObject({ ticket: idSchema }),
    result: z.strictObject({ cloneIds: z.array(cloneId) }),
  },
  /** End the clones of the asking host's ticket. */
  killTicket: { params: z.strictObject({ ticket: idSchema }), result: z.null() },
  /** A snapshot of the asked host, for a host that is to run clones of it; it is kept for it. */
  describe: {
    params: z.strictObject({ snapshot: idSchema }),
    result: z.strictObject({ descriptor: descriptorSchema }),
  },
  /** Which of the asking host's snapshots the asked host has in use. */
  needs: { params: z.strictObject({}), result: z.strictObject({ snapshots: z.array(idSchema) }) },
  /** The asking host has layers of it in use. */
  hold: { params: z.strictObject({ snapshot: idSchema }), result: z.null() },
  /** What clones on the asking host have touched, of a snapshot that it was lent; packed. */
  touched: {
    params: z.strictObject({ snapshot: idSchema, pages: bytes }),
    result: z.null(),
  },
  /** Bring here all pages that the asked host still needs of that host: it is to go. */
  detachFrom: {
    params: z.strictObject({ host: z.string() }),
    result: z.strictObject({ pages: z.number().int() }),
  },
  /** Nothing of the asking host needs the snapshot any more. */
  letGo: { params: z.strictObject({ snapshot: idSchema }), result: z.null() },
} as const;

export type CloneMethod = keyof typeof cloneMethods;
export type CloneParams<M extends CloneMethod> = z.infer<(typeof cloneMethods)[M]['params']>;
export type CloneResult<M extends CloneMethod> = z.infer<(typeof cloneMethods)[M]['result']>;

/** `host` is the one that asks, by its certificate. */
export type CloneHandlers = {
  readonly [M in CloneMethod]: (
    params: CloneParams<M>,
    host: string,
    signal: AbortSignal,
  ) => Promise<CloneResult<M>>;
};

/** @throws SnowforkError SF_HOST_UNREACHABLE, and whatever the other host says. */
export type CallPeer = <M extends CloneMethod>(
  host: string,
  method: M,
  params: CloneParams<M>,
  signal?: AbortSignal,
) => Promise<CloneResult<M>>;
