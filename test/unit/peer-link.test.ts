// The link between agents: who may come in, what is said to who may not, and that calls come through.
// Real TLS on addresses of this machine, certificates of authorities made here.

import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import tls from 'node:tls';
import { SnowforkError } from '@snowfork/sdk/api';
import pino from 'pino';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  fingerprintOf,
  makeAuthority,
  makeRequest,
  signHost,
} from '../../packages/clone-agent/src/cluster/authority.js';
import type { ClusterFile } from '../../packages/clone-agent/src/cluster/cluster-file.js';
import { admit, askToJoin } from '../../packages/clone-agent/src/cluster/joining.js';
import type { PeerHandlers } from '../../packages/clone-agent/src/cluster/peer-methods.js';
import { PeerServer } from '../../packages/clone-agent/src/cluster/peer-server.js';
import { Peers } from '../../packages/clone-agent/src/cluster/peers.js';
import { Tokens } from '../../packages/clone-agent/src/cluster/token.js';
import { eventually } from '../support/eventually.js';

const ADDRESS = '127.0.0.1';
const FIRST_PORT = 27_410;
const CLUSTER = '0123456789abcdef';
const OTHER_CLUSTER = 'fedcba9876543210';
const HOUR_MS = 3_600_000;

let folder: string;
let server: PeerServer | undefined;
let peers: Peers | undefined;
let port = FIRST_PORT + (process.pid % 1000);
const said: string[] = [];
const removed = new Set<string>();

beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'sf-peers-'));
  said.length = 0;
  removed.clear();
  port += 1;
});

afterEach(() => {
  peers?.close();
  server?.close();
  fs.rmSync(folder, { recursive: true });
});

/** A host of a cluster with an authority of its own; `of` signs for a second host of the same one. */
async function hostFile(name: string, cluster: string, of?: ClusterFile): Promise<ClusterFile> {
  const authority =
    of === undefined ? await makeAuthority(cluster) : { certificate: of.ca, privateKey: of.caKey! };
  const { request, privateKey } = await makeRequest(name);
  const signing = { request, address: ADDRESS, cluster, host: name };
  return {
    version: 1,
    cluster: { id: cluster, name: 'test' },
    host: { id: CLUSTER, name, address: ADDRESS, port },
    ca: authority.certificate,
    certificate: await signHost(authority, signing),
    privateKey,
    caKey: authority.privateKey,
    store: { endpoints: ['https://127.0.0.1:7412'] },
  };
}

async function listen(file: ClusterFile, handlers: Partial<PeerHandlers> = {}): Promise<Tokens> {
  const tokens = new Tokens(folder);
  const log = pino({ level: 'warn' }, { write: (line: string) => void said.push(line) });
  server = await PeerServer.listen({
    ...{ file, log, handlers: handlers as PeerHandlers },
    join: (hello) => admit(hello, { file, tokens, isTaken: (name) => name === 'alpha' }),
    serveApi: (socket) => socket.end('api'),
    isRemoved: (host) => removed.has(host),
  });
  return tokens;
}

function peersOf(file: ClusterFile, name = 'alpha'): Peers {
  peers = new Peers(file, () => ({ name, address: ADDRESS, port }));
  return peers;
}

const joining = (token: string, name = 'beta') =>
  askToJoin({
    ...{ at: `${ADDRESS}:${port}`, token },
    host: { id: CLUSTER, name, address: ADDRESS, port },
  });

