// The bytes of the FUSE protocol (version 7) between the kernel and the pager, as far as the pager
// uses it. Decodes requests, encodes replies and notifications; does no input or output and knows no
// objects. Called by the session, the serving threads and the registry.
//
//   request       0      4        8        16       24    28    32    36       38   40
//                +------+--------+--------+--------+-----+-----+-----+--------+----+-----------+
//                | len  | opcode | unique | nodeid | uid | gid | pid | extlen | 0  | arguments |
//                +------+--------+--------+--------+-----+-----+-----+--------+----+-----------+
//   reply         0      4        8        16
//                +------+--------+--------+--------------------+
//                | len  | -errno | unique | result             |
//                +------+--------+--------+--------------------+
//   notification  0      4        8        16
//                +------+--------+--------+--------------------+
//                | len  |  code  |   0    | what is told       |
//                +------+--------+--------+--------------------+
//
// Host byte order, which is little endian on all that Snowfork runs on. `len` counts everything. A
// reply goes out in one write. Names as in the kernel's include/uapi/linux/fuse.h.

export const FUSE_MAJOR = 7;
/** The newest minor version whose layouts are drawn here. */
export const FUSE_MINOR = 40;

export const REQUEST_HEADER_BYTES = 40;
export const REPLY_HEADER_BYTES = 16;
/** Reply header and the fixed part of FUSE_NOTIFY_STORE. */
export const STORE_HEADER_BYTES = 40;
export const NAME_BYTES_MAX = 255;
/** No request that the pager serves is longer; FUSE wants room for 8,192 bytes at least. */
export const REQUEST_BYTES_MAX = 16_384;
/** The least that the kernel accepts; what is written is refused anyway. */
export const WRITE_BYTES_MAX = 4096;
/** The most that one READ asks for. */
export const READ_BYTES_MAX = 1_048_576;

export const Opcode = {
  lookup: 1,
  forget: 2,
  getattr: 3,
  setattr: 4,
  open: 14,
  read: 15,
  write: 16,
  statfs: 17,
  release: 18,
  init: 26,
  opendir: 27,
  readdir: 28,
  releasedir: 29,
  interrupt: 36,
  destroy: 38,
  batchForget: 42,
} as const;

export const Notification = {
  invalidateInode: 2,
  invalidateEntry: 3,
  store: 4,
} as const;

export const OpenFlag = { directIo: 1 << 0, keepCache: 1 << 1 } as const;

export const InitFlag = {
  asyncRead: 1 << 0,
  parallelDirectoryOperations: 1 << 18,
  maxPages: 1 << 22,
  explicitInvalidation: 1 << 25,
} as const;

const HEADER = {
  length: 0,
  opcode: 4,
  uniqueLow: 8,
  uniqueHigh: 12,
  nodeid: 16,
  uid: 24,
  pid: 32,
  extLength: 36,
} as const;
const REPLY = { length: 0, error: 4, uniqueLow: 8, uniqueHigh: 12 } as const;
const READ_IN = { handle: 40, offset: 48, size: 56, bytes: 80 } as const;
const INIT_IN = {
  major: 40,
  minor: 44,
  maxReadahead: 48,
  flags: 52,
  bytes: 56,
} as const;
const FORGET_IN = { lookups: 40, bytes: 48 } as const;
const BATCH_FORGET_IN = { count: 40, first: 48, each: 16 } as const;

const INIT_OUT = {
  major: 0,
  minor: 4,
  maxReadahead: 8,
  flags: 12,
  maxBackground: 16,
  congestionThreshold: 18,
  maxWrite: 20,
  timeGranularity: 24,
  maxPages: 28,
  bytes: 64,
} as const;
const ATTR = {
  inode: 0,
  size: 8,
  blocks: 16,
  mode: 60,
  links: 64,
  blockSize: 80,
  bytes: 88,
} as const;
const ENTRY_OUT = { nodeid: 0, entryValid: 16, attrValid: 24, attr: 40, bytes: 128 } as const;
const ATTR_OUT = { attrValid: 0, attr: 16, bytes: 104 } as const;
const OPEN_OUT = { handle: 0, flags: 8, bytes: 16 } as const;
const STATFS_OUT = { blockSize: 40, nameLength: 44, fragmentSize: 48, bytes: 80 } as const;
const STORE_OUT = { nodeid: 16, offset: 24, size: 32, padding: 36 } as const;
const INVALIDATE_INODE_OUT = { nodeid: 16, offset: 24, length: 32, bytes: 40 } as const;
const INVALIDATE_ENTRY_OUT = { parent: 16, nameLength: 24, flags: 28, name: 32 } as const;

