// What programs of a guest ask the agent for, through `sf-guestd`: REQUEST frames carry
// `{ id, method, params }`, RESPONSE frames `{ id, result }` or `{ id, error }`, as MessagePack.
// Guests are hostile: the agent decodes with these schemas and nothing else.

import { z } from 'zod';
import { cloneCountSchema, placingSchema, ticketSchema } from './schemas.js';

/** A slot as its parent sees it; the value is fetched apart (`result`), as it may be large. */
export const guestSlotSchema = z.object({
  cloneId: z.number().int(),
  status: z.enum(['running', 'exited', 'lost']),
  reason: z.string().optional(),
});
const ticketId = z.string().max(64);
/**
 * Without it a clone belongs to the connection that asked: when that closes without `exit`, the
 * clone is over and its slot lost. `sf-guest`, which ends as soon as it has its answer, sets it.
 */
const detached = z.boolean().optional();
export const guestMethods = {
  /** Room for n clones of this VM. */
  requestTicket: {
    params: placingSchema.extend({ clones: cloneCountSchema }),
    result: ticketSchema,
  },
  /** Freeze this VM and start the ticket's clones: answered in the parent with id 0, in clone k with id k. */
  clone: {
    params: z.strictObject({ ticket: ticketId, detached }),
    result: z.object({ id: z.number().int(), ticket: ticketSchema }),
  },
  /** `requestTicket` and `clone` in one. */
  fork: {
    params: placingSchema.extend({ clones: cloneCountSchema, detached }),
    result: z.object({ id: z.number().int(), ticket: ticketSchema }),
  },
  /** Freeze and keep: answered with `restored: false` here, `true` in clones made of it, with their id. */
  checkpoint: {
    params: z.strictObject({ detached }),
    result: z.object({ checkpoint: z.string(), id: z.number().int(), restored: z.boolean() }),
  },
  createClones: {
    params: z.strictObject({ checkpoint: z.string().max(64), ticket: ticketId }),
    result: ticketSchema,
  },
  /** Ends this VM; `value` is MessagePack. There is no response. */
  exit: { params: z.strictObject({ value: z.instanceof(Uint8Array) }), result: z.null() },
  /** Answered when every slot has settled, or after timeoutMs with some still `running`. */
  join: {
    params: z.strictObject({ ticket: ticketId, timeoutMs: z.number().nonnegative().optional() }),
    result: z.object({ slots: z.array(guestSlotSchema) }),
  },
  /** The value, as MessagePack, that a slot of status `exited` handed over. */
  result: {
    params: z.strictObject({ ticket: ticketId, cloneId: z.number().int() }),
    result: z.instanceof(Uint8Array),
  },
  kill: { params: z.strictObject({ ticket: ticketId }), result: z.null() },
  /** Who am I. */
  info: {
    params: z.strictObject({}),
    result: z.object({
      vm: z.string(),
      id: z.number().int(),
      family: z.string(),
      parent: z.string().optional(),
    }),
  },
} as const;

export type GuestMethod = keyof typeof guestMethods;
export type GuestParams<M extends GuestMethod> = z.infer<(typeof guestMethods)[M]['params']>;
export type GuestResult<M extends GuestMethod> = z.infer<(typeof guestMethods)[M]['result']>;

export const guestRequestSchema = z.object({
  id: z.number().int().nonnegative(),
  method: z.enum(Object.keys(guestMethods) as [GuestMethod, ...GuestMethod[]]),
  params: z.unknown(),
});
export const guestResponseSchema = z.object({
  id: z.number().int(),
  result: z.unknown().optional(),
  error: z.unknown().optional(),
});
