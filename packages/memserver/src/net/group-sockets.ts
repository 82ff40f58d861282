// The groups that a process is a member of: sockets of a port, each joined to as many groups as the
// system grants it (Linux: `net.ipv4.igmp_max_memberships`, 20 unless somebody has changed it), for
// as long as anybody here wants them. Passes on what comes; knows nothing of what is in it.

import type { Address } from '../server/known-receivers.js';
import { UdpSocket } from './udp-socket.js';

/** Where a group's datagrams go. */
export interface Group {
  readonly address: string;
  readonly port: number;
}

/** A socket and how many groups it has joined. */
interface Joined {
  readonly socket: UdpSocket;
  readonly port: number;
  groups: number;
}

export class GroupSockets {
  readonly #localAddress: string;
  readonly #take: (datagram: Buffer, from: Address) => void;
  readonly #taken: () => void;
  readonly #complain: (message: string) => void;
  readonly #sockets = new Set<Joined>();
  /** By name: where it is joined, and how many want it. */
  readonly #groups = new Map<string, { readonly by: Joined; wanted: number }>();
  /** Groups are joined and left one after another: each may need a socket to be opened. */
  #last: Promise<void> = Promise.resolve();

  constructor(of: {
    readonly localAddress: string;
    readonly take: (datagram: Buffer, from: Address) => void;
    readonly taken: () => void;
    readonly complain: (message: string) => void;
  }) {
    this.#localAddress = of.localAddress;
    this.#take = of.take;
    this.#taken = of.taken;
    this.#complain = of.complain;
  }

  /** @throws Error when the system refuses it: then nothing comes. */
  join(group: Group): Promise<void> {
    return this.#inTurn(async () => {
      const known = this.#groups.get(nameOf(group));
      if (known !== undefined) known.wanted++;
      else this.#groups.set(nameOf(group), { by: await this.#joinAnew(group), wanted: 1 });
    });
  }

  leave(group: Group): Promise<void> {
    return this.#inTurn(async () => {
      const known = this.#groups.get(nameOf(group));
      if (known === undefined || --known.wanted > 0) return;
      this.#groups.delete(nameOf(group));
      const { by } = known;
      by.socket.leave(group.address, this.#localAddress);
      by.groups--;
      await this.#closeUnused(by);
    });
  }

  /** Something has come that was not taken yet. */
  get haveMore(): boolean {
    for (const { socket } of this.#sockets) if (socket.hasMore) return true;
    return false;
  }

  /** As `UdpSocket.takeNow`, of the first in which something is. */
  takeNow(): boolean {
    for (const { socket } of this.#sockets) if (socket.takeNow()) return true;
    return false;
  }

  close(): Promise<void> {
    return this.#inTurn(async () => {
      for (const { socket } of this.#sockets) await socket.close();
    });
  }

  #inTurn(run: () => Promise<void>): Promise<void> {
    const done = this.#last.then(run);
    this.#last = done.catch(() => {}); // said to the one that asked for it
    return done;
  }

  /** By the first socket of its port that takes one more. */
  async #joinAnew({ address, port }: Group): Promise<Joined> {
    const join = (by: Joined): boolean => {
      if (!by.socket.join(address, this.#localAddress)) return false;
      by.groups++;
      return true;
    };
    for (const by of this.#sockets) if (by.port === port && join(by)) return by;
    const fresh = { socket: await this.#open(port), port, groups: 0 };
    this.#sockets.add(fresh);
    try {
      if (!join(fresh)) throw new Error('the system lets no socket join another group');
      return fresh;
    } finally {
      await this.#closeUnused(fresh);
    }
  }

  async #closeUnused(by: Joined): Promise<void> {
    if (by.groups > 0) return;
    this.#sockets.delete(by);
    await by.socket.close();
  }

  async #open(port: number): Promise<UdpSocket> {
    return await UdpSocket.open({
      address: '0.0.0.0',
      port,
      isShared: true,
      take: this.#take,
      taken: this.#taken,
      complain: this.#complain,
    });
  }
}

function nameOf({ address, port }: Group): string {
  return `${address}:${port}`;
}
