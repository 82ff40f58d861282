// What agents may ask of each other, in one registry; both ends check with these schemas.

import { hostNameSchema, imageNameSchema, imageSchema, vmSchema } from '@snowfork/sdk/api';
import { z } from 'zod';
import { cloneMethods } from './clone-methods.js';

/** Of PEM: ours are a tenth of it. */
const REQUEST_CHARS_MAX = 8192;
const CERTIFICATE_CHARS_MAX = 16_384;

export const peerMethods = {
  ...cloneMethods,
  ping: {
    params: z.strictObject({}),
    result: z.object({
      version: z.string(),
      /** By its clock, since the epoch. */
      nowMs: z.number(),
      /** It runs no member of the store, and could. */
      canStore: z.boolean().optional(),
    }),
  },
  /** Another certificate for the asking host, of a host that can sign. */
  renew: {
    params: z.strictObject({ request: z.string().max(REQUEST_CHARS_MAX), address: z.ipv4() }),
    result: z.strictObject({ certificate: z.string().max(CERTIFICATE_CHARS_MAX) }),
  },
  /** The asked host's image of that name. */
  findImage: {
    params: z.strictObject({ name: imageNameSchema }),
    result: z.strictObject({ image: imageSchema.nullable() }),
  },
  /** The VMs of the asked host. */
  vms: {
    params: z.strictObject({ all: z.boolean() }),
    result: z.strictObject({ vms: z.array(vmSchema) }),
  },
} as const;

export type PeerMethod = keyof typeof peerMethods;
export type PeerParams<M extends PeerMethod> = z.infer<(typeof peerMethods)[M]['params']>;
export type PeerResult<M extends PeerMethod> = z.infer<(typeof peerMethods)[M]['result']>;

/** `host` is the one that asks, by its certificate. */
export type PeerHandlers = {
  readonly [M in PeerMethod]: (
    params: PeerParams<M>,
    host: string,
    signal: AbortSignal,
  ) => Promise<PeerResult<M>>;
};

/** The first frame of a connection: what it is for. */
export const helloSchema = z.discriminatedUnion('for', [
  /** Requests and responses follow. */
  z.strictObject({ for: z.literal('calls') }),
  /** The connection goes on as one to the host's own API. */
  z.strictObject({ for: z.literal('api') }),
  /** A host that has no certificate yet. */
  z.strictObject({
    for: z.literal('join'),
    token: z.string().max(256),
    name: hostNameSchema,
    address: z.ipv4(),
    request: z.string().max(REQUEST_CHARS_MAX),
  }),
]);
export type Hello = z.infer<typeof helloSchema>;

export const requestSchema = z.strictObject({
  id: z.number().int().nonnegative(),
  method: z.enum(Object.keys(peerMethods) as [PeerMethod, ...PeerMethod[]]),
  params: z.unknown(),
});
/** The asking side gave up. */
export const cancelSchema = z.strictObject({ cancel: z.number().int().nonnegative() });
export const responseSchema = z.strictObject({
  id: z.number().int().nonnegative(),
  result: z.unknown().optional(),
  error: z.unknown().optional(),
});
