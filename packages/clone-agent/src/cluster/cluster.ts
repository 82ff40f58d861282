// This host's part in a cluster: who it is there, the link to the other hosts, and the store in which
// all of them are listed. Without `cluster.json` there is none, and a host is by itself. The agent owns
// it; `vms/` asks it for room on other hosts and has it carry what hosts say to each other.

import { randomBytes } from 'node:crypto';
import path from 'node:path';
import type { Duplex } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import type { TLSSocket } from 'node:tls';
import { type ImageInfo, SnowforkError, type VmInfo } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { fingerprintOf, makeAuthority, makeRequest, signHost } from './authority.js';
import {
  type ClusterFile,
  readClusterFile,
  removeClusterFile,
  STORE_PORTS,
  writeClusterFile,
} from './cluster-file.js';
import type { ClusterStore, Holdings, HostRecord, HostReservation } from './cluster-store.js';
import { EmbeddedStore } from './embedded-store.js';
import { EtcdProcess } from './etcd-process.js';
import { admit, askToJoin } from './joining.js';
import type { OpenStore } from './open-store.js';
import type { PeerHandlers, PeerMethod, PeerParams, PeerResult } from './peer-methods.js';
import { PeerServer } from './peer-server.js';
import { type PeerAddress, Peers } from './peers.js';
import { isDue, Renewal, renewFor, renewOwn } from './renewal.js';
import type { StoreMembers, StoreMembersContext } from './store-members.js';
import { TOKEN_LIFETIME_MS, Tokens } from './token.js';

/** Of the store's member on this host, in the state folder. */
const STORE_FOLDER = 'etcd';
/** Between attempts to speak to the other hosts, after a start. */
const OPEN_AGAIN_MS = 2000;
const ROOM_LOOK_MS = 1000;
const ASK_TIMEOUT_MS = 3000;
/** How often a host is asked that is there and of which the store does not hear. */
const LOST_LOOK_MS = 2000;

export interface ClusterContext {
  readonly stateRoot: string;
  readonly log: Logger;
  readonly version: string;
  /** Of certificates that this host signs. */
  readonly certificateLifetimeMs: number;
  handlers(): Omit<PeerHandlers, 'renew'>;
  /** The connection goes on as one to this host's API. */
  serveApi(socket: TLSSocket): void;
  /** This host may come to run a member of the store. */
  readonly storeMember: boolean;
  /** Opens the cluster's store, with its member on this host when there is to be one. */
  openStore(of: StoreMembersContext): Promise<OpenStore>;
  /** The host is in a cluster now, before others hear of it: says where it serves pages. */
  entered(): Promise<{ pagesPort: number }>;
  /** The others can be spoken to, for the first time since the agent's start. */
  opened(): void;
  room(): HostRecord['room'];
  /** What this host has of each family, and its tickets that have slots elsewhere. */
  holdings(): Holdings;
  /** An agent is there that was not: the first one of that host, or another one. */
  hostStarted(host: string): void;
  hostLost(host: string, reason: string): void;
  /** Whatever this host needs of that one is brought here. */
  detachFrom(host: string, signal: AbortSignal): Promise<unknown>;
  /** What tickets of other hosts were promised of this one. */
  reserved(reservations: readonly HostReservation[]): void;
}

interface Membership {
  readonly file: ClusterFile;
  readonly server: PeerServer;
  readonly peers: Peers;
  readonly store: ClusterStore;
  readonly storeMembers: StoreMembers;
  readonly looking: NodeJS.Timeout;
  readonly renewal: Renewal;
}

export class Cluster {
  readonly #context: ClusterContext;
  readonly #tokens: Tokens;
  #file: ClusterFile | undefined;
  #membership: Membership | undefined;
  readonly #alone = new EmbeddedStore();
  /** Why there is none yet. */
  #obstacle: unknown;
  /** Of all hosts that were ever there. */
  readonly #addresses = new Map<string, PeerAddress>();

  constructor(context: ClusterContext) {
    this.#context = context;
    this.#tokens = new Tokens(context.stateRoot);
  }

  /** Reads which cluster the host is in, if it is in one. @throws SnowforkError SF_BAD_REQUEST. */
  read(): void {
    this.#file = readClusterFile(this.#context.stateRoot);
  }

  /** Goes on as a host of that cluster: as soon as the others can be spoken to. */
  async open(): Promise<void> {
    while (this.#file !== undefined && this.#membership === undefined) {
      try {
        this.#membership = await this.#enter(this.#file);
        this.#context.opened();
      } catch (error) {
        this.#obstacle = error;
        this.#context.log.error({ err: error }, 'the cluster is not there yet');
        await delay(OPEN_AGAIN_MS, undefined, { ref: false });
      }
    }
  }

