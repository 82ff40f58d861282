// The cluster's store in etcd. A host's record and room hang on its lease, so they vanish with it;
// rooms are lessened and promised in one transaction; all hosts mirror all keys. Where etcd has lost
// its majority, what was last heard stays, and whatever would change something is refused.
//
//   /snowfork/<cluster>/host/<name>                  HostIdentity            lease of the host
//   /snowfork/<cluster>/room/<name>                  HostRoom                lease of the host
//   /snowfork/<cluster>/reservation/<name>/<ticket>  HostReservation         lease of a minute
//   /snowfork/<cluster>/family/<id>                  VMs by host             `etcd-families.ts`
//   /snowfork/<cluster>/draining/<name>              true
//   /snowfork/<cluster>/removed/<id of the host>     its name

import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import type { z } from 'zod';
import {
  type ClusterStore,
  type FamilyCounts,
  type FamilyRequest,
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
import { EtcdFamilies } from './etcd-families.js';
import { type EtcdAccess, EtcdLink, type HostCertificate } from './etcd-link.js';
import { type Change, EtcdMirror, type Pair } from './etcd-mirror.js';
import { HostLease } from './host-lease.js';
import { placeClones } from './placement.js';

const HOST_TIMEOUT_MS = 6000;
const RESERVATION_TIMEOUT_MS = 60_000;
const RESERVE_ATTEMPTS_MAX = 20;
/** Of several that ask for the same room again and again, all get their turn. */
const RESERVE_PAUSE_MS_MAX = 20;
const NO_ROOM: HostRoom = { roomBytes: 0, slots: 0, vms: 0 };

export interface EtcdOptions extends EtcdAccess {
  readonly log: Logger;
  /** A host of which nothing was heard for so long is lost; etcd takes 2 s for the least. */
  readonly hostTimeoutMs?: number;
  /** A reservation that nobody used by then gives its room back. */
  readonly reservationTimeoutMs?: number;
  /** For this host's member, if it has one. */
  readonly renewed?: (of: HostCertificate) => void;
  /** It was closed. */
  readonly ended?: () => void;
}

/** With the room that it is taken from. */
interface Promised extends HostSlots {
  readonly room: Pair;
}

export class EtcdStore implements ClusterStore {
  readonly #link: EtcdLink;
  readonly #log: Logger;
  readonly #hostTimeoutMs: number;
  readonly #reservationTimeoutMs: number;
  readonly #renewed: (of: HostCertificate) => void;
  readonly #ended: () => void;
  #mirror!: EtcdMirror;
  #families!: EtcdFamilies;
  readonly #lost: ((host: string) => void)[] = [];
  readonly #reserved: ((reservations: readonly HostReservation[]) => void)[] = [];
  #self: HostIdentity | undefined;
  #room: HostRoom = NO_ROOM;
  #lease: HostLease | undefined;

  /** @throws SnowforkError SF_CLUSTER_UNAVAILABLE. */
  static async open(options: EtcdOptions): Promise<EtcdStore> {
    const store = new EtcdStore(options);
    const { log } = options;
    try {
      const changed = (changes: readonly Change[]) => store.#tell(changes);
      store.#mirror = await EtcdMirror.open(store.#link, { log, changed });
      store.#families = new EtcdFamilies({
        ...{ link: store.#link, mirror: store.#mirror },
        hosts: () => new Set(store.hosts().map(({ name }) => name)),
      });
      return store;
    } catch (error) {
      store.#link.close();
      throw error;
    }
  }

  private constructor(options: EtcdOptions) {
    this.#link = new EtcdLink(options);
    this.#log = options.log;
    this.#hostTimeoutMs = options.hostTimeoutMs ?? HOST_TIMEOUT_MS;
    this.#reservationTimeoutMs = options.reservationTimeoutMs ?? RESERVATION_TIMEOUT_MS;
    this.#renewed = options.renewed ?? (() => {});
    this.#ended = options.ended ?? (() => {});
  }

  async join(self: HostIdentity, room: HostRoom): Promise<void> {
    const there = this.#identity(self.name);
    if (there !== undefined && there.id !== self.id) {
      const message = `the cluster has a host ${self.name} already, at ${there.address}`;
      throw new SnowforkError('SF_BAD_REQUEST', message);
    }
    this.#self = self;
    this.#room = room;
    this.#lease = await HostLease.take({
      ...{ link: this.#link, log: this.#log, timeoutMs: this.#hostTimeoutMs },
      put: (lease) => this.#putSelf(lease),
    });
    // What was promised of an agent's room before this one.
    this.#tellReservations();
  }

  /** etcd reads only what a majority has agreed on. */
  async check(): Promise<void> {
    await this.#mirror.look();
  }

  hosts(): HostRecord[] {
    const names = this.#mirror.below('host/').map(({ key }) => key.slice('host/'.length));
    return names.flatMap((name) => {
      const identity = this.#identity(name);
      if (identity === undefined) return [];
      const draining = this.#mirror.get(`draining/${name}`) !== undefined;
      return [{ ...identity, draining, room: this.#roomOf(name) ?? NO_ROOM }];
    });
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
    const key = `room/${name}`;
    const before = this.#mirror.get(key);
    this.#room = room;
    // Without one it is put with the host, as soon as that is heard of again.
    const said = this.#roomOf(name);
    if (before === undefined || (said !== undefined && isSame(said, room))) return;
    await this.#link.call((space) =>
      space
        .if(key, 'Mod', '==', String(before.revision))
        .then(space.put(key).value(JSON.stringify(room)).ignoreLease())
        .commit(),
    );
  }

  async setDraining(name: string, isDraining: boolean): Promise<void> {
    const key = `draining/${name}`;
    await this.#link.call<unknown>((space) =>
      isDraining ? space.put(key).value('true').exec() : space.delete().key(key).exec(),
    );
  }

  async remove(name: string): Promise<void> {
    const identity = this.#identity(name);
    if (identity === undefined) {
      const known = this.hosts().map((host) => host.name);
      const message = `the cluster has no host ${name} now; it has ${known.join(', ') || 'none'}`;
      throw new SnowforkError('SF_HOST_NOT_FOUND', message);
    }
    await this.#link.call((space) => {
      const keys = ['host', 'room', 'draining'].map((kind) => `${kind}/${name}`);
      const removed = `removed/${identity.id}`;
      return space
        .if(removed, 'Version', '==', 0)
        .then(
          space.put(removed).value(name),
          ...keys.map((key) => space.delete().key(key)),
          space.delete().prefix(`reservation/${name}/`),
        )
        .commit();
    });
  }

  async reserve(request: ReserveRequest): Promise<{ granted: HostSlots[]; reason?: string }> {
    let lease: string | undefined;
    for (let attempt = 1; attempt <= RESERVE_ATTEMPTS_MAX; attempt++) {
      const granted = placeClones({ ...request, hosts: this.#slotsFor(request) });
      const total = granted.reduce((sum, { slots }) => sum + slots, 0);
      if (total < request.asked && attempt === 1) {
        // What was heard may be a moment old.
        await this.#mirror.look();
        continue;
      }
      const others = granted.filter(({ host }) => host !== request.here);
      // With the rooms that were looked at, though they may change while etcd answers.
      const promise = others.map((of) => ({ ...of, room: this.#mirror.get(`room/${of.host}`)! }));
      if (others.length > 0) lease ??= await this.#leaseOfReservation();
      if (await this.#promise(request, promise, lease)) {
        if (total === request.asked) return { granted };
        const reason = `the hosts of the cluster have room for ${total} of ${request.asked}`;
        return { granted, reason };
      }
      // Somebody was faster.
      await delay(Math.random() * RESERVE_PAUSE_MS_MAX);
      await this.#mirror.look();
    }
    throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', 'too many ask for room at once: try again');
  }

  async takeOfFamily(request: FamilyRequest): Promise<number> {
    return await this.#families.take(request);
  }

  async publishFamilies(counts: FamilyCounts): Promise<void> {
    await this.#families.publish(this.#joined.name, counts);
  }

  async release(ticket: string, host: string): Promise<void> {
    const key = `reservation/${host}/${ticket}`;
    await this.#link.call((space) => space.delete().key(key).exec());
  }

  async useCertificate(of: HostCertificate): Promise<void> {
    this.#renewed(of);
    this.#link.useCertificate(of);
    await this.#mirror.watchAnew();
  }

  async close(): Promise<void> {
    await this.#mirror.close();
    await this.#lease?.close();
    this.#link.close();
    this.#ended();
  }

  get #joined(): HostIdentity {
    if (this.#self === undefined) throw new SnowforkError('SF_INTERNAL', 'not joined yet');
    return this.#self;
  }

  #identity(name: string): HostIdentity | undefined {
    return read(hostRecordSchema, this.#mirror.get(`host/${name}`));
  }

  #roomOf(name: string): HostRoom | undefined {
    return read(hostRoomSchema, this.#mirror.get(`room/${name}`));
  }

  #slotsFor({ bytesEach, here, hereSlots }: ReserveRequest): HostSlots[] {
    return this.hosts()
      .filter(({ draining }) => !draining)
      .map(({ name, room }) => {
        if (name === here) return { host: name, slots: hereSlots };
        return { host: name, slots: Math.min(room.slots, Math.floor(room.roomBytes / bytesEach)) };
      });
  }

  async #leaseOfReservation(): Promise<string> {
    const TTL = Math.ceil(this.#reservationTimeoutMs / 1000);
    const { ID } = await this.#link.call(({ leaseClient }) => leaseClient.leaseGrant({ TTL }));
    return ID;
  }

  /** In one transaction; `false` when the room of one has changed meanwhile. */
  async #promise(
    { ticket, here, bytesEach }: ReserveRequest,
    others: readonly Promised[],
    lease: string | undefined,
  ): Promise<boolean> {
    const [first, ...rest] = others;
    if (first === undefined || lease === undefined) {
      // Nothing is asked of etcd, but without it there are no tickets.
      if (this.#link.isSilent) await this.#mirror.look();
      return true;
    }
    const keyOf = (host: string) => `reservation/${host}/${ticket}`;
    const { succeeded } = await this.#link.call((space) => {
      let transaction = space.if(first.room.key, 'Mod', '==', String(first.room.revision));
      for (const { room } of rest) {
        transaction = transaction.and(room.key, 'Mod', '==', String(room.revision));
      }
      const puts = others.flatMap(({ host, slots, room }) => {
        const promised: HostReservation = { ticket, holder: here, slots, bytesEach };
        return [
          // It hangs on its host's lease as before.
          space
            .put(room.key)
            .value(JSON.stringify(lessened(room, promised)))
            .ignoreLease(),
          space.put(keyOf(host)).value(JSON.stringify(promised)).lease(lease),
        ];
      });
      return transaction.then(...puts).commit();
    });
    if (succeeded) return true;
    await this.#mirror.look();
    // An attempt that was not answered in time was heard all the same.
    return others.every(({ host }) => this.#mirror.get(keyOf(host))?.lease === lease);
  }

  async #putSelf(lease: string): Promise<void> {
    const self = this.#joined;
    const { succeeded } = await this.#link.call((space) => {
      const put = (kind: string, value: object) =>
        space.put(`${kind}/${self.name}`).value(JSON.stringify(value)).lease(lease);
      return space
        .if(`removed/${self.id}`, 'Version', '==', 0)
        .then(put('host', self), put('room', this.#room))
        .commit();
    });
    if (succeeded) return await this.#mirror.look();
    const message = `${self.name} was taken out of the cluster: \`sf host join\` joins it anew`;
    throw new SnowforkError('SF_PERMISSION', message);
  }

  #tell(changes: readonly Change[]): void {
    const isOf = (kind: string) => (change: Change) => keyOf(change).startsWith(`${kind}/`);
    if (changes.some(isOf(`reservation/${this.#self?.name}`))) this.#tellReservations();
    const lost = changes.filter(isOf('host')).filter(({ after }) => after === undefined);
    for (const change of lost) {
      const name = keyOf(change).slice('host/'.length);
      if (name === this.#self?.name) continue;
      this.#giveBack(name);
      for (const listener of this.#lost) listener(name);
    }
  }

  #tellReservations(): void {
    if (this.#self === undefined) return;
    const pairs = this.#mirror.below(`reservation/${this.#self.name}/`);
    const reservations = pairs.flatMap((pair) => read(reservationSchema, pair) ?? []);
    for (const listener of this.#reserved) listener(reservations);
  }

  /** What a lost host's tickets have of this one, and this one's of it. */
  #giveBack(lost: string): void {
    const own = this.#self?.name;
    for (const pair of this.#mirror.below('reservation/')) {
      const of = read(reservationSchema, pair);
      const [, host] = pair.key.split('/') as [string, string];
      if (of === undefined) continue;
      if (!(host === own && of.holder === lost) && !(host === lost && of.holder === own)) continue;
      this.release(of.ticket, host).catch((error: unknown) => {
        this.#log.warn({ ...of, host, err: error }, 'room is kept until it runs out');
      });
    }
  }
}

function keyOf({ before, after }: Change): string {
  return (after ?? before)?.key ?? '';
}

/** Undefined also for what a newer host wrote that is not understood here. */
function read<S extends z.ZodType>(schema: S, pair: Pair | undefined): z.output<S> | undefined {
  if (pair === undefined) return undefined;
  try {
    return schema.parse(JSON.parse(pair.value));
  } catch {
    return undefined;
  }
}

function lessened(pair: Pair, { slots, bytesEach }: HostReservation): HostRoom {
  const room = read(hostRoomSchema, pair) ?? NO_ROOM;
  return {
    ...room,
    slots: room.slots - slots,
    roomBytes: Math.max(0, room.roomBytes - slots * bytesEach),
  };
}

function isSame(one: HostRoom, other: HostRoom): boolean {
  return one.roomBytes === other.roomBytes && one.slots === other.slots && one.vms === other.vms;
}
