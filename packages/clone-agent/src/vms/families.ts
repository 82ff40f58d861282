// Fork semantics: launching, forking, checkpoints, joining, and the requests that guests make for
// them. Every VM is a clone of a snapshot; this is where that sentence is code. It owns the VMs and
// the tickets; how a VM is frozen is `freeze-vm.ts`, how a clone is started `start-clone.ts`.

import { setMaxListeners } from 'node:events';
import {
  type CheckpointResult,
  decodeValue,
  type ForkResult,
  type GuestMethod,
  type GuestParams,
  guestMethods,
  type Machine,
  type Slot,
  SnowforkError,
  type TicketInfo,
  type VmInfo,
} from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { z } from 'zod';
import type { StartedClone } from '../cluster/clone-methods.js';
import type { Holdings, HostReservation } from '../cluster/cluster-store.js';
import type { FamilyCounts, FamilyRequest } from '../cluster/family-record.js';
import { mappedPagesOf, type PageRuns } from '../freeze/process-memory.js';
import { type ChannelHandlers, encodeResponse, type PendingRequest } from '../guest/channel.js';
import type { QemuProcess } from '../hypervisor/qemu.js';
import type { Settings } from '../settings.js';
import type { Journal, Standing, TicketRecord, VmRecord } from '../store/journal.js';
import type { Snapshot, SnapshotStore } from '../store/snapshots.js';
import { type AdoptionContext, adoptVm } from './adopt-vms.js';
import { type Freezing, freezeVm, frozenObjects } from './freeze-vm.js';
import { inExcess, Limits } from './limits.js';
import type { Place, Placing } from './placing.js';
import { type Peering, RemoteClones, type TicketPart } from './remote-clones.js';
import { Room } from './room.js';
import { connectClone, runClone } from './start-clone.js';
import { KILLED_BY_TICKET, type Ticket, Tickets } from './tickets.js';
import { type Descent, Vm, type VmEnds, whyEnded } from './vm.js';
import { readVmStats } from './vm-stats.js';

/** VMs that ended and are still listed. */
const ENDED_REMEMBERED_MAX = 1000;
/** Of these the newest have all their console and log, the others what was last in them. */
const ENDED_WITH_OUTPUT_MAX = 64;
const REFUSAL_LENGTH_MAX = 1000;
const FIRST: Standing = { generation: 0, ordinal: 0, since: 0 };

export interface FamiliesContext {
  readonly store: SnapshotStore;
  readonly settings: Settings;
  readonly log: Logger;
  readonly journal: Journal;
  /** A QEMU whose RAM is the snapshot's, ready to load its state; the snapshot may still be pending. */
  takeQemu(snapshot: Snapshot): Promise<{ qemu: QemuProcess; warm: boolean }>;
  /** The QEMU of a VM of the agent before this one. */
  adoptQemu(process: VmRecord['qemu'], snapshot: Snapshot): Promise<QemuProcess>;
  /** Keeps background work off the processors; returns the end of that. */
  quiet(): () => void;
  changed(kind: 'vm' | 'ticket', id: string): void;
  /** The other hosts of its cluster, if it is in one, and what is kept with them. */
  readonly others: Others;
  /** This host's name in its cluster. */
  hostName(): string | undefined;
}

/** What clones on other hosts need of the agent, and tickets and families of the store. */
export interface Others extends Peering {
  /** Whether the host is one of the cluster that is known to be there. */
  isMember(host: string): boolean;
  /** Room on this host and on others, for the clones of one ticket, and what its family takes. */
  readonly place: Place;
  /** What needs no room. @throws SnowforkError SF_LIMIT, SF_CLUSTER_UNAVAILABLE. */
  takeOfFamily(request: FamilyRequest): Promise<void>;
  /** What this host has told of a family, and what the others have: as last heard. */
  heardOf(family: string): { readonly here: FamilyCounts; readonly elsewhere: FamilyCounts };
}

export interface Adoption {
  readonly adopted: string[];
  readonly lost: readonly { readonly vm: string; readonly reason: string }[];
}

/** A program's fork or checkpoint, to be answered in the parent and in every clone. */
interface Caller {
  readonly request: PendingRequest;
  /** The clones do not end with the connection that asked. */
  readonly detached: boolean;
}

