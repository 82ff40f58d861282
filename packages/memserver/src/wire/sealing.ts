// The outside of every datagram: a clear header, a sealed body, a tag. Seals what is sent, opens
// what came, and says why it would not: nothing here throws because of a datagram. No sockets, no
// knowledge of bodies (`datagrams.ts`). Integers are little endian; u64 fields hold at most 2^53 -
// 1.
//
//  0         1      2         10        18        24       26 …            n-16 …
// +---------+------+---------+---------+----------+--------+---------------+-----------+
// | version | kind | key id  | sender  | counter  | n      | sealed body   | tag (16)  |
// +---------+------+---------+---------+----------+--------+---------------+-----------+
//  \______________ authenticated, not hidden ____________/
//
// n is the datagram's length: the kernel may hand over several in one piece (`datagramsOf`).
//
// AES-256-GCM. The key is the sender's own: HMAC-SHA256 of the snapshot's key over the sender's id,
// so that no two senders share a nonce (the counter), whatever happens. An id is drawn anew by each
// process, as its counter begins with 1 again.

import { createHmac, createSecretKey } from 'node:crypto';
import { aead, KEY_BYTES, NONCE_BYTES, TAG_BYTES } from './aead.js';
import { ReplayWindow } from './replay-window.js';

export const VERSION = 1;
export const HEADER_BYTES = 26;
/** UDP's own limit. */
export const DATAGRAM_BYTES_MAX = 65_507;
export { KEY_BYTES, TAG_BYTES };

const OFFSET = { version: 0, kind: 1, keyId: 2, sender: 10, counter: 18, length: 24 } as const;
const NONCE_COUNTER = 4;
const COUNTER_BYTES = 6;
const TWO_TO_32 = 2 ** 32;

export const DATAGRAM = { request: 1, report: 2, pages: 3, piece: 4, probe: 5 } as const;
export type DatagramKind = (typeof DATAGRAM)[keyof typeof DATAGRAM];

/** Why a datagram was dropped. `body`: sealed by a member, but not as `datagrams.ts` says. */
export const DROP_REASONS = [
  'short',
  'version',
  'kind',
  'otherKey',
  'own',
  'old',
  'replayed',
  'forged',
  'body',
] as const;
export type DropReason = (typeof DROP_REASONS)[number];

export interface Opened {
  readonly kind: DatagramKind;
  readonly senderId: number;
  /** Of the sender's datagrams, by whatever way they went: those that it sealed later have greater ones. */
  readonly counter: number;
  /** Until the next datagram is opened, by whomever. */
  readonly body: Buffer;
}

/** What of a snapshot's key seals its datagrams; the key itself is not kept. */
export interface SnapshotKey {
  /** In clear in each datagram: tells a process which of its snapshots it is of. */
  readonly id: number;
  senderKey(senderId: number): Buffer;
}

export function snapshotKey(key: Buffer): SnapshotKey {
  if (key.length !== KEY_BYTES) throw new RangeError(`a key of ${key.length} bytes`);
  const secret = createSecretKey(key);
  const derive = (what: string, of: Buffer): Buffer =>
    createHmac('sha256', secret).update(`snowfork ${VERSION} ${what}`).update(of).digest();
  const idBytes = derive('key id', Buffer.alloc(0));
  return {
    id: integerFrom(idBytes),
    senderKey: (senderId) => {
      const of = Buffer.alloc(8);
      writeInteger(of, 0, senderId);
      return derive('sender', of);
    },
  };
}

/** An id for a process and a snapshot, from at least 8 random bytes: never used twice. */
export function newSenderId(random: Buffer): number {
  return integerFrom(random);
}

/** For one datagram at a time: what is opened is used before the next one comes. */
const openedBody = Buffer.alloc(DATAGRAM_BYTES_MAX);

/**
 * The datagrams of what the kernel has handed over in one piece. What is not made of datagrams
 * comes as it is, and is dropped by whoever opens it.
 */
export function* datagramsOf(received: Buffer): Generator<Buffer> {
  let start = 0;
  while (received.length - start >= HEADER_BYTES + TAG_BYTES) {
    const length = received.readUInt16LE(start + OFFSET.length);
    if (length < HEADER_BYTES + TAG_BYTES || start + length > received.length) break;
    yield start === 0 && length === received.length
      ? received
      : received.subarray(start, start + length);
    start += length;
  }
  if (start === 0 || start < received.length) yield received.subarray(start);
}

/** Which key a datagram names, for a process that has several; `undefined` when it is too short. */
export function keyIdOf(datagram: Buffer): number | undefined {
  return datagram.length < HEADER_BYTES ? undefined : readInteger(datagram, OFFSET.keyId);
}

/** Numbers a sender's datagrams from 1 on, none twice. */
export interface DatagramCounter {
  readonly taken: number;
  take(): number;
}

class OwnCounter implements DatagramCounter {
  taken = 0;

  take(): number {
    return ++this.taken;
  }
}

export class Sealer {
  readonly senderId: number;
  readonly #key: Buffer;
  readonly #keyId: number;
  readonly #nonce = Buffer.alloc(NONCE_BYTES);
  readonly #counter: DatagramCounter;

  /** `counter`: shared by all who seal as this sender. */
  constructor(key: SnapshotKey, senderId: number, counter: DatagramCounter = new OwnCounter()) {
    this.senderId = senderId;
    this.#keyId = key.id;
    this.#key = key.senderKey(senderId);
    this.#counter = counter;
  }

