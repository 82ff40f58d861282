// Which hosts run a member of the cluster's store, as this host sees it and has a part in it. Each host
// looks for itself, again and again: it learns where the members are now, comes to them when one is
// wanted, votes when it has heard everything, and goes when it was taken out. Nobody is in charge; etcd
// lets only one learn at a time. Why three, and why so: docs/adr/0013-three-members.md.

import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { type ClusterFile, STORE_PORTS } from './cluster-file.js';
import type { HostCertificate } from './etcd-link.js';
import { type EtcdMember, EtcdMembership } from './etcd-membership.js';
import { EtcdProcess, isEtcdInstalled } from './etcd-process.js';

/** The least that goes on without one, whichever it is. */
export const MEMBERS_WANTED = 3;
const LOOK_MS = 5000;
/** After something has changed, as there may be more to do. */
const LOOK_SOON_MS = 1000;
/** etcd spares none before it has heard the others for 5 s on end. */
const REMOVE_ATTEMPTS_MAX = 10;
/** Of a host whose member did not start. */
const REST_MS = 60_000;

export interface StoreMembersContext {
  /** Of etcd, in the state folder. */
  readonly folder: string;
  readonly log: Logger;
  /** `storeMember` of the settings. */
  readonly mayRun: boolean;
  file(): ClusterFile;
  /** To be kept for the next agent. */
  changed(part: Partial<Pick<ClusterFile, 'store' | 'member'>>): void;
  /** Of the cluster, that are there. */
  hosts(): readonly { readonly name: string; readonly address: string }[];
  /** Others that are there, and could run a member that they don't run yet. */
  able(): Promise<readonly string[]>;
}

export class StoreMembers {
  readonly #context: StoreMembersContext;
  readonly #etcd: EtcdMembership;
  readonly #ending = new AbortController();
  #all: readonly EtcdMember[] = [];
  #process: EtcdProcess | undefined;
  #restsUntil = 0;
  #moved: (endpoints: readonly string[]) => void = () => {};