export class Families {
  readonly tickets: Tickets;
  readonly room: Room;
  readonly limits: Limits;
  readonly #context: FamiliesContext;
  readonly remote: RemoteClones;
  readonly #vms = new Map<string, Vm>();
  readonly #ends: VmEnds = {
    ending: (vm) => this.remote.ending(vm),
    ended: (vm) => this.#ended(vm),
  };
  #calls = 0;
  /** By family: its last request for a ticket. */
  readonly #turns = new Map<string, Promise<void>>();

  constructor(context: FamiliesContext) {
    this.#context = context;
    this.tickets = new Tickets(context.journal);
    this.room = new Room(context.settings, () => this.running());
    const { settings, store, others } = context;
    this.limits = new Limits({
      settings,
      vms: () => this.#vms.values(),
      tickets: () => this.tickets.all(),
      forgetTicket: (ticket) => this.tickets.forget(ticket),
      snapshots: () => store.all(),
      layerPath: (layer) => store.layerPath(layer),
      hostName: () => context.hostName(),
      isMember: (host) => others.isMember(host),
      heardOf: (family) => others.heardOf(family),
      now: Date.now,
    });
    this.limits.watch();
    this.remote = new RemoteClones({
      peering: others,
      originTimeoutMs: settings.originTimeoutMs,
      store,
      tickets: this.tickets,
      log: context.log,
      startPart: (part, signal) => this.#startPart(part, signal),
      killTicket: (ticket) => this.killTicket(ticket),
      settled: (ticket, cloneId, how) => this.#settledElsewhere(ticket, cloneId, how),
      baseOf: (vm) => this.#vms.get(vm)?.base,
      mappedOf: (snapshot) => this.#mappedOf(snapshot),
    });
  }

  *running(): Iterable<Vm> {
    for (const vm of this.#vms.values()) if (vm.end === undefined) yield vm;
  }

  /** As the other hosts see it. */
  hostRoom(): { roomBytes: number; slots: number; vms: number } {
    const vms = [...this.running()].length;
    const { roomBytes } = this.room.measure();
    return { roomBytes, slots: this.room.slots, vms };
  }

  all(): Vm[] {
    return [...this.#vms.values()];
  }

  /** @throws SnowforkError SF_VM_NOT_FOUND. */
  get(id: string): Vm {
    const vm = this.#vms.get(id);
    if (vm !== undefined) return vm;
    throw new SnowforkError('SF_VM_NOT_FOUND', `there is no VM ${id}: \`sf ps --all\` lists them`);
  }

  /** Goes on where the agent before this one was killed. */
  async adopt(records: { vms: VmRecord[]; tickets: TicketRecord[] }): Promise<Adoption> {
    const runs = ({ end, state }: VmRecord) => end === undefined && state !== 'starting';
    const running = new Map(records.vms.filter(runs).map((record) => [record.id, record]));
    for (const ticket of records.tickets) {
      const owner = running.get(ticket.vm ?? '');
      const isOpen = !ticket.used && owner !== undefined;
      const own = ticket.slots.filter(({ host }) => host === undefined);
      const room = isOpen ? this.room.hold(own.length, owner.machine) : undefined;
      this.#watchPart(this.tickets.restore(ticket, room));
    }
    const vms = await Promise.all(records.vms.map((record) => adoptVm(record, this.#adoption())));
    for (const vm of vms) {
      this.#vms.set(vm.id, vm);
      if (vm.end !== undefined && running.has(vm.id)) this.#save(vm);
    }
    this.tickets.settleAfter(vms);
    for (const ticket of this.tickets.all()) {
      for (const { cloneId } of ticket.slots) void this.remote.tellHome(ticket, cloneId);
    }
    this.#context.store.collectAll();
    this.#forgetOldest();
    const adopted = vms.filter((vm) => vm.end === undefined).map((vm) => vm.id);
    const lost = vms.flatMap(({ id, end }) =>
      running.has(id) && end?.how === 'lost' ? [{ vm: id, reason: end.reason }] : [],
    );
    return { adopted, lost };
  }

  #adoption(): AdoptionContext {
    const { store, log, adoptQemu } = this.#context;
    return {
      store,
      log,
      adoptQemu,
      handlersFor: (vm) => this.#handlersFor(vm),
      guestTimeoutMs: this.#context.settings.guestTimeoutMs,
      ends: this.#ends,
      save: (vm) => this.#save(vm),
      ticketOf: ({ descent }) => this.tickets.find(descent.ticket ?? ''),
    };
  }

  /** One VM of an image. @throws SnowforkError SF_NO_ROOM, SF_CLONE_FAILED, SF_QEMU_FAILED. */
  async launch(
    image: string,
    snapshot: Snapshot,
    signal: AbortSignal,
    { place = 'pack', ...placing }: Placing = {},
  ): Promise<VmInfo> {
    const { machine } = snapshot.file;
    // Here, unless it is said where, or there is no room.
    const wanted = { clones: 1, machine, extraBytes: 0, placing: { place, ...placing } };
    const ticket = await this.#held(snapshot, () => this.#ticket({}, wanted));
    ticket.use();
    const calledAt = performance.now();
    const descent = { image, launched: true };
    const [clone] = await this.#startClones(snapshot, ticket, descent, calledAt, signal);
    if (clone?.status === 'fulfilled') return clone.vm;
    throw SnowforkError.from(clone?.error);
  }

  /** Freezes `vm` and starts up to `clones` of it. @throws as `freeze`; a clone's failure settles its slot. */
  async fork(
    vm: Vm,
    clones: number,
    signal: AbortSignal,
    caller: Caller | undefined = undefined,
    placing: Placing = {},
  ): Promise<ForkResult> {
    const asked = caller === undefined ? undefined : 'fork';
    const ticket = await this.requestTicket(vm, clones, asked, placing);
    try {
      return await this.#forkByTicket(vm, ticket, caller, signal);
    } catch (error) {
      ticket.giveUp('the fork failed');
      throw error;
    }
  }

  /** Freezes `vm` and keeps the snapshot. */
  async checkpoint(
    vm: Vm,
    caller: Caller | undefined,
    signal: AbortSignal,
  ): Promise<CheckpointResult> {
    vm.guest();
    return await vm.inTurn(async () => {
      const begin = () => this.#beginSnapshot(vm, true);
      const isLimited = caller !== undefined;
      const snapshot = isLimited ? await this.#taking(vm, 'checkpoint', begin) : begin();
      const answer = (id: number) => ({ checkpoint: snapshot.file.id, id, restored: false });
      const { times } = await this.#freeze(vm, snapshot, caller, answer(0), signal);
      return { snapshot: this.#context.store.info(snapshot), freeze: times };
    });
  }

  /** The snapshot stays while there is room looked for, whoever else lets it go. */
  async #held<T>(snapshot: Snapshot, work: () => Promise<T>): Promise<T> {
    const holder = `call ${++this.#calls}`;
    snapshot.holders.add(holder);
    try {
      return await work();
    } finally {
      snapshot.holders.delete(holder);
    }
  }

  /** Clones of a stored snapshot, asked for from the host. */
  async createClones(
    snapshot: Snapshot,
    clones: number,
    signal: AbortSignal,
    placing: Placing = {},
  ): Promise<ForkResult> {
    const descent = this.#descentFrom(snapshot, undefined);
    const { family } = descent;
    const whose = family === undefined ? {} : { family };
    const { machine } = snapshot.file;
    const wanted = { clones, machine, extraBytes: 0, placing };
    const ticket = await this.#held(snapshot, () => this.#ticket(whose, wanted));
    ticket.use();
    const settled = await this.#startClones(snapshot, ticket, descent, performance.now(), signal);
    const info = this.#context.store.info(snapshot);
    return { ticket: ticket.info(), snapshot: info, clones: settled };
  }

  /**
   * Room for clones of `vm`; what its guest asks for is limited.
   * @throws SnowforkError SF_NO_ROOM when there is none at all, SF_LIMIT, SF_CLUSTER_UNAVAILABLE.
   */
  async requestTicket(
    vm: Vm,
    clones: number,
    byGuest: 'fork' | 'requestTicket' | undefined,
    placing: Placing = {},
  ): Promise<Ticket> {
    vm.guest();
    const { id, family, machine } = vm;
    // What is granted must count before a family asks for more.
    return await this.#inFamilyTurn(family, async () => {
      // The freeze may store as much as the VM has of its own.
      const wanted = { clones, machine, extraBytes: machine.memoryBytes, placing };
      const ofFamily = byGuest && this.limits.request(vm, byGuest, clones);
      const limited = { ...wanted, ...(ofFamily === undefined ? {} : { ofFamily }) };
      const ticket = await this.#ticket({ vm: id, family }, limited);
      this.limits.forgetTickets(family);
      return ticket;
    });
  }

  /** `work` is what a share of its family is taken for: it must count before the family asks again. */
  async #taking<T>(vm: Vm, method: GuestMethod, work: () => T): Promise<T> {
    return await this.#inFamilyTurn(vm.family, async () => {
      await this.#context.others.takeOfFamily(this.limits.request(vm, method));
      return work();
    });
  }

  /** What the store is told of this host. */
  holdings(): Holdings {
    const here = this.#context.hostName();
    const own = here === undefined ? [] : [...this.tickets.all()];
    return {
      families: this.limits.countedByFamily(),
      unsettled: new Set(this.#turns.keys()),
      tickets: own.flatMap((ticket) => ticket.stored(here!) ?? []),
    };
  }

  /** What tickets of other hosts have of this one; those that have a part here have used it. */
  reserved(reservations: readonly HostReservation[]): void {
    this.room.promise(reservations.filter(({ ticket }) => this.tickets.find(ticket) === undefined));
  }

  #inFamilyTurn<T>(family: string, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(family);
    const result = before === undefined ? work() : before.then(work);
    const turn = result
      .catch(() => {})
      .then(() => {
        if (this.#turns.get(family) === turn) this.#turns.delete(family);
      });
    this.#turns.set(family, turn);
    return result;
  }

  async join(ticket: Ticket, timeoutMs: number | undefined, signal: AbortSignal): Promise<Slot[]> {
    await ticket.settled(timeoutMs, signal);
    return ticket.slots.map(({ cloneId, vm, status, reason }) => {
      const slot = { cloneId, ...(vm === undefined ? {} : { vm }) };
      const value = ticket.read(cloneId);
      if (status === 'exited') return { ...slot, status, value: decodeOrBytes(value!) };
      if (status === 'lost') return { ...slot, status, reason: reason! };
      return { ...slot, status };
    });
  }

  killTicket(ticket: Ticket): void {
    ticket.killed = true;
    ticket.save();
    ticket.giveUp(KILLED_BY_TICKET.reason);
    for (const slot of ticket.slots) {
      const vm = slot.vm === undefined ? undefined : this.#vms.get(slot.vm);
      vm?.finish(KILLED_BY_TICKET);
    }
    this.remote.kill(ticket);
  }

  /**
   * A snapshot that is the newest of a running VM only saves that VM from storing pages again: it is
   * let go, and the VM's next freeze compares with what it was cloned from.
   */
  letGo(snapshot: Snapshot): void {
    for (const vm of this.running()) {
      if (vm.newest !== snapshot || vm.base === snapshot) continue;
      snapshot.holders.delete(`newest of ${vm.id}`);
      vm.newest = vm.base;
      this.#save(vm);
    }
  }

  /** All pages that a VM may still want of other hosts are brought here. @throws SnowforkError */
  async detach(vm: Vm, signal: AbortSignal): Promise<{ pages: number }> {
    vm.assertAlive();
    const { store } = this.#context;
    const snapshots = new Set([vm.base, vm.newest].flatMap((of) => store.ownersOf(of)));
    return await this.remote.detach(snapshots, signal);
  }

  /** So that the next agent finds it as it is. */
  #save(vm: Vm): void {
    this.#context.journal.putVm(vm.record());
  }

  async #ticket(
    whose: { vm?: string; family?: string },
    wanted: {
      clones: number;
      machine: Machine;
      extraBytes: number;
      placing: Placing;
      ofFamily?: FamilyRequest;
    },
  ): Promise<Ticket> {
    const { clones, ...of } = wanted;
    const id = this.#context.journal.newId('ticket');
    const request = { ...whose, ...of, ticket: id, asked: clones };
    const placed = await this.#context.others.place(request, this.room);
    if (placed.granted === 0 && placed.elsewhere.length === 0) {
      throw new SnowforkError('SF_NO_ROOM', placed.reason ?? 'no room', { details: { clones } });
    }
    return this.tickets.create(id, { ...whose, asked: clones }, placed);
  }

  async #forkByTicket(
    vm: Vm,
    ticket: Ticket,
    caller: Caller | undefined,
    signal: AbortSignal,
  ): Promise<ForkResult> {
    vm.guest();
    ticket.use();
    const calledAt = performance.now();
    const { snapshot, freezing, starting } = await vm.inTurn(async () => {
      let starting: Promise<ForkResult['clones']> | undefined;
      try {
        const snapshot = this.#beginSnapshot(vm, false);
        snapshot.holders.add(ticket.id);
        const answer = { id: 0, ticket: ticket.info() };
        const frozen = this.#freeze(vm, snapshot, caller, answer, signal);
        // The clones' QEMUs are made ready while the parent is being frozen.
        const descent = this.#descentFrom(snapshot, vm);
        starting = this.#startClones(snapshot, ticket, descent, calledAt, signal, frozen);
        return { snapshot, freezing: await frozen, starting };
      } catch (error) {
        // Without a frozen parent there was no fork. When its QEMUs are gone the ticket is as it was.
        await starting;
        ticket.unuse();
        throw error;
      }
    });
    const clones = await starting;
    const { store } = this.#context;
    return {
      ticket: ticket.info(),
      snapshot: store.info(snapshot),
      freeze: freezing.times,
      clones,
    };
  }

  #beginSnapshot(vm: Vm, kept: boolean): Snapshot {
    return this.#context.store.begin({
      machine: vm.machine,
      vm: vm.id,
      family: { id: vm.family, image: vm.descent.image, standing: vm.descent.standing },
      parent: vm.base.file.id,
      image: undefined,
      kept,
      persistent: false,
      objects: frozenObjects(vm.base),
    });
  }

  async #freeze(
    vm: Vm,
    snapshot: Snapshot,
    caller: Caller | undefined,
    parentAnswer: unknown,
    signal: AbortSignal,
  ): Promise<Freezing> {
    const { store, log, journal } = this.#context;
    const freezing = await freezeVm(vm, snapshot, {
      store,
      log,
      forkId: `f${journal.next('fork')}`,
      save: () => this.#save(vm),
      caller,
      parentAnswer,
      signal,
      leaveOutFreePages: this.#context.settings.leaveOutFreePages,
      trackWrites: this.#context.settings.trackWrites,
      availableBytes: () =>
        this.room.measure().availableBytes - this.#context.settings.reservedBytes,
    });
    this.#context.changed('vm', vm.id);
    return freezing;
  }

  #descentFrom(snapshot: Snapshot, parent: Vm | undefined): Descent {
    const { vm, image = 'unknown', family } = snapshot.file;
    if (vm === undefined || family === undefined) return { image };
    // What the owner makes of a checkpoint begins to live when he makes it.
    const since = parent === undefined ? Date.now() : undefined;
    const standing = { ...FIRST, ...family.standing, ...(since === undefined ? {} : { since }) };
    return { image: family.image, parent: vm, family: family.id, standing };
  }

  /**
   * Fills the slots of a ticket that is used with clones of `snapshot`, once `frozen`, and settles each;
   * when that fails the ticket is not touched. Never rejects.
   */
  async #startClones(
    snapshot: Snapshot,
    ticket: Ticket,
    descent: Descent,
    calledAt: number,
    signal: AbortSignal,
    frozen: Promise<unknown> = Promise.resolve(),
  ): Promise<ForkResult['clones']> {
    snapshot.holders.add(ticket.id);
    // Every clone that starts listens to it.
    setMaxListeners(0, signal);
    const isFrozen = frozen.then(
      () => true,
      () => false,
    );
    const standings = this.limits.standings(descent.standing, ticket);
    const endQuiet = this.#context.quiet();
    const of = { descent, standing: standings(0), frozen, signal };
    const elsewhere = this.#startElsewhere(snapshot, ticket, of);
    const here = ticket.ownSlots.map(async ({ cloneId }): Promise<StartedClone> => {
      const slot = { ...descent, cloneId, ticket: ticket.id, standing: standings(cloneId) };
      try {
        const vm = await this.#startOne(snapshot, ticket, slot, calledAt, signal, frozen);
        return { status: 'fulfilled', cloneId, vm: vm.info() };
      } catch (cause) {
        const error = SnowforkError.from(cause, 'SF_CLONE_FAILED');
        const reason = `it did not come up: ${error.message}`;
        if (await isFrozen) ticket.settle(cloneId, { reason });
        return { status: 'rejected', cloneId, error };
      } finally {
        if (await isFrozen) ticket.reservation.release(1);
      }
    });
    const settled = [...(await Promise.all(here)), ...(await elsewhere)];
    settled.sort((a, b) => a.cloneId - b.cloneId);
    endQuiet();
    snapshot.holders.delete(ticket.id);
    this.#context.store.collect(snapshot);
    return settled;
  }

  /** The slots of a ticket that other hosts fill, once there is something to clone. */
  async #startElsewhere(
    snapshot: Snapshot,
    ticket: Ticket,
    of: { descent: Descent; standing: Standing; frozen: Promise<unknown>; signal: AbortSignal },
  ): Promise<StartedClone[]> {
    if (ticket.slotsElsewhere.size === 0) return [];
    try {
      await of.frozen;
    } catch {
      return [];
    }
    return await this.remote.start(snapshot, ticket, of);
  }

  /** Clones of another host's ticket, which is to hear how each of them ends. */
  async #startPart(part: TicketPart, signal: AbortSignal): Promise<StartedClone[]> {
    const { snapshot, home, cloneIds, descent, standing } = part;
    const { parent, family } = descent;
    this.room.takePromised(part.ticket.id);
    const room = this.room.reserve(cloneIds.length, snapshot.file.machine);
    if (room.granted < cloneIds.length) {
      room.release(room.granted);
      throw new SnowforkError('SF_NO_ROOM', room.reason ?? 'no room', {
        details: { clones: cloneIds.length },
      });
    }
    const ticket = this.tickets.takePart(
      {
        ...{ id: part.ticket.id, home },
        ...(parent === undefined ? {} : { vm: parent }),
        ...(family === undefined ? {} : { family }),
      },
      cloneIds,
      room,
    );
    ticket.whole = part.ticket;
    const started = this.#startClones(
      snapshot,
      ticket,
      { ...descent, standing },
      performance.now(),
      signal,
    );
    this.#watchPart(ticket);
    return await started;
  }

  #watchPart(ticket: Ticket): void {
    if (ticket.home === undefined) return;
    ticket.onSettled = (cloneId) => void this.remote.tellHome(ticket, cloneId);
  }

  #settledElsewhere(
    ticket: Ticket,
    cloneId: number,
    how: { value: Buffer } | { reason: string },
  ): void {
    const { family = '' } = ticket;
    ticket.settle(
      cloneId,
      'value' in how ? this.limits.result({ family }, ticket, how.value) : how,
    );
    this.#context.changed('ticket', ticket.id);
  }

  async #startOne(
    snapshot: Snapshot,
    ticket: Ticket,
    descent: Descent & { readonly cloneId: number },
    calledAt: number,
    signal: AbortSignal,
    frozen: Promise<unknown>,
  ): Promise<Vm> {
    const id = this.#context.journal.newId('vm');
    const { guestTimeoutMs } = this.#context.settings;
    const { qemu, warm } = await this.#context.takeQemu(snapshot);
    const startedMs = performance.now() - calledAt;
    const vm = new Vm(id, descent, snapshot, qemu, this.#ends);
    try {
      await Promise.all([frozen, connectClone(vm, this.#handlersFor(vm), guestTimeoutMs)]);
    } catch (error) {
      vm.finish({ how: 'lost', reason: 'it could not be prepared' });
      throw error;
    }
    this.#vms.set(vm.id, vm);
    this.#save(vm);
    ticket.attach(descent.cloneId, vm.id);
    this.#context.changed('vm', vm.id);
    if (ticket.killed) vm.finish(KILLED_BY_TICKET);
    vm.assertAlive();
    const { caller, pending } = snapshot.file.guest;
    vm.owner = caller !== undefined && !caller.detached ? caller.stream : undefined;
    const answers = pending.map((request) =>
      encodeResponse(request, { error: forkedAway(request) }),
    );
    if (caller !== undefined) {
      const result = cloneAnswer(caller.method, snapshot, ticket, descent.cloneId);
      answers.push(encodeResponse(caller, { result }));
    }
    const { store } = this.#context;
    await runClone(vm, { store, answers, startedMs, calledAt, warm, signal });
    this.#save(vm);
    this.#context.changed('vm', vm.id);
    return vm;
  }

  #handlersFor(vm: Vm): ChannelHandlers {
    return {
      hello: () => {},
      request: (request, params) => this.#guestAsks(vm, request, params),
      closed: (stream) => this.#programEnded(vm, stream),
      log: (bytes) => vm.logs.push(bytes),
      lost: (reason) => vm.logs.push(Buffer.from(`snowfork: ${reason}\n`)),
      broken: (reason) => vm.finish({ how: 'lost', reason }),
    };
  }

  #mappedOf(snapshot: Snapshot): PageRuns | undefined {
    const path = this.#context.store.ramPath(snapshot);
    for (const vm of this.running()) {
      if (vm.base !== snapshot) continue;
      try {
        return mappedPagesOf({ pid: vm.qemu.pid, path });
      } catch {
        // It ended by itself; another one may be there.
      }
    }
    return undefined;
  }

  #ended(vm: Vm): void {
    const { store, log, changed } = this.#context;
    const { ticket, cloneId } = vm.descent;
    log.info({ vm: vm.id, how: vm.end!.how, why: whyEnded(vm.end!) }, 'VM ended');
    const joined = this.tickets.find(ticket ?? '');
    if (joined !== undefined && cloneId !== undefined && this.#vms.has(vm.id)) {
      const how =
        vm.end!.how === 'exited'
          ? this.limits.result(vm, joined, vm.end!.value)
          : { reason: whyEnded(vm.end!) };
      joined.settle(cloneId, how);
      changed('ticket', joined.id);
    }
    if (this.#vms.has(vm.id)) this.#save(vm);
    this.tickets.abandonUnusedOf(vm.id);
    vm.newest.holders.delete(`newest of ${vm.id}`);
    store.collect(vm.newest);
    store.collect(vm.base);
    changed('vm', vm.id);
    this.#forgetOldest();
  }

  #forgetOldest(): void {
    const ended = this.all().filter((vm) => vm.end !== undefined);
    for (const vm of inExcess(ended, ENDED_REMEMBERED_MAX)) {
      this.#vms.delete(vm.id);
      this.#context.journal.forgetVm(vm.id);
    }
    for (const vm of ended.slice(0, -ENDED_WITH_OUTPUT_MAX)) vm.keepLastWords();
  }

  /** The program that a clone belongs to is gone; if it said goodbye, the VM has ended already. */
  #programEnded(vm: Vm, stream: number): void {
    if (vm.owner !== stream || vm.exiting) return;
    vm.finish({ how: 'lost', reason: 'its program ended without sf.exit' });
  }

  /** A request from inside. Whatever it holds, only this VM and its family are touched. */
  #guestAsks(vm: Vm, request: PendingRequest, params: unknown): void {
    vm.noteProgram();
    this.#answerGuest(vm, request, params).catch((cause: unknown) => {
      if (vm.end !== undefined) return;
      const error = SnowforkError.from(cause);
      if (error.code === 'SF_INTERNAL')
        this.#context.log.error({ vm: vm.id, err: cause }, 'guest request');
      vm.channel?.respond(request, { error });
    });
  }

  async #answerGuest(vm: Vm, request: PendingRequest, params: unknown): Promise<void> {
    const answer = (result: unknown) => vm.channel?.respond(request, { result });
    const signal = new AbortController().signal;
    this.limits.admit(vm, request.method);
    switch (request.method) {
      case 'requestTicket':
        return answer(await this.#ticketFor(vm, parse('requestTicket', params)));
      case 'fork': {
        const { clones, detached = false, ...placing } = parse('fork', params);
        await this.fork(vm, clones, signal, { request, detached }, placing);
        return;
      }
      case 'clone': {
        const { ticket: id, detached = false } = parse('clone', params);
        const ticket = await this.#taking(vm, 'clone', () => this.tickets.get(id, vm.id));
        await this.#forkByTicket(vm, ticket, { request, detached }, signal);
        return;
      }
      case 'checkpoint': {
        const { detached = false } = parse('checkpoint', params);
        await this.checkpoint(vm, { request, detached }, signal);
        return;
      }
      case 'createClones': {
        const parsed = parse('createClones', params);
        const begin = () => this.#createClonesFor(vm, parsed, signal);
        return answer(await this.#taking(vm, 'createClones', begin));
      }
      case 'exit':
        await this.#exit(vm, Buffer.from(parse('exit', params).value));
        return;
      case 'join':
        return answer(await this.#joinFor(vm, parse('join', params), signal));
      case 'result': {
        const { ticket, cloneId } = parse('result', params);
        const value = this.tickets.get(ticket, vm.id).read(cloneId);
        if (value !== undefined) return answer(value);
        throw new SnowforkError(
          'SF_BAD_REQUEST',
          `clone ${cloneId} of ${ticket} handed over no value`,
        );
      }
      case 'kill':
        this.killTicket(this.tickets.get(parse('kill', params).ticket, vm.id));
        return answer(null);
      case 'info': {
        parse('info', params);
        const { id, cloneId, family } = vm;
        const { parent } = vm.descent;
        return answer({ vm: id, id: cloneId, family, ...(parent === undefined ? {} : { parent }) });
      }
    }
  }

  async #ticketFor(vm: Vm, params: GuestParams<'requestTicket'>): Promise<TicketInfo> {
    const { clones, ...placing } = params;
    return (await this.requestTicket(vm, clones, 'requestTicket', placing)).info();
  }

  /** The first value counts: what comes while the VM is being measured is not heard. */
  async #exit(vm: Vm, value: Buffer): Promise<void> {
    if (vm.exiting) return;
    vm.exiting = true;
    vm.lastStats = await readVmStats(vm).catch(() => undefined);
    vm.finish({ how: 'exited', value });
  }

  #createClonesFor(vm: Vm, params: GuestParams<'createClones'>, signal: AbortSignal): TicketInfo {
    const snapshot = this.#context.store.get(params.checkpoint);
    if (!snapshot.file.kept || snapshot.file.family?.id !== vm.family) {
      throw new SnowforkError(
        'SF_SNAPSHOT_NOT_FOUND',
        `${params.checkpoint} is no checkpoint of the family of ${vm.id}`,
      );
    }
    const { standing = FIRST } = snapshot.file.family;
    this.limits.assertDepth(standing);
    const ticket = this.tickets.get(params.ticket, vm.id);
    ticket.use();
    const { image, standing: own = FIRST } = vm.descent;
    const origin = { ...standing, since: own.since };
    const descent = { image, parent: vm.id, family: vm.family, standing: origin };
    void this.#startClones(snapshot, ticket, descent, performance.now(), signal);
    return ticket.info();
  }

  async #joinFor(vm: Vm, params: GuestParams<'join'>, signal: AbortSignal): Promise<unknown> {
    const ticket = this.tickets.get(params.ticket, vm.id);
    if (!ticket.used) {
      throw new SnowforkError('SF_BAD_REQUEST', `ticket ${ticket.id} was not used yet: fork first`);
    }
    await ticket.settled(params.timeoutMs, signal);
    const slots = ticket.slots.map(({ cloneId, status, reason }) => ({
      cloneId,
      status,
      ...(reason === undefined ? {} : { reason }),
    }));
    return { slots };
  }
}

