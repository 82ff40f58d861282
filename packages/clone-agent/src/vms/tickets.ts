// Tickets: room for m clones, and what became of each. A ticket serves one fork; its slots settle one
// by one, and whoever joins it waits for that. Knows nothing of how clones are made.

import { type Slot, SnowforkError, type TicketInfo } from '@snowfork/sdk/api';
import { withResolvers } from '../guest/exec.js';
import type { Reservation } from './room.js';

/** A ticket that nobody used by then gives its room back. */
export const TICKET_LIFETIME_MS = 10 * 60_000;
/** Values of one ticket's slots together; a value beyond that is refused and its slot lost. */
export const TICKET_VALUES_BYTES_MAX = 64 * 1024 * 1024;
/** Finished tickets that are remembered, so that they can be joined late. */
export const TICKETS_REMEMBERED_MAX = 4096;

interface SlotState {
  readonly cloneId: number;
  vm?: string;
  status: Slot['status'];
  /** MessagePack. */
  value?: Buffer;
  reason?: string;
}

export class Ticket {
  readonly id: string;
  /** The VM that asked; undefined for clones of a stored snapshot made from the host. */
  readonly vm: string | undefined;
  readonly asked: number;
  readonly reservation: Reservation;
  readonly slots: SlotState[];
  used = false;
  /** Its clones are to be ended, also those that are still on their way. */
  killed = false;
  readonly #settled = withResolvers<void>();
  #valueBytes = 0;
  #expiry: NodeJS.Timeout;

  constructor(id: string, vm: string | undefined, asked: number, reservation: Reservation) {
    this.id = id;
    this.vm = vm;
    this.asked = asked;
    this.reservation = reservation;
    this.slots = Array.from({ length: reservation.granted }, (_, index) => ({
      cloneId: index + 1,
      status: 'running',
    }));
    this.#expiry = this.#expire();
  }

  info(): TicketInfo {
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
  }

  /** A fork that could not even freeze its parent: the ticket may be used again. */
  unuse(): void {
    this.used = false;
    // A timer that was cleared can't be refreshed.
    this.#expiry = this.#expire();
  }

  get done(): boolean {
    return this.slots.every((slot) => slot.status !== 'running');
  }

  attach(cloneId: number, vm: string): void {
    const slot = this.slots[cloneId - 1];
    if (slot !== undefined) slot.vm = vm;
  }

  /** Settles a slot, once; later words about it are not heard. */
  settle(cloneId: number, how: { value: Buffer } | { reason: string }): void {
    const slot = this.slots[cloneId - 1];
    if (slot === undefined || slot.status !== 'running') return;
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
    if (this.done) this.#settled.resolve();
  }

  /** Ends an unused ticket. */
  giveUp(reason: string): void {
    clearTimeout(this.#expiry);
    if (this.used) return;
    this.used = true;
    this.reservation.release(this.slots.length);
    for (const slot of this.slots) this.settle(slot.cloneId, { reason });
  }

  /** Resolves when all slots have settled, the time is over or the caller gave up. */
  async settled(timeoutMs: number | undefined, signal: AbortSignal): Promise<void> {
    if (this.done) return;
    const over = withResolvers<void>();
    const timer = timeoutMs === undefined ? undefined : setTimeout(over.resolve, timeoutMs);
    const onAbort = () => over.reject(new SnowforkError('SF_ABORTED', 'the caller gave up'));
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      if (signal.aborted) onAbort();
      await Promise.race([this.#settled.promise, over.promise]);
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
    }
  }

  #expire(): NodeJS.Timeout {
    return setTimeout(() => this.giveUp('the ticket ran out'), TICKET_LIFETIME_MS).unref();
  }
}

export class Tickets {
  readonly #tickets = new Map<string, Ticket>();
  #next = 1;

  create(vm: string | undefined, asked: number, reservation: Reservation): Ticket {
    const ticket = new Ticket(`t${this.#next++}`, vm, asked, reservation);
    this.#tickets.set(ticket.id, ticket);
    for (const [id, old] of this.#tickets) {
      if (this.#tickets.size <= TICKETS_REMEMBERED_MAX) break;
      if (old.done) this.#tickets.delete(id);
    }
    return ticket;
  }

  /** `owner`: only a ticket of that VM. @throws SnowforkError SF_TICKET_NOT_FOUND. */
  get(id: string, owner?: string): Ticket {
    const ticket = this.#tickets.get(id);
    if (ticket !== undefined && (owner === undefined || ticket.vm === owner)) return ticket;
    const whose = owner === undefined ? 'on this host' : `of ${owner}`;
    throw new SnowforkError('SF_TICKET_NOT_FOUND', `there is no ticket ${id} ${whose}`);
  }

  /** The VM has gone: nobody can use what it had not used yet. */
  abandonUnusedOf(vm: string): void {
    for (const ticket of this.#tickets.values()) {
      if (ticket.vm === vm) ticket.giveUp(`${vm} has ended`);
    }
  }
}
