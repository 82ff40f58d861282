// What a host knows of its cluster: who it is there, whom it trusts, and where the cluster's store is.
// `cluster.json` in the state folder; it holds the host's private key, so nobody else may read it.

import fs from 'node:fs';
import path from 'node:path';
import { hostNameSchema, SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';

export const PEER_PORT_DEFAULT = 7410;
/** Of a member of the store, on each host that runs one. */
export const STORE_PORTS = { clientPort: 7412, peerPort: 7413 } as const;

const port = z.number().int().min(1).max(65_535);
const pem = z.string().startsWith('-----BEGIN ');

export const clusterIdentitySchema = z.strictObject({
  id: z.string().regex(/^[0-9a-f]{16}$/),
  name: hostNameSchema,
});
export const storePlaceSchema = z.strictObject({
  /** Of etcd's members that vote, as last heard: https://ADDRESS:PORT. */
  endpoints: z.array(z.url()).min(1).max(16),
});

const clusterFileSchema = z.strictObject({
  version: z.literal(1),
  cluster: clusterIdentitySchema,
  host: z.strictObject({
    id: z.string().regex(/^[0-9a-f]{16}$/),
    name: hostNameSchema,
    /** Where other hosts reach this one. */
    address: z.ipv4(),
    port,
  }),
  ca: pem,
  certificate: pem,
  privateKey: pem,
  /** On the host that made the cluster: signs certificates. */
  caKey: pem.optional(),
  store: storePlaceSchema,
  /** This host runs a member of the store. */
  member: z.strictObject({ clientPort: port, peerPort: port }).optional(),
});
export type ClusterFile = z.infer<typeof clusterFileSchema>;

export function clusterFilePath(stateRoot: string): string {
  return path.join(stateRoot, 'cluster.json');
}

/** Undefined when the host is in no cluster. @throws SnowforkError SF_BAD_REQUEST: it is broken. */
export function readClusterFile(stateRoot: string): ClusterFile | undefined {
  const file = clusterFilePath(stateRoot);
  if (!fs.existsSync(file)) return undefined;
  try {
    return clusterFileSchema.parse(JSON.parse(fs.readFileSync(file, 'utf8')));
  } catch (cause) {
    const words = cause instanceof z.ZodError ? z.prettifyError(cause) : String(cause);
    throw new SnowforkError('SF_BAD_REQUEST', `${file} can't be read: ${words}`, { cause });
  }
}

export function writeClusterFile(stateRoot: string, content: ClusterFile): void {
  const file = clusterFilePath(stateRoot);
  fs.writeFileSync(`${file}.new`, JSON.stringify(content, null, 2), { mode: 0o600 });
  fs.renameSync(`${file}.new`, file);
}

export function removeClusterFile(stateRoot: string): void {
  fs.rmSync(clusterFilePath(stateRoot), { force: true });
}
