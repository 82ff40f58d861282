// Certificates that run out: who gets another one, of whom, and that it is shown from then on. Real TLS
// on addresses of this machine; with agents and etcd, `net/renewal` tests it.

import { X509Certificate } from 'node:crypto';
import tls from 'node:tls';
import pino from 'pino';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import {
  lifeOf,
  makeAuthority,
  makeRequest,
  signHost,
} from '../../packages/clone-agent/src/cluster/authority.js';
import type { ClusterFile } from '../../packages/clone-agent/src/cluster/cluster-file.js';
import type { PeerHandlers } from '../../packages/clone-agent/src/cluster/peer-methods.js';
import { PeerServer } from '../../packages/clone-agent/src/cluster/peer-server.js';
import { Peers } from '../../packages/clone-agent/src/cluster/peers.js';
import {
  isDue,
  Renewal,
  renewFor,
  renewOwn,
} from '../../packages/clone-agent/src/cluster/renewal.js';
import { eventually } from '../support/eventually.js';

const ADDRESS = '127.0.0.1';
const FIRST_PORT = 28_410;
const CLUSTER = '0123456789abcdef';
/** Of a certificate that is due, and has a while left also for a busy machine. */
const OLD_MS = 30_000;
const SHORT_MS = 45_000;
const LONG_MS = 3_600_000;
const LOG = pino({ level: 'silent' });

let port = FIRST_PORT + (process.pid % 1000);
let alpha: ClusterFile;
let server: PeerServer | undefined;
let peers: Peers | undefined;
let renewal: Renewal | undefined;

beforeEach(async () => {
  port += 1;
  const authority = await makeAuthority(CLUSTER);
  alpha = await hostFile('alpha', authority, LONG_MS);
  alpha = { ...alpha, caKey: authority.privateKey };
});

afterEach(() => {
  renewal?.stop();
  peers?.close();
  server?.close();
});

async function hostFile(
  name: string,
  authority: { certificate: string; privateKey: string },
  lifetimeMs: number,
): Promise<ClusterFile> {
  const { request, privateKey } = await makeRequest(name);
  const signing = { request, address: ADDRESS, cluster: CLUSTER, host: name, lifetimeMs };
  return {
    version: 1,
    cluster: { id: CLUSTER, name: 'test' },
    host: { id: CLUSTER, name, address: ADDRESS, port },
    ca: authority.certificate,
    certificate: await signHost(authority, signing),
    privateKey,
    store: { endpoints: ['https://127.0.0.1:7412'] },
  };
}

async function betaFile(lifetimeMs: number): Promise<ClusterFile> {
  const authority = { certificate: alpha.ca, privateKey: alpha.caKey! };
  return await hostFile('beta', authority, lifetimeMs);
}

async function dueFile(): Promise<ClusterFile> {
  vi.useFakeTimers({ toFake: ['Date'], now: Date.now() - OLD_MS });
  try {
    return await betaFile(SHORT_MS);
  } finally {
    vi.useRealTimers();
  }
}

async function listen(of: { members: string[]; file?: ClusterFile }): Promise<void> {
  const { members, file = alpha } = of;
  const isMember = (name: string) => members.includes(name);
  const handlers: Partial<PeerHandlers> = {
    ping: async () => ({ version: '1', nowMs: 1 }),
    renew: (params, host) => renewFor(host, params, { file, lifetimeMs: LONG_MS, isMember }),
  };
  server = await PeerServer.listen({
    ...{ file: alpha, log: LOG, handlers: handlers as PeerHandlers },
    join: async () => undefined,
    serveApi: (socket) => socket.end(),
    isRemoved: () => false,
  });
}

/** A host that renews its certificate, with what it has now. */
function renewing(first: ClusterFile): { file: ClusterFile; warnings: unknown[] } {
  const now = { file: first, warnings: [] as unknown[] };
  peers = new Peers(first, (name) => ({ name, address: ADDRESS, port }));
  const link = peers;
  const warn = (of: { err: Error }) => now.warnings.push(of.err.message);
  renewal = new Renewal({
    log: { warn } as unknown as typeof LOG,
    lifetimeMs: LONG_MS,
    file: () => now.file,
    hosts: () => ['alpha', 'beta'],
    ask: (host, params, signal) => link.call(host, 'renew', params, signal),
    renewed: async (file) => {
      now.file = file;
      link.useCertificate(file);
    },
  });
  void renewal.run();
  return now;
}

