// A UDP socket as the memory server's two sides use it: addresses are numbers, never looked up;
// datagrams of one size that leave together leave by one system call (UDP_SEGMENT), and come in one
// piece where the kernel can do that (UDP_GRO); what can't be sent is lost, as on the way. Knows
// nothing of what is in a datagram but its length.
//
// The socket is made and written to by system calls. Node's own sends look addresses up, make an
// object for each datagram and know no options; its receiving is used, as nothing else wakes its
// loop.

import dgram from 'node:dgram';
import { isIPv4 } from 'node:net';
import type { Address } from '../server/known-receivers.js';
import { DATAGRAM_BYTES_MAX, datagramsOf } from '../wire/sealing.js';
import { LINGER_MS, linger } from './linger.js';
import {
  Inbox,
  letBeCut,
  Message,
  openUdp,
  Readiness,
  type SocketOptions,
  setMembership,
} from './system-socket.js';

/** The kernel takes no more in a piece. */
const SEGMENTS_MAX = 64;
/** Pieces that are taken before they are acted on: those who sent them wait for that. */
const TAKEN_TOGETHER_MAX = 64;
/** Then Node's loop has a turn: others are heard too. */
const LINGER_TIMES_MAX = 16;

export interface UdpOptions extends SocketOptions {
  /** The datagram's bytes are used again for the next. */
  readonly take: (datagram: Buffer, from: Address) => void;
  /** All that had come is taken, or a lot of it: time to act on it. */
  readonly taken: () => void;
  /** Acts on the first of it before the others are taken. */
  readonly isPrompt?: boolean;
  /**
   * Whether the process may wait for more without going to sleep, when it comes fast and what has come
   * is acted on: there is nothing else to do.
   */
  readonly mayLinger?: () => boolean;
  readonly complain: (message: string) => void;
  /** Datagrams that are longer are never cut on the way: they come whole, or not at all. */
  readonly cutBytesMax?: number;
}

export class UdpSocket {
  readonly #socket: dgram.Socket;
  readonly #descriptor: number;
  readonly #cutBytesMax: number;
  #areCut = true;
  /** Some devices can't send several datagrams by one call. */
  #canSegment = true;
  /** What leaves next: datagrams of one length to one address, the last of which may be shorter. */
  readonly #message: Message;
  readonly #readiness = new Readiness();
  readonly #inbox = new Inbox();
  readonly #options: UdpOptions;
  #to: Address | undefined;
  #segmentBytes = 0;
  #pendingBytes = 0;
  #segments = 0;
  #isCorked = false;
  /** When what had come last was acted on. */
  #actedMs = Number.NEGATIVE_INFINITY;
  #isClosed = false;
  /** Datagrams that the system would not send. */
  unsent = 0;

  /** @throws Error when the address can't be had. */
  static async open(options: UdpOptions): Promise<UdpSocket> {
    if (!isIPv4(options.address)) throw new RangeError(`${options.address} is no IPv4 address`);
    const descriptor = openUdp(options);
    const socket = dgram.createSocket('udp4');
    await new Promise<void>((resolve, reject) => {
      socket.once('error', reject);
      socket.bind({ fd: descriptor }, resolve);
    });
    socket.removeAllListeners('error');
    socket.on('error', (error) => options.complain(error.message));
    const udp = new UdpSocket(socket, descriptor, options);
    socket.on('message', (first, { address: host, port }) => {
      const pausedMs = performance.now() - udp.#actedMs;
      const from = { host, port };
      for (const datagram of datagramsOf(first)) options.take(datagram, from);
      if (options.isPrompt) options.taken();
      // Node would make an object and 64 KiB of memory for each of the others.
      udp.#takeMore(TAKEN_TOGETHER_MAX - 1);
      options.taken();
      udp.#actedMs = performance.now();
      if (pausedMs <= LINGER_MS && options.mayLinger?.()) udp.#linger(options.mayLinger);
    });
    return udp;
  }

  private constructor(socket: dgram.Socket, descriptor: number, options: UdpOptions) {
    this.#options = options;
    this.#cutBytesMax = options.cutBytesMax ?? DATAGRAM_BYTES_MAX;
    this.#socket = socket;
    this.#descriptor = descriptor;
    this.#message = new Message(DATAGRAM_BYTES_MAX);
  }

  get port(): number {
    return this.#socket.address().port;
  }

  /** For other threads that send by it. */
  get descriptor(): number {
    return this.#descriptor;
  }

