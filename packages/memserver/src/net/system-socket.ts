// UDP sockets by system calls, for what Node does not offer: segments, options, groups on a named
// interface. Linux on 64 bits. Keeps no sockets and knows no datagrams; called by `udp-socket.ts`.

import { isIPv4 } from 'node:net';
import os from 'node:os';
import koffi from 'koffi';
import type { Address } from '../server/known-receivers.js';

const AF_INET = 2;
const SOCK_DGRAM_NONBLOCK_CLOEXEC = 0x8_0802;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_SNDBUF = 7;
const SO_RCVBUF = 8;
const SO_SNDBUFFORCE = 32;
const SO_RCVBUFFORCE = 33;
const IPPROTO_IP = 0;
const IP_MULTICAST_IF = 32;
const IP_MULTICAST_TTL = 33;
const IP_ADD_MEMBERSHIP = 35;
const IP_DROP_MEMBERSHIP = 36;
const IP_MULTICAST_ALL = 49;
const IP_MTU_DISCOVER = 10;
const PMTUDISC_DONT = 0;
const PMTUDISC_PROBE = 3;
const SOL_UDP = 17;
const UDP_SEGMENT = 103;
const UDP_GRO = 104;
const POLLIN = 1;
const MSG_DONTWAIT = 0x40;

/** Waits to be read, or to leave: 30 ms of 1 Gbit/s. Where we may not, the kernel gives less. */
const BUFFER_BYTES = 4 * 1024 * 1024;
/** What the kernel hands over in one piece. */
const RECEIVED_BYTES_MAX = 65_536;
/** Whose addresses are remembered, so that they need not be made anew. */
const SENDERS_MAX = 4096;
/** How many routers a datagram to a group may pass. */
const MULTICAST_HOPS = 16;

const SOCKET_ADDRESS = { family: 0, port: 2, host: 4, bytes: 16 } as const;
/** `struct msghdr`, `struct iovec` and a control message of two bytes, on 64 bits. */
const MESSAGE = { name: 0, nameBytes: 8, vector: 16, count: 24, control: 32, controlBytes: 40 };
const MESSAGE_BYTES = 56;
const VECTOR = { base: 0, length: 8, bytes: 16 } as const;
const CONTROL = { length: 0, level: 8, type: 12, value: 16, bytes: 24 } as const;
const CONTROL_LENGTH = 18;
/** `struct ifreq`. */
const INTERFACE_REQUEST = { mtu: 16, bytes: 40 } as const;
const SIOCGIFMTU = 0x8921;

const libc = koffi.load('libc.so.6');
const socket = libc.func('int socket(int family, int type, int protocol)');
const bind = libc.func('int bind(int socket, void *address, int bytes)');
const setsockopt = libc.func(
  'int setsockopt(int socket, int level, int name, void *value, int bytes)',
);
const sendmsg = libc.func('long sendmsg(int socket, void *message, int flags)');
const ppoll = libc.func('int ppoll(void *descriptors, ulong count, void *time, void *signals)');
const recvfrom = libc.func(
  'long recvfrom(int socket, void *into, size_t bytes, int flags, void *from, void *fromBytes)',
);
const ioctl = libc.func('int ioctl(int descriptor, ulong request, void *argument)');
const close = libc.func('int close(int descriptor)');
const sched_yield = libc.func('int sched_yield()');

/** Whoever else has work for this processor goes first. */
export function yieldProcessor(): void {
  sched_yield();
}

export interface SocketOptions {
  /** 0.0.0.0: whatever comes to the port. */
  readonly address: string;
  /** 0: one that is free. */
  readonly port: number;
  /** Others may have the port as well: for groups. Only groups that it has joined come. */
  readonly isShared?: boolean;
  /** By which groups are sent to. */
  readonly multicastInterface?: string;
}

