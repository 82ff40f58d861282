// The cluster's store in etcd. A host's record, room and tickets hang on its lease, so they vanish with
// it; rooms are lessened in the transaction that puts the ticket which they are promised to; all hosts
// mirror all keys. Where etcd has lost its majority, what was last heard stays, and whatever would
// change something is refused.
//
//   /snowfork/<cluster>/host/<name>                HostIdentity     lease of the host
//   /snowfork/<cluster>/room/<name>                HostRoom         lease of the host
//   /snowfork/<cluster>/ticket/<id>                StoredTicket     lease of its home, `etcd-tickets.ts`
//   /snowfork/<cluster>/family/<id>                FamilyRecord     `etcd-families.ts`
//   /snowfork/<cluster>/draining/<name>            true
//   /snowfork/<cluster>/removed/<id of the host>   its name

import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import {
  type ClusterStore,
  type Holdings,
  type HostIdentity,
  type HostRecord,
  type HostReservation,
  type HostRoom,
  type HostSlots,
  hostRecordSchema,
  hostRoomSchema,
  type Reserved,
  type ReserveRequest,
  type StoredTicket,
} from './cluster-store.js';
import { EtcdFamilies, familyChange } from './etcd-families.js';
import { type EtcdAccess, EtcdLink, type HostCertificate } from './etcd-link.js';
import { type Change, EtcdMirror, type Pair, readPair } from './etcd-mirror.js';
import { EtcdTickets, newTicket } from './etcd-tickets.js';
import { changeOver, type Seen } from './etcd-transaction.js';
import type { FamilyCounts, FamilyRequest, Weighed } from './family-record.js';
import { HOST_TIMEOUT_MS, HostLease } from './host-lease.js';
import { placeClones } from './placement.js';

const RESERVE_ATTEMPTS_MAX = 20;
/** Of several that ask for the same room again and again, all get their turn. */
const RESERVE_PAUSE_MS_MAX = 20;
const NO_ROOM: HostRoom = { roomBytes: 0, slots: 0, vms: 0 };

export interface EtcdOptions extends EtcdAccess {
  readonly log: Logger;
  /** A host of which nothing was heard for so long is lost; etcd takes 2 s for the least. */
  readonly hostTimeoutMs?: number;
}

interface Promising {
  readonly request: ReserveRequest;
  /** Here and elsewhere. */
  readonly granted: readonly HostSlots[];
  /** As it was looked at; it may change while etcd answers. */
  readonly family: { readonly seen: Seen; readonly weighed: Weighed } | undefined;
}