  /** With this host's member, when it has one. @throws SnowforkError SF_CLUSTER_UNAVAILABLE */
  static async open(context: StoreMembersContext): Promise<StoreMembers> {
    const members = new StoreMembers(context);
    const { store, member } = context.file();
    if (member === undefined) return members;
    const isOnlyOne = store.endpoints.every((url) => url === members.#urls.client);
    try {
      // Without data, where there are others, it would be a store of its own.
      await members.#start({ isLater: !isOnlyOne });
    } catch (error) {
      if (isOnlyOne) throw error;
      context.log.error({ err: error }, "this host's member of the cluster store is not there yet");
    }
    return members;
  }

  private constructor(context: StoreMembersContext) {
    this.#context = context;
    this.#etcd = new EtcdMembership(() => {
      const { ca, certificate, privateKey, store } = context.file();
      return { ca, certificate, privateKey, endpoints: store.endpoints };
    });
  }

  /** As last heard. */
  get all(): readonly EtcdMember[] {
    return this.#all;
  }

  /** This host runs none, and could. */
  get isAble(): boolean {
    if (!this.#context.mayRun || this.#context.file().member !== undefined) return false;
    return Date.now() >= this.#restsUntil && isEtcdInstalled();
  }

  /** The store is to be looked for there from now on. */
  onMoved(listener: (endpoints: readonly string[]) => void): void {
    this.#moved = listener;
  }

  /** The host is in the cluster; until `close`. */
  async run(): Promise<void> {
    const { signal } = this.#ending;
    while (!signal.aborted) {
      let pauseMs = LOOK_MS;
      try {
        if (await this.#look()) pauseMs = LOOK_SOON_MS;
      } catch (error) {
        if (signal.aborted) return;
        this.#context.log.warn({ err: error }, 'the members of the cluster store stay as they are');
      }
      await delay(pauseMs, undefined, { signal, ref: false }).catch(() => {});
    }
  }

  useCertificate(of: HostCertificate): void {
    this.#process?.useCertificate(of);
  }

  /** This host's member goes on, for the others and for the next agent. */
  close(): void {
    this.#ending.abort();
    this.#process?.leave();
  }

  /** Which members there are, and whether they answer, with a majority or without. */
  async examine(): Promise<{ name: string; isThere: boolean }[]> {
    const all = await this.#etcd.list().catch(() => this.#all);
    return await Promise.all(
      votersOf(all).map(async ({ name, clientUrl }) => ({
        name,
        isThere: await this.#isThere(clientUrl),
      })),
    );
  }

  /**
   * Its host is about to be taken out of the cluster.
   * @returns whether it has a member
   * @throws SnowforkError SF_BAD_REQUEST, SF_CLUSTER_UNAVAILABLE: the store would not go on without it
   */
  async assertSpared(host: string): Promise<boolean> {
    const voters = votersOf(await this.#etcd.list());
    const rest = voters.filter(({ name }) => name !== host);
    if (rest.length === voters.length) return false;
    if (rest.length === 0) {
      const message =
        `${host} runs the only member of the cluster store (etcd), and without it there is no ` +
        'cluster: have three members first (`apt-get install etcd-server` on two other hosts)';
      throw new SnowforkError('SF_BAD_REQUEST', message);
    }
    const there = await Promise.all(rest.map(({ clientUrl }) => this.#isThere(clientUrl)));
    const silent = rest.filter((_, index) => !there[index]).map(({ name }) => name);
    if (rest.length - silent.length > rest.length / 2) return true;
    const message =
      `${host} can't be spared: of the cluster store's other members (etcd) ${silent.join(', ')} ` +
      'does not answer, and the rest is no majority. Start it, or take it out first';
    throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', message);
  }

  /** A host's, if it has one. @throws SnowforkError SF_CLUSTER_UNAVAILABLE */
  async remove(host: string): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        const member = (await this.#etcd.list()).find(({ name }) => name === host);
        if (member !== undefined) await this.#etcd.remove(member.id);
        return;
      } catch (error) {
        if (attempt === REMOVE_ATTEMPTS_MAX) throw error;
        await delay(LOOK_SOON_MS);
      }
    }
  }

  get #urls(): { client: string; peer: string } {
    const { host, member = STORE_PORTS } = this.#context.file();
    const at = (port: number) => `https://${host.address}:${port}`;
    return { client: at(member.clientPort), peer: at(member.peerPort) };
  }

  /** @returns whether something has changed */
  async #look(): Promise<boolean> {
    const all = await this.#etcd.list();
    this.#all = all;
    this.#follow(all);
    const { host, member } = this.#context.file();
    const own = all.find(({ name, peerUrl }) => name === host.name || peerUrl === this.#urls.peer);
    if (own === undefined) {
      if (member !== undefined) await this.#forget('it was taken out of the store');
      return await this.#come(all);
    }
    if (own.name !== '' && !EtcdProcess.hasLog(this.#context.folder)) {
      // It voted once: with what it has forgotten since, it must not vote again as the same.
      this.#context.log.warn("this host's member has lost what it had: it comes anew");
      await this.#etcd.remove(own.id);
      return true;
    }
    if (this.#process === undefined && !(await this.#startAs(own, all))) return false;
    if (own.isLearner && (await this.#isWanted(all))) {
      await this.#etcd.promote(own.id);
      this.#context.log.info('this host has a member of the cluster store');
      return true;
    }
    return false;
  }

  /** Learners refuse what hosts ask, so they are not asked. */
  #follow(all: readonly EtcdMember[]): void {
    const endpoints = votersOf(all)
      .flatMap(({ clientUrl }) => clientUrl ?? [])
      .sort();
    const known = [...this.#context.file().store.endpoints].sort();
    if (endpoints.length === 0 || endpoints.join() === known.join()) return;
    this.#context.log.info({ endpoints }, 'the cluster store has other members now');
    this.#context.changed({ store: { endpoints } });
    this.#moved(endpoints);
  }

  /** To learn, if one is wanted. */
  async #come(all: readonly EtcdMember[]): Promise<boolean> {
    if (!this.isAble) return false;
    const learner = all.find(({ isLearner }) => isLearner);
    if (learner !== undefined) return await this.#clearAway(learner);
    if (!(await this.#isWanted(all))) return false;
    await EtcdProcess.clear(this.#context.folder);
    const { peer } = this.#urls;
    const then = await this.#etcd.addLearner(peer);
    if (!isFull(then)) return true;
    // Others came while this host was looking.
    await this.#etcd.remove(then.find(({ peerUrl }) => peerUrl === peer)!.id);
    return false;
  }

  async #isWanted(all: readonly EtcdMember[]): Promise<boolean> {
    const { hosts, file, able } = this.#context;
    // One that was taken out has no say.
    const isHost = hosts().some(({ name }) => name === file().host.name);
    if (isFull(all) || !isHost) return false;
    return isOneMoreWanted(votersOf(all).length, (await able()).length);
  }

  /** One that learns is in the way of all others; one whose host is gone would be for ever. */
  async #clearAway({ id, peerUrl }: EtcdMember): Promise<boolean> {
    const { hostname } = new URL(peerUrl);
    if (this.#context.hosts().some(({ address }) => address === hostname)) return false;
    await this.#etcd.remove(id);
    return true;
  }

  /** @returns whether it has come */
  async #startAs(own: EtcdMember, all: readonly EtcdMember[]): Promise<boolean> {
    const { changed, log, file } = this.#context;
    const { clientPort, peerPort } = file().member ?? STORE_PORTS;
    changed({ member: { clientPort, peerPort } });
    const named = all.map(({ id, name, peerUrl }) => [name || id, peerUrl] as const);
    const others = named.filter(([, peerUrl]) => peerUrl !== own.peerUrl);
    const members = { ...Object.fromEntries(others), [file().host.name]: own.peerUrl };
    try {
      await this.#start({ members, isLater: true });
      return true;
    } catch (error) {
      if (!own.isLearner) throw error;
      log.error({ err: error }, "this host's member of the cluster store does not start");
      this.#restsUntil = Date.now() + REST_MS;
      await this.#etcd.remove(own.id);
      await this.#forget('it did not start');
      return false;
    }
  }

  async #start(of: { members?: Record<string, string>; isLater?: boolean }): Promise<void> {
    const { folder, log, file } = this.#context;
    const { ca, certificate, privateKey, host, member = STORE_PORTS } = file();
    const { name, address } = host;
    const { clientPort, peerPort } = member;
    const started = await EtcdProcess.open({
      ...{ folder, log, name, address, clientPort, peerPort, ca, certificate, privateKey },
      ...of,
    });
    if (this.#ending.signal.aborted) started.leave();
    else this.#process = started;
  }

  async #forget(why: string): Promise<void> {
    this.#context.log.warn({ why }, 'this host has no member of the cluster store any more');
    const ended = this.#process;
    this.#process = undefined;
    await ended?.stop();
    await EtcdProcess.clear(this.#context.folder);
    this.#context.changed({ member: undefined });
  }

  async #isThere(clientUrl: string | undefined): Promise<boolean> {
    return clientUrl !== undefined && (await this.#etcd.isThere(clientUrl));
  }
}

/**
 * Two go on without neither: a second is wanted only where a third can follow.
 * @param others hosts that could run a member, beside the one that asks
 */
export function isOneMoreWanted(voters: number, others: number): boolean {
  return voters < MEMBERS_WANTED && (voters % 2 === 0 || others > 0);
}

function isFull(all: readonly EtcdMember[]): boolean {
  return votersOf(all).length >= MEMBERS_WANTED;
}

function votersOf(all: readonly EtcdMember[]): EtcdMember[] {
  return all.filter(({ isLearner }) => !isLearner);
}