/** A bound socket that does not block. @throws Error when the address can't be had. */
export function openUdp(options: SocketOptions): number {
  const descriptor: number = socket(AF_INET, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0);
  if (descriptor < 0) throw systemError('socket');
  try {
    setBuffer(descriptor, SO_RCVBUFFORCE, SO_RCVBUF);
    setBuffer(descriptor, SO_SNDBUFFORCE, SO_SNDBUF);
    // A kernel that can't (before 5.0) hands them over one by one.
    trySet(descriptor, SOL_UDP, UDP_GRO, integer(1));
    set(descriptor, IPPROTO_IP, IP_MTU_DISCOVER, integer(PMTUDISC_DONT));
    if (options.isShared) {
      set(descriptor, SOL_SOCKET, SO_REUSEADDR, integer(1));
      set(descriptor, IPPROTO_IP, IP_MULTICAST_ALL, integer(0));
    }
    if (options.multicastInterface !== undefined) {
      set(descriptor, IPPROTO_IP, IP_MULTICAST_IF, hostBytes(options.multicastInterface));
      set(descriptor, IPPROTO_IP, IP_MULTICAST_TTL, integer(MULTICAST_HOPS));
    }
    const address = Buffer.alloc(SOCKET_ADDRESS.bytes);
    writeAddress(address, { host: options.address, port: options.port });
    if (bind(descriptor, address, address.length) !== 0) {
      throw systemError(`bind ${options.address}:${options.port}`);
    }
    return descriptor;
  } catch (error) {
    close(descriptor);
    throw error;
  }
}

/**
 * Joins a group on the interface that has `ownAddress`, or leaves it. `false` when the system grants
 * the socket no more groups than it has joined. @throws Error for any other reason
 */
export function setMembership(
  descriptor: number,
  of: { readonly group: string; readonly ownAddress: string; readonly isMember: boolean },
): boolean {
  const request = Buffer.concat([hostBytes(of.group), hostBytes(of.ownAddress)]);
  const name = of.isMember ? IP_ADD_MEMBERSHIP : IP_DROP_MEMBERSHIP;
  if (trySet(descriptor, IPPROTO_IP, name, request)) return true;
  if (koffi.errno() === koffi.os.errno.ENOBUFS) return false;
  throw systemError(`setsockopt ${IPPROTO_IP} ${name}`);
}

/** Whether what is larger than the path takes is cut on the way, or lost. */
export function letBeCut(descriptor: number, areCut: boolean): void {
  set(descriptor, IPPROTO_IP, IP_MTU_DISCOVER, integer(areCut ? PMTUDISC_DONT : PMTUDISC_PROBE));
}

/** Of the interface that has the address. @throws Error when there is none. */
export function mtuOf(address: string): number {
  const all = Object.entries(os.networkInterfaces());
  const found = all.find(([, addresses]) => addresses?.some((of) => of.address === address));
  if (found === undefined) throw new Error(`no interface has the address ${address}`);
  const descriptor: number = socket(AF_INET, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0);
  const request = Buffer.alloc(INTERFACE_REQUEST.bytes);
  request.write(found[0], 0, INTERFACE_REQUEST.mtu - 1, 'latin1');
  const isTold = ioctl(descriptor, SIOCGIFMTU, request) === 0;
  close(descriptor);
  if (!isTold) throw systemError(`the MTU of ${found[0]}`);
  return request.readInt32LE(INTERFACE_REQUEST.mtu);
}

/** A message that is filled and sent again and again, in memory that stays where it is. */
export class Message {
  readonly bytes: Buffer;
  readonly #message = Buffer.alloc(MESSAGE_BYTES);
  readonly #address = Buffer.alloc(SOCKET_ADDRESS.bytes);
  readonly #vector = Buffer.alloc(VECTOR.bytes);
  readonly #control = Buffer.alloc(CONTROL.bytes);
  readonly #bytesAddress: bigint;
  #to: Address | undefined;