  /** This host's name in its cluster. */
  get name(): string | undefined {
    return this.#file?.host.name;
  }

  /** @throws SnowforkError SF_NO_CLUSTER. */
  get file(): ClusterFile {
    return this.#file ?? this.#member.file;
  }

  /** A host by itself has one of its own. @throws SnowforkError SF_HOST_UNREACHABLE. */
  get store(): ClusterStore {
    return this.#file === undefined && this.#membership === undefined
      ? this.#alone
      : this.#member.store;
  }

  /** Whether the others can be spoken to. */
  get isOpen(): boolean {
    return this.#membership !== undefined;
  }

  get #member(): Membership {
    if (this.#membership !== undefined) return this.#membership;
    if (this.#file !== undefined) {
      const cause = this.#obstacle;
      const why = cause === undefined ? 'the agent has just started' : wordsOf(cause);
      const message = `the other hosts can not be spoken to yet: ${why}`;
      throw new SnowforkError('SF_HOST_UNREACHABLE', message, { cause });
    }
    throw new SnowforkError(
      'SF_NO_CLUSTER',
      'this host is in no cluster: `sf cluster init` makes one, `sf host join` joins one',
    );
  }

  /** Makes a cluster, of which this is the first host. @throws SnowforkError SF_BAD_REQUEST. */
  async init(of: { name: string; host: Omit<ClusterFile['host'], 'id'> }): Promise<void> {
    this.#assertAlone();
    const cluster = { id: newId(), name: of.name };
    const authority = await makeAuthority(cluster.id);
    const { request, privateKey } = await makeRequest(of.host.name);
    const { address, name } = of.host;
    const { certificateLifetimeMs: lifetimeMs } = this.#context;
    const signing = { request, address, cluster: cluster.id, host: name, lifetimeMs };
    const file: ClusterFile = {
      version: 1,
      cluster,
      host: { id: newId(), ...of.host },
      ca: authority.certificate,
      certificate: await signHost(authority, signing),
      privateKey,
      caKey: authority.privateKey,
      store: { endpoints: [`https://${address}:${STORE_PORTS.clientPort}`] },
      member: STORE_PORTS,
    };
    await this.#become(file);
  }

  /** By which another host may join: `sf host join ADDRESS --token …`. */
  newToken(lifetimeMs = TOKEN_LIFETIME_MS): { token: string; address: string } {
    const { file } = this.#member;
    if (file.caKey === undefined) {
      throw new SnowforkError(
        'SF_BAD_REQUEST',
        'tokens are made on the host on which `sf cluster init` was run',
      );
    }
    const { address, port } = file.host;
    const token = this.#tokens.make(fingerprintOf(file.ca), lifetimeMs);
    return { token, address: `${address}:${port}` };
  }

  /** @throws SnowforkError SF_BAD_REQUEST, SF_PERMISSION, SF_HOST_UNREACHABLE. */
  async join(of: {
    at: string;
    token: string;
    host: Omit<ClusterFile['host'], 'id'>;
  }): Promise<void> {
    this.#assertAlone();
    await this.#become(await askToJoin({ ...of, host: { id: newId(), ...of.host } }));
  }

  hosts(): HostRecord[] {
    return this.#member.store.hosts();
  }

  /** Whether the host runs a member of the store. */
  hasStoreMember(host: string): boolean {
    const { all } = this.#member.storeMembers;
    return all.some(({ name, isLearner }) => name === host && !isLearner);
  }

  /** Whether this host runs no member of the store, and could. */
  get canStore(): boolean {
    return this.#membership?.storeMembers.isAble ?? false;
  }

  get storeMembers(): StoreMembers {
    return this.#member.storeMembers;
  }

  /**
   * With its member of the store. One that is not there any more has at most that.
   * @throws SnowforkError SF_HOST_NOT_FOUND, SF_BAD_REQUEST, SF_CLUSTER_UNAVAILABLE: the store would
   * not go on
   */
  async remove(name: string): Promise<void> {
    const { store, storeMembers, file } = this.#member;
    if (name === file.host.name) {
      const message = `${name} is this host: take it out on another one`;
      throw new SnowforkError('SF_BAD_REQUEST', message);
    }
    const hasMember = await storeMembers.assertSpared(name);
    // First, so that it does not come again with another member.
    if (!hasMember || this.isMember(name)) {
      addressOf(store, name);
      await store.remove(name);
      this.#context.hostLost(name, 'it was taken out of the cluster');
    }
    if (hasMember) await storeMembers.remove(name);
  }

