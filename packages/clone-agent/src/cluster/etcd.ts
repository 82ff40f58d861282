// The cluster's store in etcd. A host's record and room hang on a lease, so they vanish with it; rooms
// are lessened and promised in one transaction; all hosts watch all keys. Where etcd has lost its
// majority, what was last heard stays, and whatever would change something is refused.
//
//   /snowfork/<cluster>/host/<name>                  HostIdentity            lease of the host
//   /snowfork/<cluster>/room/<name>                  HostRoom                lease of the host
//   /snowfork/<cluster>/reservation/<name>/<ticket>  HostReservation         lease of a minute
//   /snowfork/<cluster>/draining/<name>              true

import { SnowforkError } from '@snowfork/sdk/api';
import { Etcd3, type IKeyValue, type Lease, type Watcher } from 'etcd3';
import type { Logger } from 'pino';
import type { z } from 'zod';
import { STORE_SERVER_NAME } from './authority.js';
import {
  type ClusterStore,
  type HostIdentity,
  type HostRecord,
  type HostReservation,
  type HostRoom,
  type HostSlots,
  hostRecordSchema,
  hostRoomSchema,
  type ReserveRequest,
  reservationSchema,
} from './cluster-store.js';
import { placeClones } from './placement.js';

/** A host of which nothing was heard for so long is lost. */
const HOST_TTL_S = 6;
/** A reservation that nobody used by then gives its room back. */
const RESERVATION_TTL_S = 60;
const CALL_TIMEOUT_MS = 4000;
const RESERVE_ATTEMPTS_MAX = 20;
const JOIN_AGAIN_MS = 1000;
const NO_ROOM: HostRoom = { roomBytes: 0, slots: 0, vms: 0 };

export interface EtcdOptions {
  readonly endpoints: readonly string[];
  readonly cluster: string;
  /** PEM. */
  readonly ca: string;
  readonly certificate: string;
  readonly privateKey: string;
  readonly log: Logger;
}

interface Known<T> {
  readonly value: T;
  readonly revision: string;
}

export class EtcdStore implements ClusterStore {
  readonly #client: Etcd3;
  readonly #prefix: string;
  readonly #log: Logger;
  readonly #identities = new Map<string, HostIdentity>();
  readonly #rooms = new Map<string, Known<HostRoom>>();
  readonly #draining = new Set<string>();
  /** By `<host>/<ticket>`. */
  readonly #reservations = new Map<string, HostReservation>();
  readonly #lost: ((host: string) => void)[] = [];
  readonly #reserved: ((reservations: readonly HostReservation[]) => void)[] = [];
  #self: HostIdentity | undefined;
  #room: HostRoom = NO_ROOM;
  #lease: Lease | undefined;
  #watcher: Watcher | undefined;
  #isClosed = false;

  /** @throws SnowforkError SF_CLUSTER_UNAVAILABLE. */
  static async open(options: EtcdOptions): Promise<EtcdStore> {
    const store = new EtcdStore(options);
    try {
      await store.#readAll();
      return store;
    } catch (error) {
      store.#client.close();
      throw unavailable(error);
    }
  }