  /** How many were sealed as this sender. */
  get counter(): number {
    return this.#counter.taken;
  }

  seal(kind: DatagramKind, body: Buffer): Buffer {
    const datagram = Buffer.alloc(HEADER_BYTES + body.length + TAG_BYTES);
    this.sealInto(datagram, kind, body);
    return datagram;
  }

  /** Puts a datagram at the start of `into`; returns its length. */
  sealInto(into: Buffer, kind: DatagramKind, body: Buffer): number {
    const counter = this.#counter.take();
    const length = HEADER_BYTES + body.length + TAG_BYTES;
    into[OFFSET.version] = VERSION;
    into[OFFSET.kind] = kind;
    writeInteger(into, OFFSET.keyId, this.#keyId);
    writeInteger(into, OFFSET.sender, this.senderId);
    into.writeUIntLE(counter, OFFSET.counter, COUNTER_BYTES);
    into.writeUInt16LE(length, OFFSET.length);
    writeInteger(this.#nonce, NONCE_COUNTER, counter);
    aead.seal(this.#key, this.#nonce, body, into, HEADER_BYTES);
    return length;
  }
}

/** What an opener keeps of a sender that has proven itself. */
interface Sender {
  readonly key: Buffer;
  readonly window: ReplayWindow;
  /** The opener's count of datagrams when the last of this sender came. */
  heardAt: number;
}

export class Opener {
  readonly #key: SnapshotKey;
  readonly #ownId: number;
  readonly #sendersMax: number;
  readonly #senders = new Map<number, Sender>();
  readonly #nonce = Buffer.alloc(NONCE_BYTES);
  #opened = 0;

  /**
   * `ownId`: multicast comes back to its sender. `sendersMax`: so many are kept, those last heard.
   */
  constructor(of: { key: SnapshotKey; ownId: number; sendersMax: number }) {
    this.#key = of.key;
    this.#ownId = of.ownId;
    this.#sendersMax = of.sendersMax;
  }

  get senderCount(): number {
    return this.#senders.size;
  }

  /** Only a datagram that is proven to be a member's, and new, changes anything. */
  open(datagram: Buffer): Opened | DropReason {
    if (datagram.length < HEADER_BYTES + TAG_BYTES) return 'short';
    if (datagram.length > DATAGRAM_BYTES_MAX) return 'forged';
    if (datagram[OFFSET.version] !== VERSION) return 'version';
    const kind = kindOf(datagram[OFFSET.kind]!);
    if (kind === undefined) return 'kind';
    if (readInteger(datagram, OFFSET.keyId) !== this.#key.id) return 'otherKey';
    const senderId = readInteger(datagram, OFFSET.sender);
    const counter = datagram.readUIntLE(OFFSET.counter, COUNTER_BYTES);
    if (senderId === undefined || counter === 0) return 'forged';
    if (senderId === this.#ownId) return 'own';
    const known = this.#senders.get(senderId);
    const verdict = known?.window.verdict(counter) ?? 'new';
    if (verdict !== 'new') return verdict;
    const key = known?.key ?? this.#key.senderKey(senderId);
    const body = this.#unseal(datagram, key, counter);
    if (body === undefined) return 'forged';
    const sender = known ?? this.#newSender(senderId, key);
    sender.window.take(counter);
    sender.heardAt = ++this.#opened;
    return { kind, senderId, counter, body };
  }

  #unseal(datagram: Buffer, key: Buffer, counter: number): Buffer | undefined {
    writeInteger(this.#nonce, NONCE_COUNTER, counter);
    if (!aead.open(key, this.#nonce, datagram, HEADER_BYTES, openedBody)) return undefined;
    return openedBody.subarray(0, datagram.length - HEADER_BYTES - TAG_BYTES);
  }

  #newSender(senderId: number, key: Buffer): Sender {
    if (this.#senders.size >= this.#sendersMax) this.#forgetOldest();
    const sender = { key, window: new ReplayWindow(), heardAt: 0 };
    this.#senders.set(senderId, sender);
    return sender;
  }

  // Datagrams of a sender that is forgotten could be replayed: pages never change and requests can
  // be repeated, so that costs work and changes nothing.
  #forgetOldest(): void {
    let oldestId = -1;
    let oldestHeardAt = Number.POSITIVE_INFINITY;
    for (const [id, sender] of this.#senders) {
      if (sender.heardAt >= oldestHeardAt) continue;
      oldestId = id;
      oldestHeardAt = sender.heardAt;
    }
    this.#senders.delete(oldestId);
  }
}

function kindOf(byte: number): DatagramKind | undefined {
  return byte >= DATAGRAM.request && byte <= DATAGRAM.probe ? (byte as DatagramKind) : undefined;
}

/** `undefined` when it is not a safe integer. */
function readInteger(buffer: Buffer, offset: number): number | undefined {
  const high = buffer.readUInt32LE(offset + 4);
  return high >= 2 ** 21 ? undefined : high * TWO_TO_32 + buffer.readUInt32LE(offset);
}

function writeInteger(buffer: Buffer, offset: number, value: number): void {
  buffer.writeUInt32LE(value % TWO_TO_32, offset);
  buffer.writeUInt32LE(Math.floor(value / TWO_TO_32), offset + 4);
}

/** 53 of the bytes' bits. */
function integerFrom(bytes: Buffer): number {
  return (bytes.readUInt32LE(4) % 2 ** 21) * TWO_TO_32 + bytes.readUInt32LE(0);
}