describe('a call', () => {
  it('comes through, with who makes it, and so do its errors', async () => {
    const alpha = await hostFile('alpha', CLUSTER);
    await listen(alpha, {
      ping: async (_params, host) => ({ version: `for ${host}`, nowMs: 1 }),
      letGo: async () => {
        throw new SnowforkError('SF_SNAPSHOT_IN_USE', 'not yet', { details: { users: ['vm1'] } });
      },
    });
    const link = peersOf(await hostFile('beta', CLUSTER, alpha));
    expect(await link.call('alpha', 'ping', {})).toEqual({ version: 'for beta', nowMs: 1 });
    await expect(link.call('alpha', 'letGo', { snapshot: 's1' })).rejects.toMatchObject({
      code: 'SF_SNAPSHOT_IN_USE',
      details: { users: ['vm1'] },
    });
    const misshapen = { snapshot: '../etc' };
    await expect(link.call('alpha', 'letGo', misshapen)).rejects.toMatchObject({
      code: 'SF_BAD_REQUEST',
    });
  });

  it('is given up on both sides by who makes it', async () => {
    const alpha = await hostFile('alpha', CLUSTER);
    const called = vi.fn();
    const aborted = vi.fn();
    await listen(alpha, {
      ping: (_params, _host, signal) =>
        new Promise((_, reject) => {
          called();
          signal.addEventListener('abort', () => {
            aborted();
            reject(signal.reason);
          });
        }),
    });
    const caller = new AbortController();
    const call = peersOf(await hostFile('beta', CLUSTER, alpha)).call(
      'alpha',
      'ping',
      {},
      caller.signal,
    );
    await eventually(() => expect(called).toHaveBeenCalled());
    caller.abort();
    await expect(call).rejects.toMatchObject({ code: 'SF_ABORTED' });
    await eventually(() => expect(aborted).toHaveBeenCalled());
  });

  it('is given up while the other host is still to answer who it is', async () => {
    const alpha = await hostFile('alpha', CLUSTER);
    const sockets: net.Socket[] = [];
    const silent = net.createServer((socket) => {
      socket.on('error', () => {});
      sockets.push(socket);
    });
    await new Promise<void>((resolve) => silent.listen(port, ADDRESS, resolve));
    try {
      const caller = new AbortController();
      const link = peersOf(await hostFile('beta', CLUSTER, alpha));
      const call = link.call('alpha', 'ping', {}, caller.signal);
      const refused = expect(call).rejects.toMatchObject({ code: 'SF_ABORTED' });
      await eventually(() => expect(sockets).toHaveLength(1));
      caller.abort();
      await refused;
    } finally {
      for (const socket of sockets) socket.destroy();
      silent.close();
    }
  });

  it('is refused to a host of another cluster, and by one', async () => {
    await listen(await hostFile('alpha', CLUSTER));
    const stranger = peersOf(await hostFile('beta', OTHER_CLUSTER));
    await expect(stranger.call('alpha', 'ping', {})).rejects.toMatchObject({
      code: 'SF_HOST_UNREACHABLE',
    });
  });

  it('is refused to a host that was taken out, on connections that it has as well', async () => {
    const alpha = await hostFile('alpha', CLUSTER);
    const beta = await hostFile('beta', CLUSTER, alpha);
    await listen(alpha, { clonesOf: async () => ({ cloneIds: [] }) });
    const calling = peersOf(beta);
    const call = () => calling.call('alpha', 'clonesOf', { ticket: 't1-beta' });
    await call();
    removed.add('beta');
    await expect(call()).rejects.toMatchObject({ code: 'SF_HOST_UNREACHABLE' });
    for (const asked of [call(), calling.openApi('alpha')]) {
      await expect(asked).rejects.toMatchObject({
        code: 'SF_PERMISSION',
        message: expect.stringContaining('beta was taken out of the cluster'),
      });
    }
    removed.clear();
    await call();
  });

  it('is refused to whoever shows no certificate of the cluster, and the log says so', async () => {
    const alpha = await hostFile('alpha', CLUSTER);
    await listen(alpha, { ping: async () => ({ version: '1', nowMs: 1 }) });
    const other = await hostFile('beta', OTHER_CLUSTER);
    // Trusts the right authority, and shows a certificate of another.
    const forged = peersOf({ ...other, ca: alpha.ca, cluster: alpha.cluster });
    const error = await forged.call('alpha', 'ping', {}).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'SF_PERMISSION' });
    expect((error as Error).message).toContain('its certificate is not of cluster test');
    expect(said.join('')).toContain('a peer was refused');
  });

  it('is not made to another host than is meant', async () => {
    const alpha = await hostFile('alpha', CLUSTER);
    await listen(alpha, { ping: async () => ({ version: '1', nowMs: 1 }) });
    const link = peersOf(await hostFile('beta', CLUSTER, alpha), 'gamma');
    const error = await link.call('gamma', 'ping', {}).catch((reason: unknown) => reason);
    expect((error as Error).message).toContain('it is alpha that answers');
  });

  it('needs TLS 1.3', async () => {
    const alpha = await hostFile('alpha', CLUSTER);
    await listen(alpha);
    const socket = tls.connect({ host: ADDRESS, port, ca: alpha.ca, maxVersion: 'TLSv1.2' });
    await expect(
      new Promise((resolve, reject) => {
        socket.once('secureConnect', resolve);
        socket.once('error', reject);
      }),
    ).rejects.toThrow(/protocol/i);
  });
});

