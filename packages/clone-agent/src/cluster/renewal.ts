// Keeps this host's certificate from running out: with a third of its life left the host that can sign
// is asked for another one, for a new key, by the connection that hosts have anyway. Both ends of that
// exchange. What uses certificates is told by `cluster.ts`; a new authority is nobody's affair here.

import { createPrivateKey, X509Certificate } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { lifeOf, makeRequest, signHost } from './authority.js';
import type { ClusterFile } from './cluster-file.js';
import type { PeerParams, PeerResult } from './peer-methods.js';

const LOOK_MS_MAX = 3_600_000;
const LOOK_MS_MIN = 1000;
const ASK_TIMEOUT_MS = 5000;

export interface RenewalContext {
  readonly log: Logger;
  /** Of certificates that this host signs. */
  readonly lifetimeMs: number;
  file(): ClusterFile;
  /** All of the cluster. */
  hosts(): string[];
  ask(host: string, params: PeerParams<'renew'>, signal: AbortSignal): Promise<PeerResult<'renew'>>;
  /** To be kept, and shown from now on. */
  renewed(file: ClusterFile): Promise<void>;
}

export class Renewal {
  readonly #context: RenewalContext;
  readonly #ending = new AbortController();

  constructor(context: RenewalContext) {
    this.#context = context;
  }

  /** Until `stop`. */
  async run(): Promise<void> {
    const { signal } = this.#ending;
    const { log, file, renewed } = this.#context;
    while (!signal.aborted) {
      try {
        if (isDue(file())) {
          const fresh = await this.#renew(file());
          if (!signal.aborted) await renewed(fresh);
        }
      } catch (error) {
        if (!signal.aborted) log.warn({ err: error }, "this host's certificate is not renewed yet");
      }
      if (!signal.aborted)
        await delay(lookAfterMs(file()), undefined, { signal, ref: false }).catch(() => {});
    }
  }

  stop(): void {
    this.#ending.abort();
  }

  async #renew(file: ClusterFile): Promise<ClusterFile> {
    const { hosts, lifetimeMs, ask } = this.#context;
    if (file.caKey !== undefined) return await renewOwn(file, lifetimeMs);
    const { name, address } = file.host;
    const { request, privateKey } = await makeRequest(name);
    const refusals: string[] = [];
    for (const host of hosts()) {
      if (host === name) continue;
      const signal = AbortSignal.any([this.#ending.signal, AbortSignal.timeout(ASK_TIMEOUT_MS)]);
      try {
        const { certificate } = await ask(host, { request, address }, signal);
        return assertOwn({ ...file, certificate, privateKey });
      } catch (error) {
        refusals.push(`${host}: ${SnowforkError.from(error).message}`);
      }
    }
    const message = `nobody signs a new certificate: ${refusals.join('; ') || 'no host is there'}`;
    throw new SnowforkError('SF_HOST_UNREACHABLE', message);
  }
}

/** Less than a third of its life is left. */
export function isDue({ certificate }: ClusterFile): boolean {
  return Date.now() >= dueAt(certificate);
}

/** By the host that has the authority's key. */
export async function renewOwn(file: ClusterFile, lifetimeMs: number): Promise<ClusterFile> {
  const { name, address } = file.host;
  const { request, privateKey } = await makeRequest(name);
  const certificate = await sign(file, { request, address, host: name, lifetimeMs });
  return assertOwn({ ...file, certificate, privateKey });
}

/** The other end. @throws SnowforkError SF_PERMISSION, SF_BAD_REQUEST. */
export async function renewFor(
  host: string,
  params: PeerParams<'renew'>,
  of: {
    readonly file: ClusterFile;
    readonly lifetimeMs: number;
    /** Whether it is a host of the cluster still. */
    isMember(name: string): boolean;
  },
): Promise<PeerResult<'renew'>> {
  const { file, lifetimeMs } = of;
  if (!of.isMember(host)) {
    const message = `${host} gets no certificate: the cluster has no such host now`;
    throw new SnowforkError('SF_PERMISSION', message);
  }
  return { certificate: await sign(file, { ...params, host, lifetimeMs }) };
}

async function sign(
  { ca, caKey, cluster, host: self }: ClusterFile,
  of: { request: string; address: string; host: string; lifetimeMs: number },
): Promise<string> {
  if (caKey === undefined) {
    throw new SnowforkError('SF_BAD_REQUEST', `${self.name} has no key to sign with`);
  }
  const authority = { certificate: ca, privateKey: caKey };
  return await signHost(authority, { ...of, cluster: cluster.id });
}

/** @throws SnowforkError SF_INTERNAL: with that one nobody would let this host in. */
function assertOwn(file: ClusterFile): ClusterFile {
  const certificate = new X509Certificate(file.certificate);
  const isOurs = certificate.verify(new X509Certificate(file.ca).publicKey);
  if (isOurs && certificate.checkPrivateKey(createPrivateKey(file.privateKey))) return file;
  throw new SnowforkError('SF_INTERNAL', 'what was signed is no certificate of this host');
}

function dueAt(certificate: string): number {
  const { beganMs, endsMs } = lifeOf(certificate);
  return endsMs - (endsMs - beganMs) / 3;
}

/** When it is due, or soon after an attempt that failed. */
function lookAfterMs({ certificate }: ClusterFile): number {
  const leftMs = Math.max(dueAt(certificate) - Date.now(), 0);
  const { beganMs, endsMs } = lifeOf(certificate);
  const waitMs = leftMs > 0 ? leftMs : (endsMs - beganMs) / 30;
  return Math.min(Math.max(waitMs, LOOK_MS_MIN), LOOK_MS_MAX);
}