  /** @throws SnowforkError SF_HOST_NOT_FOUND. */
  async drain(name: string, signal: AbortSignal): Promise<void> {
    const { store } = this.#member;
    addressOf(store, name);
    await store.setDraining(name, true);
    const others = store.hosts().filter((host) => host.name !== name);
    await Promise.all(
      others.map(async ({ name: other }) => {
        if (other === this.name) await this.#context.detachFrom(name, signal);
        else await this.call(other, 'detachFrom', { host: name }, signal);
      }),
    );
  }

  /** Whether the host is one of the cluster's that is known to be there. */
  isMember(host: string): boolean {
    return this.#membership?.store.hosts().some(({ name }) => name === host) ?? false;
  }

  /** @throws SnowforkError SF_NO_CLUSTER, SF_HOST_NOT_FOUND, SF_HOST_UNREACHABLE, what it says. */
  async call<M extends PeerMethod>(
    host: string,
    method: M,
    params: PeerParams<M>,
    signal?: AbortSignal,
  ): Promise<PeerResult<M>> {
    return await this.#member.peers.call(host, method, params, signal);
  }

  /** Of the hosts that answer. */
  async vmsElsewhere(all: boolean): Promise<VmInfo[]> {
    const answers = await this.#askOthers('vms', { all });
    return answers.flatMap(({ answer }) => answer.vms);
  }

  /** The newest image of that name on another host. */
  async findImage(name: string): Promise<{ host: string; image: ImageInfo } | undefined> {
    const answers = await this.#askOthers('findImage', { name });
    const found = answers.flatMap(({ host, answer: { image } }) =>
      image === null ? [] : [{ host, image }],
    );
    return found.sort((a, b) => b.image.builtAt - a.image.builtAt)[0];
  }

