// Messages about a cluster: its making, its tokens, its hosts. See `schemas.ts` for the forms.

import { z } from 'zod';
import { hostNameSchema } from './schemas.js';

const port = z.number().int().min(1).max(65_535);
const ms = z.number().nonnegative();

/** Who this host is to be among the others. */
const selfSchema = {
  host: hostNameSchema,
  /** IPv4, where the others reach it. */
  address: z.ipv4({ error: 'an address is IPv4, as 192.168.1.5' }),
  port: port.exactOptional(),
};
export const clusterInitRequestSchema = z.strictObject({ name: hostNameSchema, ...selfSchema });
export type ClusterInitRequest = z.infer<typeof clusterInitRequestSchema>;

export const clusterJoinRequestSchema = z.strictObject({
  /** Of the host that made the cluster: ADDRESS or ADDRESS:PORT. */
  at: z.string().regex(/^\d+\.\d+\.\d+\.\d+(:\d+)?$/, {
    error: 'a host to join is ADDRESS or ADDRESS:PORT',
  }),
  token: z.string().max(256),
  ...selfSchema,
});
export type ClusterJoinRequest = z.infer<typeof clusterJoinRequestSchema>;

const DAY_MS = 24 * 3_600_000;
export const tokenRequestSchema = z.strictObject({
  ttlMs: z.number().int().min(1000).max(DAY_MS).exactOptional(),
});
export const tokenSchema = z.object({
  token: z.string(),
  /** What `sf host join` wants. */
  address: z.string(),
  expiresAt: ms,
});
export type JoinToken = z.infer<typeof tokenSchema>;

export const clusterSchema = z.object({ name: z.string(), id: z.string(), host: z.string() });
export type ClusterInfo = z.infer<typeof clusterSchema>;

export const clusterHostSchema = z.object({
  name: z.string(),
  address: z.string(),
  port,
  version: z.string(),
  startedAt: ms,
  state: z.enum(['up', 'draining']),
  /** Running VMs. */
  vms: z.number().int(),
  /** Memory for VMs more, and how many more there may be. */
  roomBytes: z.number(),
  slots: z.number().int(),
  /** It runs a member of the cluster's store. */
  storeMember: z.boolean(),
});
export type ClusterHost = z.infer<typeof clusterHostSchema>;
export const clusterHostListSchema = z.object({ hosts: z.array(clusterHostSchema) });
