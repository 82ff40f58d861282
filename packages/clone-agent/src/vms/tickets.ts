// Tickets: room for m clones, and what became of each. A ticket serves one fork; its slots settle one
// by one, and whoever joins it waits for that. A ticket lives where its VM does, its home; a host that
// runs some of its clones has a part of it, which hands on how they settle. Knows nothing of how
// clones are made.

import { type Slot, SnowforkError, type TicketInfo } from '@snowfork/sdk/api';
import type { StoredTicket } from '../cluster/cluster-store.js';
import { withResolvers } from '../guest/exec.js';
import type { Journal, TicketRecord } from '../store/journal.js';
import { untilAborted } from '../system/until-aborted.js';
import type { Placed } from './placing.js';
import { NO_RESERVATION, type Reservation } from './room.js';
import { type Vm, whyEnded } from './vm.js';

/** A ticket that nobody used by then gives its room back. */
export const TICKET_LIFETIME_MS = 10 * 60_000;
/** Values of one ticket's slots together; a value beyond that is refused and its slot lost. */
export const TICKET_VALUES_BYTES_MAX = 64 * 1024 * 1024;
/** Node's timers hold no longer time. */
const TIMER_MS_MAX = 2 ** 31 - 1;
/** Finished tickets that are remembered, so that they can be joined late. */
export const TICKETS_REMEMBERED_MAX = 4096;

export const NEVER_STARTED = 'it did not come up: the agent died before';

interface SlotState {
  readonly cloneId: number;
  vm?: string;
  /** Another host, which runs this clone. */
  host?: string;
  /** Of a part: home has heard how it settled. */
  isTold?: boolean;
  status: Slot['status'];
  /** MessagePack. */
  value?: Buffer;
  reason?: string;
}

/** How clones end that are ended by their ticket. */
export const KILLED_BY_TICKET = { how: 'killed', reason: 'its ticket was killed' } as const;

export class Ticket {
  readonly id: string;
  /** The VM that asked; undefined for clones of a stored snapshot made from the host. */
  readonly vm: string | undefined;
  /** Whose clones it has room for; undefined for a launched VM's. */
  readonly family: string | undefined;
  readonly asked: number;
  readonly reservation: Reservation;
  /** The room of one slot; unknown of a part. */
  readonly bytesEach: number | undefined;
  readonly slots: SlotState[];
  /** The host whose ticket this is a part of. */
  readonly home: string | undefined;
  /** What home says of the whole ticket. */
  whole: TicketInfo | undefined;
  used = false;
  /** Its clones are to be ended, also those that are still on their way. */
  killed = false;
  /** How many clones its family had made on tickets of its home, with its own; once it is used. */
  ordinal: number | undefined;
  /** A slot has settled; not called for what an agent before this one knew already. */
  onSettled: ((cloneId: number) => void) | undefined;
  readonly #waiters = new Set<() => void>();
  readonly #journal: Journal;
  readonly #createdAt: number;
  #valueBytes = 0;
  readonly #read = new Set<number>();
  #expiry: NodeJS.Timeout;

  constructor(
    journal: Journal,
    of: Pick<TicketRecord, 'id' | 'vm' | 'family' | 'asked' | 'createdAt' | 'home' | 'bytesEach'>,
    reservation: Reservation,
    cloneIds: readonly number[] = Array.from(
      { length: reservation.granted },
      (_, index) => index + 1,
    ),
  ) {
    this.#journal = journal;
    this.id = of.id;
    this.vm = of.vm;
    this.family = of.family;
    this.asked = of.asked;
    this.bytesEach = of.bytesEach;
    this.#createdAt = of.createdAt;
    this.reservation = reservation;
    this.home = of.home;
    this.slots = cloneIds.map((cloneId) => ({ cloneId, status: 'running' }));
    this.#expiry = this.#expire();
  }