  /** What each of the others answers, of those that do. */
  async #askOthers<M extends PeerMethod>(
    method: M,
    params: PeerParams<M>,
  ): Promise<{ host: string; answer: PeerResult<M> }[]> {
    const hosts = this.#membership?.store.hosts() ?? [];
    const others = hosts.filter(({ name }) => name !== this.name);
    const asked = others.map(async ({ name: host }) => {
      const signal = AbortSignal.timeout(ASK_TIMEOUT_MS);
      return { host, answer: await this.call(host, method, params, signal) };
    });
    const answered = await Promise.allSettled(asked);
    return answered.flatMap((answer) => (answer.status === 'fulfilled' ? [answer.value] : []));
  }

  /** A connection to another host's API. @throws SnowforkError as `call`. */
  async openApi(host: string): Promise<Duplex> {
    return await this.#member.peers.openApi(host);
  }

  async close(): Promise<void> {
    const membership = this.#membership;
    this.#file = undefined;
    this.#membership = undefined;
    if (membership === undefined) return;
    clearInterval(membership.looking);
    membership.renewal.stop();
    membership.server.close();
    membership.peers.close();
    membership.storeMembers.close();
    await membership.store.close();
  }

  get #storeFolder(): string {
    return path.join(this.#context.stateRoot, STORE_FOLDER);
  }

  /** What this host knows of its cluster has changed, while it is in it. */
  #change(part: Partial<ClusterFile>): void {
    if (this.#file === undefined) return;
    this.#file = { ...this.#file, ...part };
    writeClusterFile(this.#context.stateRoot, this.#file);
  }

  async #become(file: ClusterFile): Promise<void> {
    const { stateRoot } = this.#context;
    // Of a cluster that it was in before, or of this one.
    await EtcdProcess.clear(this.#storeFolder);
    writeClusterFile(stateRoot, file);
    this.#file = file;
    try {
      this.#membership = await this.#enter(file);
    } catch (error) {
      this.#file = undefined;
      removeClusterFile(stateRoot);
      throw error;
    }
  }

  async #enter(before: ClusterFile): Promise<Membership> {
    const { log, handlers, version, certificateLifetimeMs: lifetimeMs } = this.#context;
    const file = await this.#freshened(before);
    const { store, members: storeMembers } = await this.#openStore();
    const peers = new Peers(file, (host) => this.#addressOf(store, host));
    const isThere = (name: string) => store.hosts().some((host) => host.name === name);
    let server: PeerServer | undefined;
    try {
      server = await PeerServer.listen({
        ...{ file, log },
        handlers: {
          ...handlers(),
          renew: (params, host) => {
            return renewFor(host, params, { file, lifetimeMs, isMember: isThere });
          },
        },
        join: (hello) => {
          const of = { file: this.file, tokens: this.#tokens, isTaken: isThere, lifetimeMs };
          return admit(hello, of);
        },
        serveApi: this.#context.serveApi,
        isRemoved: (host) => store.isRemoved(host),
      });
      const { pagesPort } = await this.#context.entered();
      const { id, name, address, port } = file.host;
      const self = { id, name, address, port, version, startedAt: Date.now(), pagesPort };
      store.onReservations((reservations) => this.#context.reserved(reservations));
      await store.join(self, this.#context.room());
      // Less what was promised of it before this agent.
      await store.publishRoom(this.#context.room());
    } catch (error) {
      server?.close();
      storeMembers.close();
      await store.close();
      throw error;
    }
    store.onLost((host) => void this.#confirmLost(host));
    store.onStarted((host) => this.#context.hostStarted(host));
    const looking = setInterval(() => this.#publish(store), ROOM_LOOK_MS);
    looking.unref();
    const renewal = this.#renewalOf({ server, peers, store, storeMembers });
    void storeMembers.run();
    return { file, server, peers, store, storeMembers, looking, renewal };
  }

  async #openStore(): Promise<OpenStore> {
    const { log, storeMember: mayRun } = this.#context;
    return await this.#context.openStore({
      ...{ folder: this.#storeFolder, log, mayRun },
      file: () => this.file,
      changed: (part) => this.#change(part),
      hosts: () => this.#membership?.store.hosts() ?? [],
      able: async () => {
        const answers = await this.#askOthers('ping', {});
        return answers.flatMap(({ host, answer }) => (answer.canStore ? [host] : []));
      },
    });
  }

  #renewalOf(of: Pick<Membership, 'server' | 'peers' | 'store' | 'storeMembers'>): Renewal {
    const { server, peers, store, storeMembers } = of;
    const { log, certificateLifetimeMs: lifetimeMs } = this.#context;
    const renewal = new Renewal({
      ...{ log, lifetimeMs, file: () => this.file },
      hosts: () => store.hosts().map(({ name }) => name),
      ask: (host, params, signal) => peers.call(host, 'renew', params, signal),
      renewed: async ({ certificate, privateKey }) => {
        this.#change({ certificate, privateKey });
        server.useCertificate(this.file);
        peers.useCertificate(this.file);
        storeMembers.useCertificate({ certificate, privateKey });
        await store.useCertificate({ certificate, privateKey });
        log.info('this host has another certificate');
      },
    });
    void renewal.run();
    return renewal;
  }

  /** A host that can sign needs nobody, however long it was away. */
  async #freshened(file: ClusterFile): Promise<ClusterFile> {
    if (file.caKey === undefined || !isDue(file)) return file;
    const { certificate, privateKey } = await renewOwn(file, this.#context.certificateLifetimeMs);
    this.#change({ certificate, privateKey });
    return this.file;
  }

  /** The store has not heard of it for long: so has this host, or it is only slow. */
  async #confirmLost(host: string): Promise<void> {
    while (this.#membership !== undefined && !this.isMember(host)) {
      try {
        await this.call(host, 'ping', {}, AbortSignal.timeout(ASK_TIMEOUT_MS));
      } catch {
        this.#context.hostLost(host, 'it is not heard of any more');
        return;
      }
      await delay(LOST_LOOK_MS, undefined, { ref: false });
    }
  }

  #publish(store: ClusterStore): void {
    const { room, holdings, log } = this.#context;
    const told = [store.publishRoom(room()), store.publish(holdings())];
    Promise.all(told).catch((error: unknown) => {
      log.warn({ err: error }, 'what this host has is not told');
    });
  }

  /** Also of a host that was there lately. @throws SnowforkError SF_HOST_NOT_FOUND. */
  #addressOf(store: ClusterStore, host: string): PeerAddress {
    for (const record of store.hosts()) this.#addresses.set(record.name, record);
    return this.#addresses.get(host) ?? addressOf(store, host);
  }

  #assertAlone(): void {
    if (this.#file === undefined) return;
    const { cluster, host } = this.#file;
    const message = `this host is ${host.name} of cluster ${cluster.name} already`;
    throw new SnowforkError('SF_BAD_REQUEST', message);
  }
}

/** @throws SnowforkError SF_HOST_NOT_FOUND. */
function addressOf(store: ClusterStore, host: string): HostRecord {
  const record = store.hosts().find(({ name }) => name === host);
  if (record !== undefined) return record;
  const known = store.hosts().map(({ name }) => name);
  throw new SnowforkError(
    'SF_HOST_NOT_FOUND',
    `the cluster has no host ${host} now; it has ${known.join(', ') || 'none'}`,
  );
}

function wordsOf(error: unknown): string {
  return SnowforkError.from(error).message;
}

function newId(): string {
  return randomBytes(8).toString('hex');
}
