// How a host comes into a cluster: it has its key signed by the host that made the cluster, which it
// knows by the fingerprint in its token. Both ends of that one exchange.

import { X509Certificate } from 'node:crypto';
import tls, { type TLSSocket } from 'node:tls';
import { SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';
import { fingerprintOf, makeRequest, signHost } from './authority.js';
import {
  type ClusterFile,
  clusterIdentitySchema,
  PEER_PORT_DEFAULT,
  storePlaceSchema,
} from './cluster-file.js';
import { encodeFrame, firstFrame } from './peer-frames.js';
import type { Hello } from './peer-methods.js';
import { secured } from './peers.js';
import { readToken, type Tokens } from './token.js';

const ANSWER_BYTES_MAX = 1024 * 1024;
const ANSWER_TIMEOUT_MS = 20_000;

const joinedSchema = z.strictObject({
  cluster: clusterIdentitySchema,
  certificate: z.string(),
  ca: z.string(),
  store: storePlaceSchema,
});
type Joined = z.infer<typeof joinedSchema>;

export interface JoinRequest {
  /** Of a host of the cluster, `ADDRESS` or `ADDRESS:PORT`. */
  readonly at: string;
  readonly token: string;
  readonly host: ClusterFile['host'];
}

/** Asks to be a host of the cluster. @throws SnowforkError SF_PERMISSION, SF_HOST_UNREACHABLE. */
export async function askToJoin({ at, token: text, host }: JoinRequest): Promise<ClusterFile> {
  const token = readToken(text);
  const [address, port = String(PEER_PORT_DEFAULT)] = at.split(':') as [string, string?];
  const { request, privateKey } = await makeRequest(host.name);
  const socket = tls.connect({
    host: address,
    port: Number(port),
    minVersion: 'TLSv1.3',
    // The token says which authority to trust: checked below, before anything is told.
    rejectUnauthorized: false,
  });
  socket.on('error', () => socket.destroy());
  try {
    await secured(socket);
    const ca = assertAuthority(socket, token.fingerprint);
    const { name, address: own } = host;
    const hello: Hello = { for: 'join', token: token.secret, name, address: own, request };
    socket.write(encodeFrame(hello));
    const limits = { bytesMax: ANSWER_BYTES_MAX, timeoutMs: ANSWER_TIMEOUT_MS };
    const answer = (await firstFrame(socket, limits)) as { error?: unknown; result?: unknown };
    if (answer.error !== undefined) throw SnowforkError.fromJSON(answer.error);
    const { cluster, certificate, store } = joinedSchema.parse(answer.result);
    return { version: 1, cluster, host, ca, certificate, privateKey, store };
  } catch (cause) {
    if (cause instanceof SnowforkError) throw cause;
    const message = `${at} can't be joined: ${(cause as Error).message}`;
    throw new SnowforkError('SF_HOST_UNREACHABLE', message, { cause });
  } finally {
    socket.destroy();
  }
}

/** @throws SnowforkError SF_PERMISSION: the other end is not of the cluster that gave the token. */
function assertAuthority(socket: TLSSocket, fingerprint: string): string {
  const leaf = socket.getPeerX509Certificate();
  for (let issuer = leaf?.issuerCertificate; issuer !== undefined; ) {
    const isIt = fingerprintOf(issuer.toString()) === fingerprint;
    if (isIt && leaf!.verify(issuer.publicKey)) return issuer.toString();
    if (issuer.issuerCertificate?.fingerprint256 === issuer.fingerprint256) break;
    issuer = issuer.issuerCertificate;
  }
  const message =
    'the host there is not of the cluster that gave the token: nothing was told to it';
  throw new SnowforkError('SF_PERMISSION', message);
}

/** The other end. @throws SnowforkError SF_PERMISSION, SF_BAD_REQUEST. */
export async function admit(
  hello: Extract<Hello, { for: 'join' }>,
  of: {
    readonly file: ClusterFile;
    readonly tokens: Tokens;
    readonly lifetimeMs?: number;
    /** Whether a host of the cluster has that name already. */
    isTaken(name: string): boolean;
  },
): Promise<Joined> {
  const { ca, caKey, cluster, store, host } = of.file;
  if (caKey === undefined) {
    const message = `${host.name} can't sign: ask the host on which \`sf cluster init\` was run`;
    throw new SnowforkError('SF_BAD_REQUEST', message);
  }
  of.tokens.assertValid(hello.token);
  if (of.isTaken(hello.name)) {
    const message = `the cluster has a host ${hello.name} already: \`--name\` gives another name`;
    throw new SnowforkError('SF_BAD_REQUEST', message);
  }
  const authority = { certificate: ca, privateKey: caKey };
  const { request, address, name } = hello;
  const certificate = await signHost(authority, {
    ...{ request, address },
    ...{ cluster: cluster.id, host: name },
    ...(of.lifetimeMs === undefined ? {} : { lifetimeMs: of.lifetimeMs }),
  });
  // What is no certificate must not be handed out.
  new X509Certificate(certificate);
  return { cluster, certificate, ca, store };
}