  /** As it was when the agent before this one wrote it down. */
  static restore(journal: Journal, record: TicketRecord, reservation: Reservation): Ticket {
    const cloneIds = record.slots.map(({ cloneId }) => cloneId);
    const ticket = new Ticket(journal, record, reservation, cloneIds);
    ticket.killed = record.killed;
    ticket.used = record.used;
    ticket.ordinal = record.ordinal;
    if (record.used) clearTimeout(ticket.#expiry);
    for (const { cloneId, status, reason, host, vm, isTold } of record.slots) {
      if (isTold !== undefined) ticket.slot(cloneId)!.isTold = isTold;
      if (host !== undefined) ticket.assign(cloneId, host, vm);
      const value = status === 'exited' ? journal.readValue(record.id, cloneId) : undefined;
      if (value !== undefined) ticket.#fill(cloneId, { value });
      else if (status !== 'running') {
        ticket.#fill(cloneId, { reason: reason ?? 'its value was lost with the agent' });
      }
    }
    return ticket;
  }

  info(): TicketInfo {
    if (this.whole !== undefined) return this.whole;
    const { reason } = this.reservation;
    return {
      id: this.id,
      ...(this.vm === undefined ? {} : { vm: this.vm }),
      asked: this.asked,
      clones: this.slots.length,
      ...(reason === undefined ? {} : { reason }),
      used: this.used,
    };
  }

  /** Marks it used, for the one fork that it serves. @throws SnowforkError SF_TICKET_USED. */
  use(): void {
    if (this.used) throw new SnowforkError('SF_TICKET_USED', `ticket ${this.id} was used already`);
    this.used = true;
    clearTimeout(this.#expiry);
    this.save();
  }

  /** A fork that could not even freeze its parent: the ticket may be used again. */
  unuse(): void {
    this.used = false;
    this.ordinal = undefined;
    // A timer that was cleared can't be refreshed.
    this.#expiry = this.#expire();
    this.save();
  }

  /** So that the next agent knows of it. */
  save(): void {
    const { id, vm, family, asked, used, killed, home, bytesEach, ordinal } = this;
    const { reason } = this.reservation;
    this.#journal.putTicket({
      id,
      ...(home === undefined ? {} : { home }),
      ...(vm === undefined ? {} : { vm }),
      ...(family === undefined ? {} : { family }),
      ...(bytesEach === undefined ? {} : { bytesEach }),
      ...(ordinal === undefined ? {} : { ordinal }),
      asked,
      createdAt: this.#createdAt,
      ...(reason === undefined ? {} : { reason }),
      used,
      killed,
      slots: this.slots.map(({ value: _, ...slot }) => slot),
    });
  }

  get done(): boolean {
    return this.slots.every((slot) => slot.status !== 'running');
  }

  /** It may be forgotten: nothing will settle any more, and home has heard of all that has. */
  get isOver(): boolean {
    const isHeard = ({ isTold }: SlotState) => this.home === undefined || isTold === true;
    return this.done && this.slots.every(isHeard);
  }

  /** Slots that have not settled. */
  get runningSlots(): number {
    return this.slots.filter(({ status }) => status === 'running').length;
  }

  /** As the other hosts of the cluster `here` is in see it; undefined when it has nothing of theirs. */
  stored(here: string): StoredTicket | undefined {
    const running = this.slots.filter(({ status }) => status === 'running');
    const { id, vm, family, bytesEach, home } = this;
    const isShared = home === undefined && running.some(({ host }) => host !== undefined);
    if (!isShared || bytesEach === undefined) return undefined;
    const slots: Record<string, { open: number; running: number }> = {};
    for (const { host = here, vm } of running) {
      const { open, running } = slots[host] ?? { open: 0, running: 0 };
      slots[host] = vm === undefined ? { open: open + 1, running } : { open, running: running + 1 };
    }
    return {
      ...{ id, home: here, bytesEach, slots },
      ...(vm === undefined ? {} : { vm }),
      ...(family === undefined ? {} : { family }),
    };
  }

  slot(cloneId: number): SlotState | undefined {
    return this.slots.find((slot) => slot.cloneId === cloneId);
  }