const BLOCK_BYTES = 512;
const PAGE_BYTES = 4096;
const U32 = 2 ** 32;

/** Thrown by the decoders, and nothing else is: the bytes are no request of this protocol. */
export class FuseWireError extends Error {
  override readonly name = 'FuseWireError';
}

/** Filled by `decodeHeader`; one is kept per thread, so that a request costs no allocation. */
export interface RequestHeader {
  opcode: number;
  /** `unique` in two halves: it is only ever repeated. */
  uniqueLow: number;
  uniqueHigh: number;
  nodeid: number;
  /** Whose process asks, in the user namespace of the mount. */
  uid: number;
  /** The thread that asks, in the namespace of the mount; 0 when it is in none of that. */
  pid: number;
}

export function newRequestHeader(): RequestHeader {
  return { opcode: 0, uniqueLow: 0, uniqueHigh: 0, nodeid: 0, uid: 0, pid: 0 };
}

/** @throws FuseWireError when the first `lengthBytes` of `request` are not exactly one request. */
export function decodeHeader(request: Buffer, lengthBytes: number, into: RequestHeader): void {
  if (lengthBytes < REQUEST_HEADER_BYTES) throw new FuseWireError('shorter than its header');
  if (lengthBytes > request.length) throw new FuseWireError('longer than its buffer');
  if (request.readUInt32LE(HEADER.length) !== lengthBytes) throw new FuseWireError('wrong length');
  into.opcode = request.readUInt32LE(HEADER.opcode);
  into.uniqueLow = request.readUInt32LE(HEADER.uniqueLow);
  into.uniqueHigh = request.readUInt32LE(HEADER.uniqueHigh);
  into.nodeid = readU64(request, HEADER.nodeid);
  into.uid = request.readUInt32LE(HEADER.uid);
  into.pid = request.readUInt32LE(HEADER.pid);
}

/** Filled by `decodeRead`. */
export interface ReadArguments {
  offset: number;
  sizeBytes: number;
}

/** @throws FuseWireError */
export function decodeRead(request: Buffer, lengthBytes: number, into: ReadArguments): void {
  requireBytes(request, lengthBytes, READ_IN.bytes);
  const sizeBytes = request.readUInt32LE(READ_IN.size);
  if (sizeBytes > READ_BYTES_MAX) throw new FuseWireError(`a READ of ${sizeBytes} bytes`);
  into.offset = readU64(request, READ_IN.offset);
  into.sizeBytes = sizeBytes;
}

/** The name that a LOOKUP asks for. @throws FuseWireError */
export function decodeLookup(request: Buffer, lengthBytes: number): string {
  const end = lengthBytes - extensionBytes(request, lengthBytes);
  const terminator = request.indexOf(0, REQUEST_HEADER_BYTES);
  if (terminator !== end - 1) throw new FuseWireError('a name that does not end with the request');
  const nameBytes = terminator - REQUEST_HEADER_BYTES;
  if (nameBytes < 1 || nameBytes > NAME_BYTES_MAX) throw new FuseWireError('a name of no length');
  return request.toString('utf8', REQUEST_HEADER_BYTES, terminator);
}

export interface InitArguments {
  readonly major: number;
  readonly minor: number;
  readonly maxReadahead: number;
  readonly flags: number;
}

/** @throws FuseWireError */
export function decodeInit(request: Buffer, lengthBytes: number): InitArguments {
  const argumentsEnd = lengthBytes - extensionBytes(request, lengthBytes);
  if (argumentsEnd < INIT_IN.bytes) throw new FuseWireError('INIT cut short');
  return {
    major: request.readUInt32LE(INIT_IN.major),
    minor: request.readUInt32LE(INIT_IN.minor),
    maxReadahead: request.readUInt32LE(INIT_IN.maxReadahead),
    flags: request.readUInt32LE(INIT_IN.flags),
  };
}

