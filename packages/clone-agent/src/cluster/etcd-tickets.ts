// The tickets that have slots on other hosts than their home: what each has where. A ticket's record is
// what the room of those hosts is promised by, and all that any host but its home knows of it. It hangs
// on the lease of its home, and its home says again and again which there are: what nobody uses, or
// was never handed out, is given back so. Part of the store (`etcd.ts`).
//
//   /snowfork/<cluster>/ticket/<id>    StoredTicket

import { isDeepStrictEqual } from 'node:util';
import type { Namespace } from 'etcd3';
import {
  type HostReservation,
  type HostSlots,
  type ReserveRequest,
  type StoredTicket,
  storedTicketSchema,
} from './cluster-store.js';
import type { EtcdLink } from './etcd-link.js';
import { type EtcdMirror, readPair } from './etcd-mirror.js';
import type { Seen } from './etcd-transaction.js';

const KIND = 'ticket/';

export class EtcdTickets {
  readonly #link: EtcdLink;
  readonly #mirror: EtcdMirror;
  readonly #here: () => string;
  readonly #present: () => ReadonlySet<string>;
  /** Of this host. */
  readonly #lease: () => string;
  /** Asked for, and not handed out yet: nobody can say anything of them. */
  readonly #reserving = new Set<string>();

  constructor(of: {
    link: EtcdLink;
    mirror: EtcdMirror;
    here: () => string;
    present: () => ReadonlySet<string>;
    lease: () => string;
  }) {
    this.#link = of.link;
    this.#mirror = of.mirror;
    this.#here = of.here;
    this.#present = of.present;
    this.#lease = of.lease;
  }

  /** Of hosts that are there. */
  all(): StoredTicket[] {
    const present = this.#present();
    const tickets = this.#mirror.below(KIND).flatMap((pair) => {
      return readPair(storedTicketSchema, pair) ?? [];
    });
    return tickets.filter(({ home }) => present.has(home));
  }

  /** Room of this host that tickets of others have, and that no VM fills yet. */
  reservations(): HostReservation[] {
    const here = this.#here();
    return this.all().flatMap(({ id, home, bytesEach, slots }) => {
      const open = slots[here]?.open ?? 0;
      return home === here || open === 0 ? [] : [{ ticket: id, home, slots: open, bytesEach }];
    });
  }

  async whileReserving<T>(ticket: string, work: () => Promise<T>): Promise<T> {
    this.#reserving.add(ticket);
    try {
      return await work();
    } finally {
      this.#reserving.delete(ticket);
    }
  }

  seen(ticket: string): Seen {
    const key = `${KIND}${ticket}`;
    return { key, pair: this.#mirror.get(key) };
  }

  put(space: Namespace, ticket: StoredTicket): ReturnType<Namespace['put']> {
    const value = JSON.stringify(ticket);
    return space.put(`${KIND}${ticket.id}`).value(value).lease(this.#lease());
  }

  /** By this host, as it is now. */
  isPut(ticket: StoredTicket): boolean {
    const { pair } = this.seen(ticket.id);
    if (pair?.lease !== this.#lease()) return false;
    return isDeepStrictEqual(readPair(storedTicketSchema, pair), ticket);
  }

  /** All that this host has: others of its are gone. */
  async publish(tickets: readonly StoredTicket[]): Promise<void> {
    const here = this.#here();
    const ids = new Set(tickets.map(({ id }) => id));
    const own = this.#mirror.below(KIND).filter((pair) => {
      return readPair(storedTicketSchema, pair)?.home === here;
    });
    const gone = own.map(({ key }) => key).filter((key) => !this.#isKept(key, ids));
    const changed = tickets.filter((ticket) => !this.isPut(ticket));
    for (const key of gone) await this.#link.call((space) => space.delete().key(key).exec());
    for (const ticket of changed) {
      await this.#link.call((space) => this.put(space, ticket).exec());
    }
  }

  #isKept(key: string, ids: ReadonlySet<string>): boolean {
    const id = key.slice(KIND.length);
    return ids.has(id) || this.#reserving.has(id);
  }
}

export function newTicket(
  { ticket: id, vm, family, bytesEach }: ReserveRequest,
  granted: readonly HostSlots[],
  home: string,
): StoredTicket {
  return {
    ...{ id, home, bytesEach },
    ...(vm === undefined ? {} : { vm }),
    ...(family === undefined ? {} : { family }),
    slots: Object.fromEntries(
      granted.map(({ host, slots }) => [host, { open: slots, running: 0 }]),
    ),
  };
}