  /** The slots that VMs of this host are to fill. */
  get ownSlots(): readonly SlotState[] {
    return this.slots.filter(({ host }) => host === undefined);
  }

  /** The slots of other hosts, by host. */
  get slotsElsewhere(): ReadonlyMap<string, readonly SlotState[]> {
    const byHost = new Map<string, SlotState[]>();
    for (const slot of this.slots) {
      if (slot.host === undefined) continue;
      byHost.set(slot.host, [...(byHost.get(slot.host) ?? []), slot]);
    }
    return byHost;
  }

  /** A VM of another host is to fill the slot, or does. */
  assign(cloneId: number, host: string, vm?: string): void {
    const slot = this.slot(cloneId);
    if (slot === undefined) return;
    slot.host = host;
    if (vm !== undefined) slot.vm = vm;
  }

  /** Of the values that it holds. */
  get valueBytes(): number {
    return this.#valueBytes;
  }

  /** Whether somebody has asked for each of its values. */
  get isJoined(): boolean {
    return this.slots.every(({ cloneId, value }) => value === undefined || this.#read.has(cloneId));
  }

  /** The value of a slot, if it handed over one. */
  read(cloneId: number): Buffer | undefined {
    const value = this.slot(cloneId)?.value;
    if (value !== undefined) this.#read.add(cloneId);
    return value;
  }

  attach(cloneId: number, vm: string): void {
    const slot = this.slot(cloneId);
    if (slot !== undefined) slot.vm = vm;
  }

  /** Settles a slot, once; later words about it are not heard. */
  settle(cloneId: number, how: { value: Buffer } | { reason: string }): void {
    if (this.slot(cloneId)?.status !== 'running') return;
    if ('value' in how) this.#journal.putValue(this.id, cloneId, how.value);
    this.#fill(cloneId, how);
    this.save();
    this.onSettled?.(cloneId);
  }

  #fill(cloneId: number, how: { value: Buffer } | { reason: string }): void {
    const slot = this.slot(cloneId);
    if (slot === undefined) return;
    if ('value' in how && this.#valueBytes + how.value.length <= TICKET_VALUES_BYTES_MAX) {
      this.#valueBytes += how.value.length;
      slot.status = 'exited';
      slot.value = how.value;
    } else {
      slot.status = 'lost';
      slot.reason =
        'reason' in how
          ? how.reason
          : `the values of ticket ${this.id} together are over ${TICKET_VALUES_BYTES_MAX} bytes`;
    }
    if (this.done) for (const wake of this.#waiters) wake();
  }

  /** Ends an unused ticket. */
  giveUp(reason: string): void {
    clearTimeout(this.#expiry);
    if (this.used) return;
    this.used = true;
    this.reservation.release(this.ownSlots.length);
    for (const slot of this.slots) this.settle(slot.cloneId, { reason });
  }

  /** Resolves when all slots have settled, the time is over or the caller gave up. */
  async settled(timeoutMs: number | undefined, signal: AbortSignal): Promise<void> {
    if (this.done) return;
    const over = withResolvers<void>();
    const delayMs = Math.min(timeoutMs ?? Number.POSITIVE_INFINITY, TIMER_MS_MAX);
    const timer = timeoutMs === undefined ? undefined : setTimeout(over.resolve, delayMs);
    // Taken off again: a guest may ask a million times, and its clone may run for days.
    this.#waiters.add(over.resolve);
    try {
      await untilAborted(over.promise, signal);
    } finally {
      clearTimeout(timer);
      this.#waiters.delete(over.resolve);
    }
  }

  #expire(): NodeJS.Timeout {
    const ageMs = Math.max(0, Date.now() - this.#createdAt);
    const leftMs = Math.max(0, TICKET_LIFETIME_MS - ageMs);
    return setTimeout(() => this.giveUp('the ticket ran out'), leftMs).unref();
  }
}

export class Tickets {
  readonly #journal: Journal;
  readonly #tickets = new Map<string, Ticket>();

  constructor(journal: Journal) {
    this.#journal = journal;
  }

  /** `of`: the VM that asks, and the family that the clones will belong to. */
  create(
    id: string,
    of: { readonly vm?: string; readonly family?: string; readonly asked: number },
    placed: Placed,
  ): Ticket {
    const others = placed.elsewhere.flatMap(({ host, slots }) => Array<string>(slots).fill(host));
    const total = placed.granted + others.length;
    const cloneIds = Array.from({ length: total }, (_, index) => index + 1);
    const { bytesEach } = placed;
    const record = { id, ...of, bytesEach, createdAt: Date.now() };
    const ticket = new Ticket(this.#journal, record, placed, cloneIds);
    for (const [index, host] of others.entries()) ticket.assign(placed.granted + index + 1, host);
    ticket.save();
    this.#tickets.set(id, ticket);
    for (const old of this.#tickets.values()) {
      if (this.#tickets.size <= TICKETS_REMEMBERED_MAX) break;
      if (old.isOver) this.forget(old);
    }
    return ticket;
  }

  /** A part of another host's ticket: the clones of it that this host runs. */
  takePart(
    of: {
      readonly id: string;
      readonly home: string;
      readonly vm?: string;
      readonly family?: string;
    },
    cloneIds: readonly number[],
    reservation: Reservation,
  ): Ticket {
    const record = { ...of, asked: cloneIds.length, createdAt: Date.now() };
    const ticket = new Ticket(this.#journal, record, reservation, cloneIds);
    ticket.use();
    this.#tickets.set(ticket.id, ticket);
    return ticket;
  }

  /** Nobody can join it any more. */
  forget({ id, slots }: Ticket): void {
    this.#tickets.delete(id);
    this.#journal.forgetTicket(
      id,
      slots.map(({ cloneId }) => cloneId),
    );
  }

  all(): Iterable<Ticket> {
    return this.#tickets.values();
  }

  /** `reservation`: of an unused ticket, whose room is still promised. */
  restore(record: TicketRecord, reservation?: Reservation): Ticket {
    const granted = record.slots.length;
    const { reason } = record;
    const none = { granted, ...(reason === undefined ? {} : { reason }), ...NO_RESERVATION };
    const ticket = Ticket.restore(this.#journal, record, reservation ?? none);
    this.#tickets.set(ticket.id, ticket);
    return ticket;
  }

  /** `owner`: only a ticket of that VM. @throws SnowforkError SF_TICKET_NOT_FOUND. */
  get(id: string, owner?: string): Ticket {
    const ticket = this.#tickets.get(id);
    if (ticket !== undefined && (owner === undefined || ticket.vm === owner)) return ticket;
    const whose = owner === undefined ? 'on this host' : `of ${owner}`;
    throw new SnowforkError('SF_TICKET_NOT_FOUND', `there is no ticket ${id} ${whose}`);
  }

  find(id: string): Ticket | undefined {
    return this.#tickets.get(id);
  }

  /** After an agent's death: slots that no running VM fills, or will fill, are lost. */
  settleAfter(vms: Iterable<Vm>): void {
    const byTicket = new Map(
      [...vms].map((vm) => [`${vm.descent.ticket} ${vm.descent.cloneId}`, vm]),
    );
    for (const ticket of this.#tickets.values()) {
      for (const { cloneId, status } of ticket.ownSlots) {
        if (status !== 'running') continue;
        const vm = byTicket.get(`${ticket.id} ${cloneId}`);
        if (vm !== undefined) ticket.attach(cloneId, vm.id);
        if (vm?.end === undefined && (vm !== undefined || !ticket.used)) continue;
        const reason = vm === undefined ? NEVER_STARTED : whyEnded(vm.end!);
        ticket.settle(cloneId, { reason });
      }
    }
  }

  /** The VM has gone: nobody can use what it had not used yet. */
  abandonUnusedOf(vm: string): void {
    for (const ticket of this.#tickets.values()) {
      if (ticket.vm === vm) ticket.giveUp(`${vm} has ended`);
    }
  }
}