  private constructor({ endpoints, cluster, ca, certificate, privateKey, log }: EtcdOptions) {
    this.#prefix = `/snowfork/${cluster}/`;
    this.#log = log;
    this.#client = new Etcd3({
      hosts: [...endpoints],
      grpcOptions: { 'grpc.ssl_target_name_override': STORE_SERVER_NAME },
      credentials: {
        rootCertificate: Buffer.from(ca),
        privateKey: Buffer.from(privateKey),
        certChain: Buffer.from(certificate),
      },
      defaultCallOptions: ({ isStream }) =>
        isStream ? {} : { deadline: Date.now() + CALL_TIMEOUT_MS },
    });
  }

  async join(self: HostIdentity, room: HostRoom): Promise<void> {
    this.#self = self;
    this.#room = room;
    await this.#answered(() => this.#takeLease());
  }

  hosts(): HostRecord[] {
    const names = [...this.#identities.keys()].sort();
    return names.map((name) => ({
      ...this.#identities.get(name)!,
      draining: this.#draining.has(name),
      room: this.#rooms.get(name)?.value ?? NO_ROOM,
    }));
  }

  onLost(listener: (host: string) => void): void {
    this.#lost.push(listener);
  }

  onReservations(listener: (reservations: readonly HostReservation[]) => void): void {
    this.#reserved.push(listener);
  }

  /** Only over the room that was last heard of: whoever has lessened it since has promised some. */
  async publishRoom(room: HostRoom): Promise<void> {
    const { name } = this.#joined;
    const before = this.#rooms.get(name);
    this.#room = room;
    if (before === undefined || this.#lease === undefined || isSame(before.value, room)) return;
    const key = `${this.#prefix}room/${name}`;
    const lease = await this.#lease.grant();
    await this.#answered(() =>
      this.#client
        .if(key, 'Mod', '==', before.revision)
        .then(this.#client.put(key).value(JSON.stringify(room)).lease(lease))
        .commit(),
    );
  }

  async setDraining(name: string, isDraining: boolean): Promise<void> {
    const key = `${this.#prefix}draining/${name}`;
    await this.#answered<unknown>(() =>
      isDraining
        ? this.#client.put(key).value('true').exec()
        : this.#client.delete().key(key).exec(),
    );
  }

  async remove(name: string): Promise<void> {
    await this.#answered(async () => {
      for (const kind of ['host', 'room', 'draining']) {
        await this.#client.delete().key(`${this.#prefix}${kind}/${name}`).exec();
      }
      await this.#client.delete().prefix(`${this.#prefix}reservation/${name}/`).exec();
    });
  }

  async reserve(request: ReserveRequest): Promise<{ granted: HostSlots[]; reason?: string }> {
    for (let attempt = 1; attempt <= RESERVE_ATTEMPTS_MAX; attempt++) {
      const granted = placeClones({ ...request, hosts: this.#slotsFor(request) });
      const others = granted.filter(({ host }) => host !== request.here);
      const isDone = others.length === 0 || (await this.#promise(request, others));
      const total = granted.reduce((sum, { slots }) => sum + slots, 0);
      if (isDone && total === request.asked) return { granted };
      if (isDone) {
        const reason = `the hosts of the cluster have room for ${total} of ${request.asked}`;
        return { granted, reason };
      }
      // Somebody was faster: what there is now is on its way here.
      await this.#readRooms();
    }
    throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', 'too many ask for room at once: try again');
  }

  async release(ticket: string, host: string): Promise<void> {
    const key = `${this.#prefix}reservation/${host}/${ticket}`;
    await this.#answered(() => this.#client.delete().key(key).exec());
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#watcher?.cancel().catch(() => {});
    await this.#lease?.revoke().catch(() => {});
    this.#client.close();
  }

  get #joined(): HostIdentity {
    if (this.#self === undefined) throw new SnowforkError('SF_INTERNAL', 'not joined yet');
    return this.#self;
  }

  #slotsFor({ bytesEach, here, hereSlots }: ReserveRequest): HostSlots[] {
    return this.hosts()
      .filter(({ draining }) => !draining)
      .map(({ name, room }) => {
        if (name === here) return { host: name, slots: hereSlots };
        return { host: name, slots: Math.min(room.slots, Math.floor(room.roomBytes / bytesEach)) };
      });
  }

  /** In one transaction; `false` when the room of one has changed meanwhile. */
  async #promise(
    { ticket, bytesEach }: ReserveRequest,
    others: readonly HostSlots[],
  ): Promise<boolean> {
    return await this.#answered(async () => {
      const client = this.#client;
      const lease = client.lease(RESERVATION_TTL_S, { autoKeepAlive: false });
      const leaseId = await lease.grant();
      const roomKey = (host: string) => `${this.#prefix}room/${host}`;
      const [first, ...rest] = others.map(({ host }) => {
        return { key: roomKey(host), revision: this.#rooms.get(host)?.revision ?? '0' };
      });
      let transaction = client.if(first!.key, 'Mod', '==', first!.revision);
      for (const { key, revision } of rest) {
        transaction = transaction.and(key, 'Mod', '==', revision);
      }
      const puts = others.flatMap(({ host, slots }) => {
        const { value: room } = this.#rooms.get(host)!;
        const roomBytes = Math.max(0, room.roomBytes - slots * bytesEach);
        const less: HostRoom = { ...room, slots: room.slots - slots, roomBytes };
        const promised: HostReservation = { ticket, slots, bytesEach };
        const key = `${this.#prefix}reservation/${host}/${ticket}`;
        return [
          // With the host's own lease it would vanish with it; the host writes it anew anyway.
          client.put(roomKey(host)).value(JSON.stringify(less)).ignoreLease(),
          client.put(key).value(JSON.stringify(promised)).lease(leaseId),
        ];
      });
      const { succeeded } = await transaction.then(...puts).commit();
      if (!succeeded) await lease.revoke().catch(() => {});
      return succeeded;
    });
  }

  /** The host's keys hang on it; when it was lost, they are put again. */
  async #takeLease(): Promise<void> {
    const self = this.#joined;
    const lease = this.#client.lease(HOST_TTL_S, { autoKeepAlive: true });
    lease.on('lost', () => {
      if (this.#lease === lease && !this.#isClosed) void this.#joinAgain();
    });
    this.#lease = lease;
    const leaseId = await lease.grant();
    const put = (kind: string, value: object) =>
      this.#client
        .put(`${this.#prefix}${kind}/${self.name}`)
        .value(JSON.stringify(value))
        .lease(leaseId)
        .exec();
    await put('room', this.#room);
    await put('host', self);
  }

  async #joinAgain(): Promise<void> {
    while (!this.#isClosed) {
      try {
        await this.#takeLease();
        return;
      } catch (error) {
        this.#log.warn({ err: error }, 'the cluster store does not answer');
        await new Promise((resolve) => setTimeout(resolve, JOIN_AGAIN_MS));
      }
    }
  }

  async #readAll(): Promise<void> {
    const { kvs, header } = await this.#client.getAll().prefix(this.#prefix).exec();
    for (const pair of kvs) this.#take(pair);
    this.#watcher = await this.#client
      .watch()
      .prefix(this.#prefix)
      .startRevision(String(BigInt(header.revision) + 1n))
      .create();
    this.#watcher.on('put', (pair) => this.#take(pair));
    this.#watcher.on('delete', (pair) => this.#forget(pair));
    this.#watcher.on('error', (error) => {
      this.#log.warn({ err: error }, 'the cluster store is not heard');
    });
  }

  async #readRooms(): Promise<void> {
    await this.#answered(async () => {
      const { kvs } = await this.#client.getAll().prefix(`${this.#prefix}room/`).exec();
      for (const pair of kvs) this.#take(pair);
    });
  }

  #take({ key, value, mod_revision: revision }: IKeyValue): void {
    const [kind, name, ticket] = this.#split(key);
    if (name === undefined) return;
    if (kind === 'host') {
      const identity = parse(hostRecordSchema, value);
      if (identity !== undefined) this.#identities.set(name, identity);
    } else if (kind === 'room') {
      const room = parse(hostRoomSchema, value);
      const before = this.#rooms.get(name);
      const isOlder = before !== undefined && BigInt(before.revision) > BigInt(revision);
      if (room !== undefined && !isOlder) this.#rooms.set(name, { value: room, revision });
    } else if (kind === 'draining') {
      this.#draining.add(name);
    } else if (kind === 'reservation') {
      const reservation = parse(reservationSchema, value);
      if (reservation === undefined) return;
      this.#reservations.set(`${name}/${ticket}`, reservation);
      if (name === this.#self?.name) this.#tellReservations(name);
    }
  }

  #forget({ key }: IKeyValue): void {
    const [kind, name, ticket] = this.#split(key);
    if (name === undefined) return;
    if (kind === 'host') {
      this.#identities.delete(name);
      if (name === this.#self?.name) return;
      for (const listener of this.#lost) listener(name);
    } else if (kind === 'room') {
      this.#rooms.delete(name);
    } else if (kind === 'draining') {
      this.#draining.delete(name);
    } else if (kind === 'reservation') {
      this.#reservations.delete(`${name}/${ticket}`);
      if (name === this.#self?.name) this.#tellReservations(name);
    }
  }

  #tellReservations(name: string): void {
    const own = [...this.#reservations].filter(([key]) => key.startsWith(`${name}/`));
    const reservations = own.map(([, reservation]) => reservation);
    for (const listener of this.#reserved) listener(reservations);
  }

  #split(key: Buffer): string[] {
    return key.toString().slice(this.#prefix.length).split('/');
  }

  /** @throws SnowforkError SF_CLUSTER_UNAVAILABLE. */
  async #answered<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw error instanceof SnowforkError ? error : unavailable(error);
    }
  }
}

function parse<S extends z.ZodType>(schema: S, value: Buffer): z.output<S> | undefined {
  try {
    return schema.parse(JSON.parse(value.toString()));
  } catch {
    // A newer host's, perhaps: it is as if it were not there.
    return undefined;
  }
}

function isSame(one: HostRoom, other: HostRoom): boolean {
  return one.roomBytes === other.roomBytes && one.slots === other.slots && one.vms === other.vms;
}

function unavailable(cause: unknown): SnowforkError {
  const words = cause instanceof Error ? cause.message : String(cause);
  return new SnowforkError(
    'SF_CLUSTER_UNAVAILABLE',
    `the cluster's store (etcd) does not answer: ${words}. Running clones go on; new tickets are ` +
      'refused until it has its majority again',
    { cause },
  );
}