/** The certificate that the host there shows. */
async function shownAt(of: ClusterFile): Promise<string> {
  const socket = tls.connect({
    host: ADDRESS,
    port,
    ca: of.ca,
    checkServerIdentity: () => undefined,
  });
  await new Promise((resolve, reject) => {
    socket.once('secureConnect', resolve);
    socket.once('error', reject);
  });
  const shown = socket.getPeerX509Certificate()!.fingerprint256;
  socket.destroy();
  return shown;
}

const fingerprint = (pem: string) => new X509Certificate(pem).fingerprint256;

test('a certificate is due with a third of its life left, and not before', async () => {
  const file = await betaFile(LONG_MS);
  const { beganMs, endsMs } = lifeOf(file.certificate);
  expect(Math.abs(endsMs - beganMs - LONG_MS)).toBeLessThanOrEqual(1000);
  vi.useFakeTimers({ toFake: ['Date'], now: beganMs + LONG_MS * 0.66 });
  try {
    expect(isDue(file)).toBe(false);
    vi.setSystemTime(beganMs + LONG_MS * 0.67);
    expect(isDue(file)).toBe(true);
  } finally {
    vi.useRealTimers();
  }
});

test('a host gets another one, with a new key, before the old one runs out', async () => {
  const old = await dueFile();
  await listen({ members: ['alpha', 'beta'] });
  const now = renewing(old);
  await eventually(() => expect(now.file).not.toBe(old));
  expect(Date.now()).toBeLessThan(lifeOf(old.certificate).endsMs);
  expect(now.file.privateKey).not.toBe(old.privateKey);
  expect(lifeOf(now.file.certificate).endsMs).toBeGreaterThan(Date.now() + LONG_MS / 2);
  // By the time that the old one is refused, the new one is shown.
  peers!.close();
  await new Promise((resolve) =>
    setTimeout(resolve, lifeOf(old.certificate).endsMs - Date.now() + 1000),
  );
  const stale = new Peers(old, (name) => ({ name, address: ADDRESS, port }));
  await expect(stale.call('alpha', 'ping', {})).rejects.toMatchObject({ code: 'SF_PERMISSION' });
  stale.close();
  expect(await peers!.call('alpha', 'ping', {})).toMatchObject({ version: '1' });
});

test('a host that was taken out gets none, and goes on to ask', async () => {
  await listen({ members: ['alpha'] });
  const old = await dueFile();
  const now = renewing(old);
  await eventually(() => expect(now.warnings.length).toBeGreaterThan(1));
  expect(now.warnings[0]).toContain('the cluster has no such host now');
  expect(now.file).toBe(old);
});

test('a host that can not sign says so', async () => {
  const { caKey: _, ...file } = alpha;
  await listen({ members: ['alpha', 'beta'], file });
  const now = renewing(await dueFile());
  await eventually(() => expect(now.warnings.length).toBeGreaterThan(0));
  expect(now.warnings[0]).toContain('alpha has no key to sign with');
});

test('what another authority signed is not taken', async () => {
  const other = await makeAuthority(CLUSTER);
  const file = { ...alpha, ca: other.certificate, caKey: other.privateKey };
  await listen({ members: ['alpha', 'beta'], file });
  const old = await dueFile();
  const now = renewing(old);
  await eventually(() => expect(now.warnings.length).toBeGreaterThan(0));
  expect(now.warnings[0]).toContain('no certificate of this host');
  expect(now.file).toBe(old);
});

test('the host that can sign needs nobody, and shows its own to whoever comes then', async () => {
  await listen({ members: [] });
  expect(await shownAt(alpha)).toBe(fingerprint(alpha.certificate));
  const renewed = await renewOwn(alpha, LONG_MS);
  server!.useCertificate(renewed);
  expect(fingerprint(renewed.certificate)).not.toBe(fingerprint(alpha.certificate));
  expect(await shownAt(alpha)).toBe(fingerprint(renewed.certificate));
});
