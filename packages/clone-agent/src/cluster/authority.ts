// The certificates of a cluster: an authority of its own, made with the cluster, that signs one for
// each host. Nobody outside is trusted, and a certificate says which host of which cluster it is of.
// Knows no sockets; `peer-link.ts` checks with what is here.

import 'reflect-metadata';
import { randomBytes, webcrypto, X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import * as x509 from '@peculiar/x509';
import { SnowforkError } from '@snowfork/sdk/api';

// Its types are those of browsers.
type KeyPair = x509.Pkcs10CertificateRequestCreateParams['keys'];
type Key = KeyPair['privateKey'];
x509.cryptoProvider.set(webcrypto as unknown as Parameters<typeof x509.cryptoProvider.set>[0]);

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const YEAR_MS = 365 * 24 * 3_600_000;
const AUTHORITY_LIFETIME_MS = 10 * YEAR_MS;
export const HOST_LIFETIME_MS = 2 * YEAR_MS;
/** Clocks of hosts differ. */
const BACKDATED_MS = 24 * 3_600_000;
/** Members of the store are called so by their clients: gRPC wants a name, not an address. */
export const STORE_SERVER_NAME = 'store.snowfork';
const URI_PREFIX = 'snowfork://';

export interface Signed {
  /** PEM. */
  readonly certificate: string;
  readonly privateKey: string;
}

export interface PeerIdentity {
  readonly cluster: string;
  readonly host: string;
}

export async function makeAuthority(cluster: string): Promise<Signed> {
  const keys = await makeKeys();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(),
    name: `CN=snowfork ${cluster}`,
    ...lifetime(AUTHORITY_LIFETIME_MS),
    keys,
    signingAlgorithm: ALGORITHM,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign, true),
    ],
  });
  return { certificate: certificate.toString('pem'), privateKey: await exportKey(keys) };
}

/** A key of a host's own, and the request to have it signed; the key stays on the host. */
export async function makeRequest(host: string): Promise<{ request: string; privateKey: string }> {
  const keys = await makeKeys();
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: `CN=${host}`,
    keys,
    signingAlgorithm: ALGORITHM,
  });
  return { request: request.toString('pem'), privateKey: await exportKey(keys) };
}

/** @throws SnowforkError SF_BAD_REQUEST when the request is none, or not signed by its own key. */
export async function signHost(
  authority: Signed,
  of: {
    readonly request: string;
    readonly address: string;
    readonly lifetimeMs?: number;
  } & PeerIdentity,
): Promise<string> {
  const request = await readRequest(of.request);
  const issuer = new x509.X509Certificate(authority.certificate);
  const { clientAuth, serverAuth } = x509.ExtendedKeyUsage;
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: serialNumber(),
    subject: `CN=${of.host}`,
    issuer: issuer.subject,
    ...lifetime(of.lifetimeMs ?? HOST_LIFETIME_MS),
    publicKey: request.publicKey,
    signingKey: await importKey(authority.privateKey),
    signingAlgorithm: ALGORITHM,
    extensions: [
      new x509.BasicConstraintsExtension(false),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      // etcd takes the same certificate.
      new x509.ExtendedKeyUsageExtension([clientAuth, serverAuth]),
      new x509.SubjectAlternativeNameExtension([
        { type: 'ip', value: of.address },
        { type: 'dns', value: STORE_SERVER_NAME },
        { type: 'url', value: `${URI_PREFIX}${of.cluster}/${of.host}` },
      ]),
    ],
  });
  return certificate.toString('pem');
}

/** Of an authority's certificate, in hex: whom a token lets a host trust. */
export function fingerprintOf(certificate: string): string {
  return new X509Certificate(certificate).fingerprint256.replaceAll(':', '').toLowerCase();
}

/** When a certificate was signed and when it runs out, in milliseconds since the epoch. */
export function lifeOf(certificate: string): { beganMs: number; endsMs: number } {
  const { validFrom, validTo } = new X509Certificate(certificate);
  return { beganMs: Date.parse(validFrom) + BACKDATED_MS, endsMs: Date.parse(validTo) };
}

/** Who is at the other end, by a certificate that was verified; undefined when it says nothing. */
export function identityOf(socket: TLSSocket): PeerIdentity | undefined {
  const { subjectaltname } = socket.getPeerCertificate();
  const uri = subjectaltname
    ?.split(', ')
    .find((name) => name.startsWith(`URI:${URI_PREFIX}`))
    ?.slice('URI:'.length + URI_PREFIX.length);
  const [cluster, host, ...rest] = uri?.split('/') ?? [];
  if (cluster === undefined || host === undefined || rest.length > 0) return undefined;
  return { cluster, host };
}

async function readRequest(pem: string): Promise<x509.Pkcs10CertificateRequest> {
  try {
    const request = new x509.Pkcs10CertificateRequest(pem);
    if (await request.verify()) return request;
  } catch (cause) {
    throw new SnowforkError('SF_BAD_REQUEST', 'the request for a certificate is none', { cause });
  }
  throw new SnowforkError('SF_BAD_REQUEST', "the request for a certificate is not its key's own");
}

async function makeKeys(): Promise<KeyPair> {
  const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify']);
  return keys as unknown as KeyPair;
}

async function exportKey({ privateKey }: KeyPair): Promise<string> {
  const key = privateKey as unknown as webcrypto.CryptoKey;
  const encoded = await webcrypto.subtle.exportKey('pkcs8', key);
  return x509.PemConverter.encode(encoded as ArrayBuffer, 'PRIVATE KEY');
}

async function importKey(pem: string): Promise<Key> {
  const [encoded] = x509.PemConverter.decode(pem);
  const key = await webcrypto.subtle.importKey('pkcs8', encoded!, ALGORITHM, false, ['sign']);
  return key as unknown as Key;
}

function lifetime(lifetimeMs: number): { notBefore: Date; notAfter: Date } {
  const now = Date.now();
  return { notBefore: new Date(now - BACKDATED_MS), notAfter: new Date(now + lifetimeMs) };
}

/** Positive, as the first bit is clear. */
function serialNumber(): string {
  const bytes = randomBytes(16);
  bytes[0]! &= 0x7f;
  return bytes.toString('hex');
}