/** The nodes that the kernel forgets, of FORGET and BATCH_FORGET alike. @throws FuseWireError */
export function decodeForget(
  request: Buffer,
  lengthBytes: number,
  header: RequestHeader,
): number[] {
  if (header.opcode === Opcode.forget) {
    requireBytes(request, lengthBytes, FORGET_IN.bytes);
    return [header.nodeid];
  }
  if (lengthBytes - extensionBytes(request, lengthBytes) < BATCH_FORGET_IN.first) {
    throw new FuseWireError('BATCH_FORGET cut short');
  }
  const count = request.readUInt32LE(BATCH_FORGET_IN.count);
  requireBytes(request, lengthBytes, BATCH_FORGET_IN.first + count * BATCH_FORGET_IN.each);
  const nodes: number[] = [];
  for (let index = 0; index < count; index += 1) {
    nodes.push(readU64(request, BATCH_FORGET_IN.first + index * BATCH_FORGET_IN.each));
  }
  return nodes;
}

/** Fills the 16 bytes that go before a result of `resultBytes`; `errno` is 0 or positive. */
export function encodeReplyHeader(
  reply: Buffer,
  request: Pick<RequestHeader, 'uniqueLow' | 'uniqueHigh'>,
  resultBytes: number,
  errno = 0,
): void {
  reply.writeUInt32LE(REPLY_HEADER_BYTES + resultBytes, REPLY.length);
  reply.writeInt32LE(-errno, REPLY.error);
  reply.writeUInt32LE(request.uniqueLow, REPLY.uniqueLow);
  reply.writeUInt32LE(request.uniqueHigh, REPLY.uniqueHigh);
}

export function encodeInit(of: {
  minor: number;
  maxReadahead: number;
  flags: number;
  maxBackground: number;
  congestionThreshold: number;
}): Buffer {
  const result = Buffer.alloc(INIT_OUT.bytes);
  result.writeUInt32LE(FUSE_MAJOR, INIT_OUT.major);
  result.writeUInt32LE(of.minor, INIT_OUT.minor);
  result.writeUInt32LE(of.maxReadahead, INIT_OUT.maxReadahead);
  result.writeUInt32LE(of.flags >>> 0, INIT_OUT.flags);
  result.writeUInt16LE(of.maxBackground, INIT_OUT.maxBackground);
  result.writeUInt16LE(of.congestionThreshold, INIT_OUT.congestionThreshold);
  result.writeUInt32LE(WRITE_BYTES_MAX, INIT_OUT.maxWrite);
  result.writeUInt32LE(1, INIT_OUT.timeGranularity);
  result.writeUInt16LE(READ_BYTES_MAX / PAGE_BYTES, INIT_OUT.maxPages);
  return result;
}

export interface NodeAttributes {
  readonly nodeid: number;
  readonly sizeBytes: number;
  readonly mode: number;
}

export function encodeEntry(node: NodeAttributes, validSeconds: number): Buffer {
  const result = Buffer.alloc(ENTRY_OUT.bytes);
  writeU64(result, node.nodeid, ENTRY_OUT.nodeid);
  writeU64(result, validSeconds, ENTRY_OUT.entryValid);
  writeU64(result, validSeconds, ENTRY_OUT.attrValid);
  writeAttributes(result, node, ENTRY_OUT.attr);
  return result;
}

export function encodeAttributes(node: NodeAttributes, validSeconds: number): Buffer {
  const result = Buffer.alloc(ATTR_OUT.bytes);
  writeU64(result, validSeconds, ATTR_OUT.attrValid);
  writeAttributes(result, node, ATTR_OUT.attr);
  return result;
}

export function encodeOpen(flags: number): Buffer {
  const result = Buffer.alloc(OPEN_OUT.bytes);
  result.writeUInt32LE(flags, OPEN_OUT.flags);
  return result;
}

