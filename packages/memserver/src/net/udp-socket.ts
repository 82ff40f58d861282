// A UDP socket as the memory server's two sides use it: addresses are numbers, never looked up; a
// group can be joined on one interface; what can't be sent is lost, as on the way. Knows nothing of
// what is in a datagram.

import dgram from 'node:dgram';
import { isIPv4 } from 'node:net';
import type { Address } from '../server/known-receivers.js';

/** What waits to be read: 30 ms of 1 Gbit/s. The kernel gives less when it is set to. */
const RECEIVE_BYTES = 4 * 1024 * 1024;
const SEND_BYTES = 4 * 1024 * 1024;
/** How many routers a datagram to a group may pass. */
const MULTICAST_HOPS = 16;

export interface UdpOptions {
  /** 0.0.0.0: whatever comes to the port. */
  readonly address: string;
  /** 0: one that is free. */
  readonly port: number;
  /** Others may have the port as well: for groups. */
  readonly isShared?: boolean;
  /** By which groups are sent to. */
  readonly multicastInterface?: string;
  readonly take: (datagram: Buffer, from: Address) => void;
  readonly complain: (message: string) => void;
}

export class UdpSocket {
  readonly #socket: dgram.Socket;
  #isClosed = false;
  /** Datagrams that the system would not send: to it, they are lost. */
  unsent = 0;

  /** @throws Error when the address can't be had. */
  static async open(options: UdpOptions): Promise<UdpSocket> {
    if (!isIPv4(options.address)) throw new RangeError(`${options.address} is no IPv4 address`);
    const socket = dgram.createSocket({
      type: 'udp4',
      reuseAddr: options.isShared ?? false,
      recvBufferSize: RECEIVE_BYTES,
      sendBufferSize: SEND_BYTES,
      lookup: noLookup as never,
    });
    await new Promise<void>((resolve, reject) => {
      socket.once('error', reject);
      socket.bind({ address: options.address, port: options.port, exclusive: true }, resolve);
    });
    socket.removeAllListeners('error');
    socket.on('error', (error) => options.complain(error.message));
    socket.on('message', (datagram, from) => {
      options.take(datagram, { host: from.address, port: from.port });
    });
    if (options.multicastInterface !== undefined) {
      socket.setMulticastInterface(options.multicastInterface);
      socket.setMulticastTTL(MULTICAST_HOPS);
    }
    return new UdpSocket(socket);
  }

  private constructor(socket: dgram.Socket) {
    this.#socket = socket;
  }

  get port(): number {
    return this.#socket.address().port;
  }

  /** Never throws: what can't be sent is lost. */
  send(datagram: Buffer, to: Address): void {
    if (this.#isClosed) return;
    this.#socket.send(datagram, to.port, to.host, (error) => {
      if (error !== null) this.unsent++;
    });
  }

  /** @throws Error when the system refuses it. */
  join(group: string, ownAddress: string): void {
    this.#socket.addMembership(group, ownAddress);
  }

  leave(group: string, ownAddress: string): void {
    if (!this.#isClosed) this.#socket.dropMembership(group, ownAddress);
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await new Promise<void>((resolve) => this.#socket.close(() => resolve()));
  }
}

/** Addresses are numbers; and Node's own look-up would put the datagram off to the next turn. */
function noLookup(
  host: string,
  _options: unknown,
  found: (error: null, address: string, family: number) => void,
): void {
  found(null, host, 4);
}
