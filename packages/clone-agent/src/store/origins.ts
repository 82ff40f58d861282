// Where the pages of a layer come from that lies on another host: read and written by the snapshot
// store, read by the pager, told from agent to agent. Only the form; nobody is asked for anything here.

import { z } from 'zod';

const port = z.number().int().min(1).max(65_535);
const address = z.ipv4();
/** Ids become parts of paths. */
export const idSchema = z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/);
export const LAYERS_OF_ORIGIN_MAX = 4096;

/** A snapshot as one memory server serves it: what a receiver must know. */
export const originSchema = z.object({
  /** The host, and its name of the snapshot. */
  host: z.string().max(64),
  snapshot: idSchema,
  /** Of the memory server. */
  address,
  port,
  /** 32 bytes in base64: seals all datagrams of the snapshot. */
  key: z.base64().length(44),
  /** Where replies are multicast. */
  group: z.object({ address, port }),
  /** The memory server's number of a layer is its place here. */
  layers: z.array(idSchema).max(LAYERS_OF_ORIGIN_MAX),
  /** The memory server of a host that fetches it too: asked where multicast does not reach. */
  neighbour: z.object({ host: z.string().max(64), address, port }).exactOptional(),
});
export type Origin = z.infer<typeof originSchema>;

/** The file that says which pages of a replica are here. */
export function heldPath(layerPath: string): string {
  return `${layerPath}.held`;
}