export function encodeStatfs(): Buffer {
  const result = Buffer.alloc(STATFS_OUT.bytes);
  result.writeUInt32LE(PAGE_BYTES, STATFS_OUT.blockSize);
  result.writeUInt32LE(NAME_BYTES_MAX, STATFS_OUT.nameLength);
  result.writeUInt32LE(PAGE_BYTES, STATFS_OUT.fragmentSize);
  return result;
}

/** Fills the 40 bytes that go before `sizeBytes` of content for the kernel's page cache. */
export function encodeStoreHeader(
  notification: Buffer,
  of: { nodeid: number; offset: number; sizeBytes: number },
): void {
  writeNotificationHeader(notification, STORE_HEADER_BYTES + of.sizeBytes, Notification.store);
  writeU64(notification, of.nodeid, STORE_OUT.nodeid);
  writeU64(notification, of.offset, STORE_OUT.offset);
  notification.writeUInt32LE(of.sizeBytes, STORE_OUT.size);
  notification.writeUInt32LE(0, STORE_OUT.padding);
}

/** Makes the kernel forget what it cached of a node: attributes and all pages. */
export function encodeInvalidateInode(nodeid: number): Buffer {
  const notification = Buffer.alloc(INVALIDATE_INODE_OUT.bytes);
  writeNotificationHeader(notification, notification.length, Notification.invalidateInode);
  writeU64(notification, nodeid, INVALIDATE_INODE_OUT.nodeid);
  writeU64(notification, 0, INVALIDATE_INODE_OUT.offset);
  writeU64(notification, 0, INVALIDATE_INODE_OUT.length);
  return notification;
}

/** Makes the kernel forget that `parent` has an entry `name`. */
export function encodeInvalidateEntry(parent: number, name: string): Buffer {
  const nameBytes = Buffer.byteLength(name);
  const notification = Buffer.alloc(INVALIDATE_ENTRY_OUT.name + nameBytes + 1);
  writeNotificationHeader(notification, notification.length, Notification.invalidateEntry);
  writeU64(notification, parent, INVALIDATE_ENTRY_OUT.parent);
  notification.writeUInt32LE(nameBytes, INVALIDATE_ENTRY_OUT.nameLength);
  notification.write(name, INVALIDATE_ENTRY_OUT.name);
  return notification;
}

function writeNotificationHeader(notification: Buffer, lengthBytes: number, code: number): void {
  notification.writeUInt32LE(lengthBytes, REPLY.length);
  notification.writeInt32LE(code, REPLY.error);
  notification.writeUInt32LE(0, REPLY.uniqueLow);
  notification.writeUInt32LE(0, REPLY.uniqueHigh);
}

function writeAttributes(result: Buffer, node: NodeAttributes, at: number): void {
  writeU64(result, node.nodeid, at + ATTR.inode);
  writeU64(result, node.sizeBytes, at + ATTR.size);
  writeU64(result, Math.ceil(node.sizeBytes / BLOCK_BYTES), at + ATTR.blocks);
  result.writeUInt32LE(node.mode, at + ATTR.mode);
  result.writeUInt32LE(1, at + ATTR.links);
  result.writeUInt32LE(PAGE_BYTES, at + ATTR.blockSize);
}

/** Bytes of extensions (Linux 6.0 and later, in units of 8) after the arguments. */
function extensionBytes(request: Buffer, lengthBytes: number): number {
  if (lengthBytes < REQUEST_HEADER_BYTES) throw new FuseWireError('shorter than its header');
  if (lengthBytes > request.length) throw new FuseWireError('longer than its buffer');
  return request.readUInt16LE(HEADER.extLength) * 8;
}

function requireBytes(request: Buffer, lengthBytes: number, wanted: number): void {
  if (lengthBytes - extensionBytes(request, lengthBytes) === wanted) return;
  throw new FuseWireError(`arguments of ${lengthBytes} bytes where ${wanted} belong`);
}

function readU64(bytes: Buffer, at: number): number {
  const value = bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * U32;
  if (!Number.isSafeInteger(value)) throw new FuseWireError('a number above 2^53');
  return value;
}

function writeU64(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32LE(value % U32, at);
  bytes.writeUInt32LE(Math.floor(value / U32), at + 4);
}