  constructor(bytesMax: number) {
    this.bytes = Buffer.allocUnsafeSlow(bytesMax);
    const message = this.#message;
    const point = (field: number, at: Buffer) =>
      message.writeBigUInt64LE(BigInt(koffi.address(at)), field);
    point(MESSAGE.name, this.#address);
    message.writeUInt32LE(SOCKET_ADDRESS.bytes, MESSAGE.nameBytes);
    point(MESSAGE.vector, this.#vector);
    message.writeBigUInt64LE(1n, MESSAGE.count);
    point(MESSAGE.control, this.#control);
    this.#bytesAddress = BigInt(koffi.address(this.bytes));
    this.#control.writeBigUInt64LE(BigInt(CONTROL_LENGTH), CONTROL.length);
    this.#control.writeInt32LE(SOL_UDP, CONTROL.level);
    this.#control.writeInt32LE(UDP_SEGMENT, CONTROL.type);
  }

  /**
   * Sends some of `bytes`. `segmentBytes`: cut into datagrams of so many; 0: one. `false` when it was
   * not sent.
   */
  send(
    descriptor: number,
    of: {
      readonly start: number;
      readonly lengthBytes: number;
      readonly to: Address;
      readonly segmentBytes: number;
    },
  ): boolean {
    if (of.to !== this.#to) {
      this.#to = of.to;
      writeAddress(this.#address, of.to);
    }
    this.#vector.writeBigUInt64LE(this.#bytesAddress + BigInt(of.start), VECTOR.base);
    this.#vector.writeUInt32LE(of.lengthBytes, VECTOR.length);
    this.#control.writeUInt16LE(of.segmentBytes, CONTROL.value);
    const controlBytes = of.segmentBytes === 0 ? 0 : CONTROL.bytes;
    this.#message.writeUInt32LE(controlBytes, MESSAGE.controlBytes);
    return sendmsg(descriptor, this.#message, 0) >= 0;
  }

  /** Whether the last could not be sent because too much waits, and would do later. */
  get isFull(): boolean {
    const { EAGAIN, ENOBUFS } = koffi.os.errno;
    const error = koffi.errno();
    return error === EAGAIN || error === ENOBUFS;
  }
}

/** What has come, in memory that is used again for the next. */
export class Inbox {
  readonly #bytes = Buffer.allocUnsafeSlow(RECEIVED_BYTES_MAX);
  readonly #address = Buffer.alloc(SOCKET_ADDRESS.bytes);
  readonly #addressBytes = integer(SOCKET_ADDRESS.bytes);
  readonly #senders = new Map<number, Address>();

  /** Until the next call; `undefined` when there is no more. */
  next(descriptor: number): Buffer | undefined {
    const { length } = this.#bytes;
    const flags = MSG_DONTWAIT;
    const taken: number = recvfrom(
      descriptor,
      this.#bytes,
      length,
      flags,
      this.#address,
      this.#addressBytes,
    );
    return taken < 0 ? undefined : this.#bytes.subarray(0, taken);
  }

  /** Of the last. */
  get from(): Address {
    const host = this.#address.readUInt32BE(SOCKET_ADDRESS.host);
    const port = this.#address.readUInt16BE(SOCKET_ADDRESS.port);
    const key = host * 2 ** 16 + port;
    const known = this.#senders.get(key);
    if (known !== undefined) return known;
    if (this.#senders.size === SENDERS_MAX) this.#senders.clear();
    const bytes = this.#address.subarray(SOCKET_ADDRESS.host, SOCKET_ADDRESS.host + 4);
    const sender = { host: bytes.join('.'), port };
    this.#senders.set(key, sender);
    return sender;
  }
}

/** Waits for a descriptor, finer than Node's timers. */
export class Readiness {
  /** `struct pollfd` and `struct timespec`. */
  readonly #poll = Buffer.alloc(8);
  readonly #time = Buffer.alloc(16);

  /** Blocks for less than a second, or until something can be read: whether it can. */
  wait(descriptor: number, ms: number): boolean {
    this.#poll.writeInt32LE(descriptor, 0);
    this.#poll.writeInt16LE(POLLIN, 4);
    this.#time.writeBigUInt64LE(BigInt(Math.ceil(ms * 1e6)), 8);
    return ppoll(this.#poll, 1, this.#time, null) > 0;
  }
}

function setBuffer(descriptor: number, forced: number, allowed: number): void {
  const bytes = integer(BUFFER_BYTES);
  if (!trySet(descriptor, SOL_SOCKET, forced, bytes)) set(descriptor, SOL_SOCKET, allowed, bytes);
}

function set(descriptor: number, level: number, name: number, value: Buffer): void {
  if (!trySet(descriptor, level, name, value)) throw systemError(`setsockopt ${level} ${name}`);
}

function trySet(descriptor: number, level: number, name: number, value: Buffer): boolean {
  return setsockopt(descriptor, level, name, value, value.length) === 0;
}

function systemError(call: string): Error {
  const number = koffi.errno();
  const names = Object.entries(koffi.os.errno);
  const name = names.find(([, value]) => value === number)?.[0];
  return new Error(`${call}: ${name ?? `error ${number}`}`);
}

function integer(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
}

function writeAddress(into: Buffer, of: Address): void {
  into.writeUInt16LE(AF_INET, SOCKET_ADDRESS.family);
  into.writeUInt16BE(of.port, SOCKET_ADDRESS.port);
  hostBytes(of.host).copy(into, SOCKET_ADDRESS.host);
}

function hostBytes(host: string): Buffer {
  if (!isIPv4(host)) throw new RangeError(`${host} is no IPv4 address`);
  return Buffer.from(host.split('.').map(Number));
}
