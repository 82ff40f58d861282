// The members of etcd as etcd has agreed on them: who they are, and that one comes, votes or goes. By
// etcd's JSON gateway, so that each question goes to one member: a list is only as new as whoever gives
// it, and it must be known that this one has heard everything. Called by `store-members.ts`.

import https from 'node:https';
import { SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';
import type { EtcdAccess } from './etcd-link.js';

const READ_TIMEOUT_MS = 2000;
const CHANGE_TIMEOUT_MS = 7000;
const ANSWER_BYTES_MAX = 1024 * 1024;
/** Any key will do: what is read is that a majority stands behind the member that answers. */
const SOME_KEY = Buffer.from([0]).toString('base64');

const memberSchema = z
  .object({
    ID: z.string(),
    name: z.string().default(''),
    peerURLs: z.array(z.string()).min(1),
    clientURLs: z.array(z.string()).default([]),
    isLearner: z.boolean().default(false),
  })
  .transform(({ ID, name, peerURLs, clientURLs, isLearner }) => ({
    id: ID,
    /** Of its host; empty until it has been started for the first time. */
    name,
    peerUrl: peerURLs[0]!,
    clientUrl: clientURLs[0],
    /** It hears everything and does not vote. */
    isLearner,
  }));
export type EtcdMember = z.output<typeof memberSchema>;
const listSchema = z.object({ members: z.array(memberSchema) });
const refusalSchema = z.object({ error: z.string() });

export class EtcdMembership {
  readonly #access: () => Omit<EtcdAccess, 'cluster'>;

  constructor(access: () => Omit<EtcdAccess, 'cluster'>) {
    this.#access = access;
  }

  /** @throws SnowforkError SF_CLUSTER_UNAVAILABLE: no member has a majority behind it. */
  async list(): Promise<EtcdMember[]> {
    return membersIn(await this.#ask('list', {}));
  }

  /**
   * Refused while another learns.
   * @returns all members then
   * @throws SnowforkError SF_CLUSTER_UNAVAILABLE
   */
  async addLearner(peerUrl: string): Promise<EtcdMember[]> {
    return membersIn(await this.#ask('add', { peerURLs: [peerUrl], isLearner: true }));
  }

  /** Refused until it has heard nearly everything. @throws SnowforkError SF_CLUSTER_UNAVAILABLE */
  async promote(id: string): Promise<void> {
    await this.#ask('promote', { ID: id });
  }

  /** @throws SnowforkError SF_CLUSTER_UNAVAILABLE: also when etcd thinks that it can't be spared. */
  async remove(id: string): Promise<void> {
    await this.#ask('remove', { ID: id });
  }

  /** Whether a member is there, with a majority or without. */
  async isThere(clientUrl: string): Promise<boolean> {
    const agent = this.#agent();
    try {
      await request(`${clientUrl}/version`, { agent, timeoutMs: READ_TIMEOUT_MS });
      return true;
    } catch {
      return false;
    } finally {
      agent.destroy();
    }
  }

  /** The first member that knows all that was agreed on until now. */
  async #ask(what: 'list' | 'add' | 'promote' | 'remove', body: object): Promise<unknown> {
    const agent = this.#agent();
    const silent: string[] = [];
    try {
      for (const endpoint of this.#access().endpoints) {
        try {
          const read = { agent, timeoutMs: READ_TIMEOUT_MS, body: { key: SOME_KEY } };
          await request(`${endpoint}/v3/kv/range`, read);
        } catch (error) {
          silent.push(`${endpoint}: ${(error as Error).message}`);
          continue;
        }
        const of = { agent, timeoutMs: CHANGE_TIMEOUT_MS, body };
        return await request(`${endpoint}/v3/cluster/member/${what}`, of);
      }
      throw new Error(silent.join('; '));
    } catch (cause) {
      const message = `the members of the cluster store (etcd): ${(cause as Error).message}`;
      throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', message, { cause });
    } finally {
      agent.destroy();
    }
  }

  #agent(): https.Agent {
    const { ca, certificate, privateKey } = this.#access();
    return new https.Agent({ ca, cert: certificate, key: privateKey, keepAlive: true });
  }
}

/** Sorted by name. */
function membersIn(answer: unknown): EtcdMember[] {
  const { members } = listSchema.parse(answer);
  return members.sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** With a body it is a POST. @returns the JSON that came. */
function request(
  url: string,
  of: { readonly agent: https.Agent; readonly timeoutMs: number; readonly body?: object },
): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const { agent, timeoutMs, body } = of;
    const signal = AbortSignal.timeout(timeoutMs);
    const method = body === undefined ? 'GET' : 'POST';
    const fail = (error: Error) => {
      reject(signal.aborted ? new Error(`no answer within ${timeoutMs / 1000} s`) : error);
    };
    const asked = https.request(url, { agent, method, signal }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => {
        text += chunk;
        if (text.length > ANSWER_BYTES_MAX) asked.destroy(new Error('its answer is too long'));
      });
      response.on('error', fail);
      response.on('end', () => {
        try {
          const answer: unknown = JSON.parse(text);
          if (response.statusCode === 200) return resolve(answer);
          reject(new Error(refusalSchema.parse(answer).error));
        } catch {
          reject(new Error(`it answered ${response.statusCode}, which says nothing`));
        }
      });
    });
    asked.on('error', fail);
    asked.end(body === undefined ? undefined : JSON.stringify(body));
  });
}