describe('a host joins', () => {
  it('by a token, and has then what it takes to be called', async () => {
    const alpha = await hostFile('alpha', CLUSTER);
    const tokens = await listen(alpha, { ping: async (_, host) => ({ version: host, nowMs: 1 }) });
    const joined = await joining(tokens.make(fingerprintOf(alpha.ca), HOUR_MS));
    expect(joined.cluster).toEqual(alpha.cluster);
    expect(fingerprintOf(joined.ca)).toBe(fingerprintOf(alpha.ca));
    expect(await peersOf(joined).call('alpha', 'ping', {})).toEqual({ version: 'beta', nowMs: 1 });
  });

  it.each([
    ['a token that was never given', async () => '0'.repeat(32)],
    [
      'one that ran out',
      async (tokens: Tokens) => tokens.make('f'.repeat(64), -1000).split('.')[0]!,
    ],
  ])('not by %s, which both ends are told', async (_, secretOf) => {
    const alpha = await hostFile('alpha', CLUSTER);
    const tokens = await listen(alpha);
    const secret = await secretOf(tokens);
    const error = await joining(`${secret}.${fingerprintOf(alpha.ca)}`).catch((reason) => reason);
    expect(error).toMatchObject({ code: 'SF_PERMISSION' });
    expect((error as Error).message).toMatch(/is not one of this cluster|ran out at/);
    expect((error as Error).message).toContain('sf cluster token');
    expect(said.join('')).toContain('a peer was refused');
    expect(said.join('')).not.toContain(secret);
  });

  it('not where another cluster answers than gave the token, and tells that one nothing', async () => {
    const alpha = await hostFile('alpha', CLUSTER);
    const tokens = await listen(alpha);
    const elsewhere = await makeAuthority(OTHER_CLUSTER);
    const token = tokens.make(fingerprintOf(elsewhere.certificate), HOUR_MS);
    await expect(joining(token)).rejects.toMatchObject({ code: 'SF_PERMISSION' });
    expect(said.join('')).not.toContain('is not one of this cluster');
  });

  it('not under a name that is taken or is none, nor by what is no token', async () => {
    const alpha = await hostFile('alpha', CLUSTER);
    const tokens = await listen(alpha);
    const token = tokens.make(fingerprintOf(alpha.ca), HOUR_MS);
    await expect(joining(token, 'alpha')).rejects.toMatchObject({ code: 'SF_BAD_REQUEST' });
    for (const name of ['a/b', '../alpha', 'x'.repeat(33), '']) {
      await expect(joining(token, name)).rejects.toMatchObject({ code: 'SF_BAD_REQUEST' });
    }
    await expect(joining('abc')).rejects.toMatchObject({ code: 'SF_BAD_REQUEST' });
  });
});