export class EtcdStore implements ClusterStore {
  readonly #link: EtcdLink;
  readonly #log: Logger;
  readonly #hostTimeoutMs: number;
  #mirror!: EtcdMirror;
  #families!: EtcdFamilies;
  #tickets!: EtcdTickets;
  /** Names of the hosts that are there. */
  readonly #present = new Set<string>();
  /** Ids of hosts by name, as they were last heard of. */
  readonly #ids = new Map<string, string>();
  readonly #lost: ((host: string) => void)[] = [];
  readonly #started: ((host: string) => void)[] = [];
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
      const of = { link: store.#link, mirror: store.#mirror };
      const here = () => store.#joined.name;
      const present = () => store.#present;
      store.#families = new EtcdFamilies({ ...of, here, present });
      store.#tickets = new EtcdTickets({ ...of, here, present, lease: () => store.#lease!.id });
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

  onStarted(listener: (host: string) => void): void {
    this.#started.push(listener);
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
        .then(space.put(removed).value(name), ...keys.map((key) => space.delete().key(key)))
        .commit();
    });
  }

  isRemoved(name: string): boolean {
    const id = this.#ids.get(name);
    if (id !== undefined) return this.#mirror.get(`removed/${id}`) !== undefined;
    // Before this agent's time.
    return this.#mirror.below('removed/').some(({ value }) => value === name);
  }

  async reserve(request: ReserveRequest): Promise<Reserved> {
    return await this.#tickets.whileReserving(request.ticket, () => this.#reserve(request));
  }

  async #reserve(request: ReserveRequest): Promise<Reserved> {
    const { name } = this.#joined;
    // One that has just joined may not have been heard of.
    const isUnheard = (host: string) => this.#identity(host) === undefined;
    if (request.placing.hosts?.some(isUnheard)) await this.#mirror.look();
    for (let attempt = 1; attempt <= RESERVE_ATTEMPTS_MAX; attempt++) {
      const family = request.ofFamily && this.#families.weigh(request.ofFamily);
      const { clones: asked = request.asked, reason, refusal } = family?.weighed ?? {};
      const hosts = this.#slotsFor(request);
      const granted = placeClones({ ...request, asked, here: name, hosts });
      const total = slotsOf(granted);
      if (total < request.asked && attempt === 1) {
        // What was heard may be a moment old.
        await this.#mirror.look();
        continue;
      }
      if (await this.#promise({ request, granted, family })) {
        if (refusal !== undefined) throw refusal;
        const few = `the hosts of the cluster have room for ${total} of ${asked}`;
        const why = total < asked ? few : reason;
        const elsewhere = granted.filter(({ host }) => host !== name);
        const here = total - slotsOf(elsewhere);
        return { here, elsewhere, ...(why === undefined ? {} : { reason: why }) };
      }
      // Somebody was faster.
      await delay(Math.random() * RESERVE_PAUSE_MS_MAX);
      await this.#mirror.look();
    }
    throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', 'too many ask for room at once: try again');
  }

  async takeOfFamily(request: FamilyRequest): Promise<void> {
    await this.#families.take(request);
  }

  heardOf(family: string): { here: FamilyCounts; elsewhere: FamilyCounts } {
    return this.#families.heardOf(family);
  }

  tickets(): StoredTicket[] {
    return this.#tickets.all();
  }

  async publish(holdings: Holdings): Promise<void> {
    await Promise.all([this.#families.publish(holdings), this.#tickets.publish(holdings.tickets)]);
  }

  async useCertificate({ certificate, privateKey }: HostCertificate): Promise<void> {
    this.#link.use({ certificate, privateKey });
    await this.#mirror.watchAnew();
  }

  /** Where its members are from now on. */
  async useEndpoints(endpoints: readonly string[]): Promise<void> {
    this.#link.use({ endpoints });
    await this.#mirror.watchAnew();
  }

  async close(): Promise<void> {
    await this.#mirror.close();
    await this.#lease?.close();
    this.#link.close();
  }

  get #joined(): HostIdentity {
    if (this.#self === undefined) throw new SnowforkError('SF_INTERNAL', 'not joined yet');
    return this.#self;
  }

  #identity(name: string): HostIdentity | undefined {
    return readPair(hostRecordSchema, this.#mirror.get(`host/${name}`));
  }

  #roomOf(name: string): HostRoom | undefined {
    return readPair(hostRoomSchema, this.#mirror.get(`room/${name}`));
  }

  #slotsFor({ bytesEach, hereSlots }: ReserveRequest): HostSlots[] {
    return this.hosts()
      .filter(({ draining }) => !draining)
      .map(({ name, room }) => {
        if (name === this.#joined.name) return { host: name, slots: hereSlots };
        return { host: name, slots: Math.min(room.slots, Math.floor(room.roomBytes / bytesEach)) };
      });
  }

  /**
   * The ticket, the rooms that it takes from, and what its family has, in one transaction; `false` when
   * one of them has changed meanwhile.
   */
  async #promise({ request, granted, family }: Promising): Promise<boolean> {
    const others = granted.filter(({ host }) => host !== this.#joined.name);
    const rooms = others.map(({ host, slots }) => {
      const seen = { key: `room/${host}`, pair: this.#mirror.get(`room/${host}`) };
      return { seen, left: lessened(seen.pair, slots, request.bytesEach) };
    });
    const ticket = this.#tickets.seen(request.ticket);
    const isShared = others.length > 0;
    const [first, ...rest] = [
      ...(family === undefined ? [] : [family.seen]),
      ...(isShared ? [ticket, ...rooms.map(({ seen }) => seen)] : []),
    ];
    if (first === undefined) {
      // Nothing is asked of etcd, but without it there are no tickets.
      if (this.#link.isSilent) await this.#mirror.look();
      return true;
    }
    const record = newTicket(request, granted, this.#joined.name);
    const isDone = await changeOver(this.#link, [first, ...rest], (space) => [
      ...(family === undefined
        ? []
        : [familyChange(space, family.seen, family.weighed.taken(slotsOf(granted)))]),
      ...(isShared ? [this.#tickets.put(space, record)] : []),
      // They hang on their host's lease as before.
      ...rooms.map(({ seen, left }) =>
        space.put(seen.key).value(JSON.stringify(left)).ignoreLease(),
      ),
    ]);
    if (isDone) return true;
    await this.#mirror.look();
    // An attempt that was not answered in time was heard all the same.
    return isShared && this.#tickets.isPut(record);
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
    const hosts = changes.filter(isOf('host'));
    const nameOf = (change: Change) => keyOf(change).slice('host/'.length);
    for (const change of hosts) {
      if (change.after === undefined) this.#present.delete(nameOf(change));
      else {
        this.#present.add(nameOf(change));
        const identity = readPair(hostRecordSchema, change.after);
        if (identity !== undefined) this.#ids.set(identity.name, identity.id);
      }
    }
    // A ticket is as good as gone with its home.
    if (hosts.length > 0 || changes.some(isOf('ticket'))) this.#tellReservations();
    for (const change of hosts) {
      const name = nameOf(change);
      if (name === this.#self?.name) continue;
      if (change.after === undefined) for (const listener of this.#lost) listener(name);
      else if (startOf(change.before) !== startOf(change.after))
        for (const listener of this.#started) listener(name);
    }
  }

  #tellReservations(): void {
    if (this.#self === undefined) return;
    const reservations = this.#tickets.reservations();
    for (const listener of this.#reserved) listener(reservations);
  }
}

function keyOf({ before, after }: Change): string {
  return (after ?? before)?.key ?? '';
}

/** When the agent of a host's record has started. */
function startOf(pair: Pair | undefined): number | undefined {
  return readPair(hostRecordSchema, pair)?.startedAt;
}

function lessened(pair: Pair | undefined, slots: number, bytesEach: number): HostRoom {
  const room = readPair(hostRoomSchema, pair) ?? NO_ROOM;
  return {
    ...room,
    slots: room.slots - slots,
    roomBytes: Math.max(0, room.roomBytes - slots * bytesEach),
  };
}

function slotsOf(granted: readonly HostSlots[]): number {
  return granted.reduce((sum, { slots }) => sum + slots, 0);
}

function isSame(one: HostRoom, other: HostRoom): boolean {
  return one.roomBytes === other.roomBytes && one.slots === other.slots && one.vms === other.vms;
}
