// The groups that a process is a member of: a socket for each port, joined to a group for as long
// as anybody here wants it. Passes on what comes; knows nothing of what is in it.

import { UdpSocket } from './udp-socket.js';

/** Where a group's datagrams go. */
export interface Group {
  readonly address: string;
  readonly port: number;
}

export class GroupSockets {
  readonly #localAddress: string;
  readonly #take: (datagram: Buffer) => void;
  readonly #taken: () => void;
  readonly #complain: (message: string) => void;
  readonly #sockets = new Map<number, Promise<UdpSocket>>();
  readonly #opened: UdpSocket[] = [];
  /** How many want a group. */
  readonly #wanted = new Map<string, number>();

  constructor(of: {
    readonly localAddress: string;
    readonly take: (datagram: Buffer) => void;
    readonly taken: () => void;
    readonly complain: (message: string) => void;
  }) {
    this.#localAddress = of.localAddress;
    this.#take = of.take;
    this.#taken = of.taken;
    this.#complain = of.complain;
  }

  /** @throws Error when the system refuses it: then nothing comes. */
  async join(group: Group): Promise<void> {
    if (this.#count(group, 1) > 1) return;
    try {
      const socket = await this.#socketOf(group.port);
      socket.join(group.address, this.#localAddress);
    } catch (error) {
      this.#count(group, -1);
      throw error;
    }
  }

  async leave(group: Group): Promise<void> {
    if (this.#count(group, -1) > 0) return;
    const socket = await this.#socketOf(group.port);
    socket.leave(group.address, this.#localAddress);
  }

  /** Something has come that was not taken yet. */
  get haveMore(): boolean {
    return this.#opened.some((socket) => socket.hasMore);
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets.values()) await (await socket).close();
  }

  #count(group: Group, change: number): number {
    const name = `${group.address}:${group.port}`;
    const wanted = (this.#wanted.get(name) ?? 0) + change;
    if (wanted === 0) this.#wanted.delete(name);
    else this.#wanted.set(name, wanted);
    return wanted;
  }

  async #socketOf(port: number): Promise<UdpSocket> {
    const opening =
      this.#sockets.get(port) ??
      UdpSocket.open({
        address: '0.0.0.0',
        port,
        isShared: true,
        take: this.#take,
        taken: this.#taken,
        complain: this.#complain,
      });
    this.#sockets.set(port, opening);
    opening.catch(() => this.#sockets.delete(port));
    const socket = await opening;
    if (!this.#opened.includes(socket)) this.#opened.push(socket);
    return socket;
  }
}