  /** Never throws: what can't be sent is lost. The datagram's bytes are copied. */
  send(datagram: Buffer, to: Address): void {
    if (this.#isClosed) return;
    if (!this.#fits(datagram.length, to)) this.#flush();
    if (this.#segments === 0) {
      this.#to = to;
      this.#segmentBytes = datagram.length;
    }
    this.#message.bytes.set(datagram, this.#pendingBytes);
    this.#pendingBytes += datagram.length;
    this.#segments++;
    if (!this.#isCorked) this.#flush();
  }

  /** Runs it, and sends what it has sent in as few pieces as can be. */
  corked(run: () => void): void {
    this.#isCorked = true;
    run();
    this.#isCorked = false;
    this.#flush();
  }

  /** Something has come that was not taken yet. */
  get hasMore(): boolean {
    return !this.#isClosed && this.#readiness.wait(this.#descriptor, 0);
  }

  /** Takes what has come without a turn of Node's loop; `false` when nothing has. */
  takeNow(): boolean {
    if (this.#isClosed || this.#takeMore(TAKEN_TOGETHER_MAX) === 0) return false;
    this.#options.taken();
    return true;
  }

  /** Blocks for so long, or until something has come. */
  wait(ms: number): void {
    if (!this.#isClosed) this.#readiness.wait(this.#descriptor, ms);
  }

  /**
   * `false` when it is a member of as many groups as the system grants a socket.
   * @throws Error when the system refuses it for another reason.
   */
  join(group: string, ownAddress: string): boolean {
    return setMembership(this.#descriptor, { group, ownAddress, isMember: true });
  }

  leave(group: string, ownAddress: string): void {
    if (!this.#isClosed) {
      setMembership(this.#descriptor, { group, ownAddress, isMember: false });
    }
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await new Promise<void>((resolve) => this.#socket.close(() => resolve()));
  }

  #linger(mayLinger: () => boolean): void {
    const takeNow = () => this.takeNow();
    for (let times = 0; times < LINGER_TIMES_MAX && mayLinger() && linger(takeNow); times++) {
      this.#actedMs = performance.now();
    }
  }

  /** @returns how many pieces there were; then it is time to act on them */
  #takeMore(piecesMax: number): number {
    const { take } = this.#options;
    for (let count = 0; count < piecesMax; count++) {
      const received = this.#inbox.next(this.#descriptor);
      if (received === undefined) return count;
      for (const datagram of datagramsOf(received)) take(datagram, this.#inbox.from);
    }
    return piecesMax;
  }

  /** Behind those that wait: all but the last are of one length. */
  #fits(bytes: number, to: Address): boolean {
    if (this.#segments === 0) return true;
    // Those that must come whole leave alone: a virtual link passes pieces on without a look at
    // their size, and what such a datagram has shown would not hold.
    if (this.#segments === SEGMENTS_MAX || this.#segmentBytes > this.#cutBytesMax) return false;
    if (bytes > this.#segmentBytes || this.#pendingBytes + bytes > DATAGRAM_BYTES_MAX) return false;
    const areWhole = this.#pendingBytes === this.#segments * this.#segmentBytes;
    return areWhole && this.#to!.port === to.port && this.#to!.host === to.host;
  }

  #flush(): void {
    const segments = this.#segments;
    if (segments === 0) return;
    this.#segments = 0;
    const lengthBytes = this.#pendingBytes;
    this.#pendingBytes = 0;
    const to = this.#to!;
    if (segments > 1 && this.#sendAtOnce(lengthBytes, to)) return;
    for (let start = 0; start < lengthBytes; start += this.#segmentBytes) {
      const bytes = Math.min(this.#segmentBytes, lengthBytes - start);
      this.#letBeCut(bytes <= this.#cutBytesMax);
      const message = { start, lengthBytes: bytes, to, segmentBytes: 0 };
      if (!this.#message.send(this.#descriptor, message)) this.unsent++;
    }
  }

  /** `false` when they are to be sent one by one. */
  #sendAtOnce(lengthBytes: number, to: Address): boolean {
    if (!this.#canSegment) return false;
    const segmentBytes = this.#segmentBytes;
    this.#letBeCut(segmentBytes <= this.#cutBytesMax);
    const message = { start: 0, lengthBytes, to, segmentBytes };
    if (this.#message.send(this.#descriptor, message)) return true;
    this.#canSegment = this.#message.isFull;
    return false;
  }

  #letBeCut(areCut: boolean): void {
    if (areCut === this.#areCut) return;
    this.#areCut = areCut;
    letBeCut(this.#descriptor, areCut);
  }
}
