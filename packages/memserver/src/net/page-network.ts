// The side of a process that receives pages: its sockets, and a receiver for each origin that it is
// connected to. One unicast socket, by which it asks and is answered, and one for each port of
// groups; datagrams find their receiver by the key that they name. The pager has one, in its main
// thread.

import type { Address } from '../server/known-receivers.js';
import { keyIdOf, snapshotKey } from '../wire/sealing.js';
import { AskedHost } from './asked-host.js';
import { type Group, GroupSockets } from './group-sockets.js';
import { linger } from './linger.js';
import { OriginClient, type OriginSink } from './origin-client.js';
import { UdpSocket } from './udp-socket.js';

/** Where a snapshot's pages are served. */
export interface Origin {
  /** IPv4. */
  readonly address: string;
  readonly port: number;
  /** 32 bytes, of this snapshot and no other. */
  readonly key: Buffer;
  readonly group?: Group;
  /** A host that fetches the snapshot too, and serves it: asked where multicast does not reach. */
  readonly neighbour?: { readonly address: string; readonly port: number } | undefined;
}

/** Of all origins together. */
export interface NetworkCounts {
  /** No snapshot that is known here, or too short to say. */
  datagramsUnknown: number;
  datagramsUnsent: number;
}

const NOBODY: readonly OriginClient[] = [];

export class PageNetwork {
  readonly #localAddress: string;
  /** By the key that datagrams name; one that is being closed may have a successor already. */
  readonly #clients = new Map<number, readonly OriginClient[]>();
  readonly #complain: (message: string) => void;
  readonly #groups: GroupSockets;
  /** Something came for them that is not acted on yet. */
  readonly #touched = new Set<OriginClient>();
  #unicast!: UdpSocket;
  #datagramsUnknown = 0;

  /** `localAddress`: of the interface that pages come by. @throws Error when it can't be had. */
  static async open(of: {
    readonly localAddress: string;
    complain(message: string): void;
  }): Promise<PageNetwork> {
    const network = new PageNetwork(of.localAddress, of.complain);
    network.#unicast = await UdpSocket.open({
      address: of.localAddress,
      port: 0,
      take: network.#take,
      taken: network.#taken,
      complain: of.complain,
    });
    return network;
  }

  private constructor(localAddress: string, complain: (message: string) => void) {
    this.#localAddress = localAddress;
    this.#complain = complain;
    this.#groups = new GroupSockets({
      localAddress,
      take: this.#take,
      taken: this.#taken,
      complain,
    });
  }

  get counts(): NetworkCounts {
    const { unsent } = this.#unicast;
    return { datagramsUnknown: this.#datagramsUnknown, datagramsUnsent: unsent };
  }

  /**
   * Joins the origin's group at once. `lostAfterMs`: a page that has not come for so long is lost.
   */
  async connect(
    origin: Origin,
    of: { readonly sink: OriginSink; readonly lostAfterMs: number },
  ): Promise<OriginClient> {
    const key = snapshotKey(origin.key);
    const { group, neighbour } = origin;
    const socket = this.#unicast;
    const asked = new AskedHost({
      origin: { host: origin.address, port: origin.port },
      neighbour: neighbour && { host: neighbour.address, port: neighbour.port },
      lostAfterMs: of.lostAfterMs,
    });
    const membership = new Membership(this.#groups, group, this.#complain);
    const client = new OriginClient({
      ...of,
      key,
      hasGroup: group !== undefined,
      asked,
      send: (datagram, to) => socket.send(datagram, to),
      descriptor: socket.descriptor,
      linger: this.#linger,
      isBehind: () => socket.hasMore || this.#groups.haveMore,
      setMembership: (isMember) => void membership.set(isMember),
      closed: async () => {
        const others = this.#clientsOf(key.id).filter((other) => other !== client);
        if (others.length > 0) this.#clients.set(key.id, others);
        else this.#clients.delete(key.id);
        await membership.set(false);
      },
    });
    this.#clients.set(key.id, [...this.#clientsOf(key.id), client]);
    await membership.set(true);
    client.advance();
    return client;
  }

  async close(): Promise<void> {
    for (const client of [...this.#clients.values()].flat()) await client.close();
    await this.#groups.close();
    await this.#unicast.close();
  }

  #clientsOf(keyId: number): readonly OriginClient[] {
    return this.#clients.get(keyId) ?? NOBODY;
  }

  readonly #take = (datagram: Buffer, from: Address): void => {
    const keyId = keyIdOf(datagram);
    const clients = keyId === undefined ? NOBODY : this.#clientsOf(keyId);
    if (clients.length === 0) this.#datagramsUnknown++;
    for (const client of clients) {
      client.take(datagram, from);
      this.#touched.add(client);
    }
  };

  readonly #linger = (): void => {
    linger(() => this.#groups.takeNow() || this.#unicast.takeNow());
  };

  readonly #taken = (): void => {
    for (const client of this.#touched) client.advance();
    this.#touched.clear();
  };
}

/** A client's part in a group; where that can't be had, its pages come by unicast. */
class Membership {
  readonly #groups: GroupSockets;
  readonly #group: Group | undefined;
  readonly #complain: (message: string) => void;
  #isMember = false;

  constructor(groups: GroupSockets, group: Group | undefined, complain: (message: string) => void) {
    this.#groups = groups;
    this.#group = group;
    this.#complain = complain;
  }

  /** Never rejects. */
  async set(isMember: boolean): Promise<void> {
    const group = this.#group;
    if (group === undefined || isMember === this.#isMember) return;
    this.#isMember = isMember;
    try {
      await (isMember ? this.#groups.join(group) : this.#groups.leave(group));
    } catch (error) {
      this.#isMember = false;
      this.#complain(`group ${group.address}: ${(error as Error).message}`);
    }
  }
}
