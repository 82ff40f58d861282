// A host's sign of life in etcd: a lease that is renewed as long as the host lives, and on which its
// keys hang. When it was lost, as after a long silence, it is taken again.

import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { EtcdLink } from './etcd-link.js';

export const HOST_TIMEOUT_MS = 6000;
const AGAIN_MS = 200;
/** The host does not wait long for etcd when it ends: the lease runs out by itself. */
const REVOKE_TIMEOUT_MS = 2000;

export interface HostLeaseOptions {
  readonly link: EtcdLink;
  readonly log: Logger;
  /** Without a renewal it lasts so long; etcd counts in seconds. */
  readonly timeoutMs: number;
  /** Puts what hangs on it. */
  readonly put: (lease: string) => Promise<void>;
}

export class HostLease {
  readonly #options: HostLeaseOptions;
  readonly #ending = new AbortController();
  #id: string;
  #kept: Promise<void>;

  /** @throws SnowforkError SF_CLUSTER_UNAVAILABLE, and whatever `put` does. */
  static async take(options: HostLeaseOptions): Promise<HostLease> {
    return new HostLease(options, await takeOne(options));
  }

  private constructor(options: HostLeaseOptions, id: string) {
    this.#options = options;
    this.#id = id;
    this.#kept = this.#keep();
  }

  /** Of now: another one after it was lost. */
  get id(): string {
    return this.#id;
  }

  /** All that hangs on it vanishes at once. */
  async close(): Promise<void> {
    this.#ending.abort();
    await this.#kept;
    const { link, log } = this.#options;
    try {
      const ID = this.#id;
      await link.call(({ leaseClient }) => leaseClient.leaseRevoke({ ID }), REVOKE_TIMEOUT_MS);
    } catch (error) {
      log.warn({ err: error }, 'the cluster store hears later that this host has ended');
    }
  }

  async #keep(): Promise<void> {
    const { link, log, timeoutMs } = this.#options;
    let isLost = false;
    let pauseMs = timeoutMs / 3;
    while (await this.#pause(pauseMs)) {
      try {
        if (isLost) {
          this.#id = await takeOne(this.#options);
          isLost = false;
        } else {
          isLost = (await link.renew(this.#id)) === 0;
          if (isLost) log.warn('the cluster store took this host for lost');
        }
        pauseMs = isLost ? 0 : timeoutMs / 3;
      } catch (error) {
        log.warn({ err: error }, 'the cluster store does not hear this host');
        pauseMs = AGAIN_MS;
      }
    }
  }

  /** `false`: it is over. */
  async #pause(pauseMs: number): Promise<boolean> {
    const { signal } = this.#ending;
    return await delay(pauseMs, true, { signal, ref: false }).catch(() => false);
  }
}

async function takeOne({ link, timeoutMs, put }: HostLeaseOptions): Promise<string> {
  const TTL = Math.ceil(timeoutMs / 1000);
  const { ID } = await link.call(({ leaseClient }) => leaseClient.leaseGrant({ TTL }));
  await put(ID);
  return ID;
}