/** @throws SnowforkError SF_BAD_REQUEST that says what is accepted. */
function parse<M extends GuestMethod>(method: M, params: unknown): GuestParams<M> {
  const parsed = guestMethods[method].params.safeParse(params);
  if (parsed.success) return parsed.data as GuestParams<M>;
  // It may repeat what the guest sent, and a guest sends what it likes.
  const words = z.prettifyError(parsed.error).slice(0, REFUSAL_LENGTH_MAX);
  throw new SnowforkError('SF_BAD_REQUEST', `${method}: ${words}`);
}

/** What `fork` or `checkpoint` returns in clone `id`. */
function cloneAnswer(method: GuestMethod, snapshot: Snapshot, ticket: Ticket, id: number): unknown {
  if (method === 'checkpoint') return { checkpoint: snapshot.file.id, id, restored: true };
  return { id, ticket: ticket.info() };
}

function forkedAway(request: PendingRequest): SnowforkError {
  return new SnowforkError(
    'SF_FORKED_AWAY',
    `the ${request.method} was asked by the parent before the fork and goes on there: ask again`,
  );
}

/** Guests write the value; what cannot be decoded is handed on as bytes. */
function decodeOrBytes(value: Buffer): unknown {
  try {
    return decodeValue(value);
  } catch {
    return value;
  }
}
