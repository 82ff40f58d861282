// The connection to etcd: to whichever of its members answers, and every call with an end. It says in
// one way that etcd has no majority; what is kept there, `etcd.ts` knows.

import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError } from '@snowfork/sdk/api';
import {
  ConsecutiveBreaker,
  ConstantBackoff,
  circuitBreaker,
  handleWhen,
  isBrokenCircuitError,
  noop,
  retry,
} from 'cockatiel';
import {
  castGrpcError,
  Etcd3,
  GRPCDeadlineExceededError,
  isRecoverableError,
  type Namespace,
} from 'etcd3';
import { STORE_SERVER_NAME } from './authority.js';

/** For all attempts together. */
export const CALL_TIMEOUT_MS = 5000;
/** A member that does not answer by then is given up for the next one. */
const ATTEMPT_TIMEOUT_MS = 1500;
const MEMBERS_PER_ROUND_MAX = 3;
/**
 * A member that did not answer in time is not asked for so long, where there are others: each attempt
 * would cost its whole time. Less than a call may take, as all may have been silent for a moment.
 */
const SHUNNED_MS = 3000;
const ATTEMPT_AGAIN_MS = 50;
/** Pings of an idle connection; etcd refuses those that come more often than every 5 seconds. */
const PING_MS = 10_000;
const PONG_TIMEOUT_MS = 3000;
const CONNECT_AGAIN_MS_MAX = 1000;

export interface EtcdAccess {
  /** https://ADDRESS:PORT of each member. */
  readonly endpoints: readonly string[];
  /** The cluster's id: its keys are apart from those of any other cluster. */
  readonly cluster: string;
  /** PEM. */
  readonly ca: string;
  readonly certificate: string;
  readonly privateKey: string;
}

/** PEM: what a host shows. */
export type HostCertificate = Pick<EtcdAccess, 'certificate' | 'privateKey'>;

export class EtcdLink {
  #access: EtcdAccess;
  #client: Etcd3;
  #space: Namespace;
  #isSilent = false;

  constructor(access: EtcdAccess) {
    this.#access = access;
    this.#client = clientOf(access);
    this.#space = spaceOf(this.#client, access);
  }

  /** The last call had no answer. */
  get isSilent(): boolean {
    return this.#isSilent;
  }

  /**
   * What etcd says; keys are without the cluster's prefix. An attempt without an answer is repeated,
   * though etcd may have done what it asked for.
   * @throws SnowforkError SF_CLUSTER_UNAVAILABLE
   */
  async call<T>(
    work: (space: Namespace) => PromiseLike<T>,
    timeoutMs = CALL_TIMEOUT_MS,
  ): Promise<T> {
    const signal = AbortSignal.timeout(timeoutMs);
    try {
      const answer = await Promise.race([this.#rounds(work, signal), abortOf(signal)]);
      this.#isSilent = false;
      return answer;
    } catch (error) {
      this.#isSilent = true;
      throw unavailable(error);
    }
  }

  /** A watch outlives its connection, and goes on where it was. */
  watch(startRevision: bigint) {
    return this.#space.watch().prefix('').startRevision(String(startRevision)).watcher();
  }

  /** @returns how long the lease lasts from now, in seconds: 0 when it is lost. */
  async renew(lease: string): Promise<number> {
    return await this.call(async ({ leaseClient }) => {
      const stream = await leaseClient.leaseKeepAlive({
        deadline: Date.now() + ATTEMPT_TIMEOUT_MS,
      });
      try {
        return await new Promise<number>((resolve, reject) => {
          stream.on('data', ({ TTL }) => resolve(Number(TTL)));
          stream.on('error', (error) => reject(castGrpcError(error)));
          stream.on('end', () => reject(new Error('the connection ended')));
          stream.write({ ID: lease });
        });
      } finally {
        stream.end();
      }
    });
  }

  /** For all calls and watches from now on; calls that are under way end as they would have. */
  use(access: HostCertificate | Pick<EtcdAccess, 'endpoints'>): void {
    const old = this.#client;
    this.#access = { ...this.#access, ...access };
    this.#client = clientOf(this.#access);
    this.#space = spaceOf(this.#client, this.#access);
    setTimeout(() => old.close(), CALL_TIMEOUT_MS).unref();
  }

  close(): void {
    this.#client.close();
  }

  async #rounds<T>(work: (space: Namespace) => PromiseLike<T>, signal: AbortSignal): Promise<T> {
    for (;;) {
      try {
        return await work(this.#space);
      } catch (error) {
        if (signal.aborted || !isPassing(error as Error)) throw error;
        await delay(ATTEMPT_AGAIN_MS);
      }
    }
  }
}

/** Another attempt may be answered. */
function isPassing(error: Error): boolean {
  return isRecoverableError(error) || isBrokenCircuitError(error);
}

function clientOf({ endpoints, ca, certificate, privateKey }: EtcdAccess): Etcd3 {
  const attempts = handleWhen((error) => isRecoverableError(error));
  return new Etcd3({
    hosts: [...endpoints],
    grpcOptions: {
      'grpc.ssl_target_name_override': STORE_SERVER_NAME,
      'grpc.keepalive_time_ms': PING_MS,
      'grpc.keepalive_timeout_ms': PONG_TIMEOUT_MS,
      'grpc.initial_reconnect_backoff_ms': ATTEMPT_AGAIN_MS,
      'grpc.max_reconnect_backoff_ms': CONNECT_AGAIN_MS_MAX,
    },
    credentials: {
      rootCertificate: Buffer.from(ca),
      privateKey: Buffer.from(privateKey),
      certChain: Buffer.from(certificate),
    },
    defaultCallOptions: ({ isStream }) =>
      isStream ? {} : { deadline: Date.now() + ATTEMPT_TIMEOUT_MS },
    faultHandling: {
      // A round of attempts, each at another member.
      global: retry(attempts, {
        maxAttempts: Math.min(endpoints.length, MEMBERS_PER_ROUND_MAX) - 1,
        backoff: new ConstantBackoff(ATTEMPT_AGAIN_MS),
      }),
      host: () => {
        if (endpoints.length === 1) return noop;
        const silence = handleWhen((error) => error instanceof GRPCDeadlineExceededError);
        const breaker = new ConsecutiveBreaker(1);
        return circuitBreaker(silence, { halfOpenAfter: SHUNNED_MS, breaker });
      },
      watchBackoff: new ConstantBackoff(ATTEMPT_AGAIN_MS).next(),
    },
  });
}

function spaceOf(client: Etcd3, { cluster }: EtcdAccess): Namespace {
  return client.namespace(`/snowfork/${cluster}/`);
}

async function abortOf(signal: AbortSignal): Promise<never> {
  await once(signal, 'abort');
  throw new Error('it did not answer in time');
}

function unavailable(cause: unknown): SnowforkError {
  return new SnowforkError(
    'SF_CLUSTER_UNAVAILABLE',
    'the cluster store (etcd) does not answer: running clones go on, new tickets are refused until ' +
      'it has its majority again',
    { cause },
  );
}
