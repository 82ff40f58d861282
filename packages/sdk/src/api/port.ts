// The bytes between the agent and a guest's `sf-guestd` (a virtio-serial port), and between
// `sf-guestd` and the programs of the guest (a unix socket). Both directions carry frames:
//
//    0        4    5     6      8          12
//   +--------+----+-----+------+----------+------------------------+
//   | length |type|flags|  0   |  stream  |  payload, length bytes |
//   +--------+----+-----+------+----------+------------------------+
//
// Integers are little endian; `length` counts the payload alone. A message longer than one frame
// goes on in the next frame of its stream: MORE is set on all of its frames but the last.
// `docs/internals/formats.md` has the payloads. Called by the agent's guest channel and the guest
// SDK; `clone-agent/guest/sf-guestd` is the other end, written in Perl.

export const FRAME_HEADER_BYTES = 12;
export const FRAME_PAYLOAD_BYTES_MAX = 65_536;

/** A value that travels (`sf.exit`, results, parameters of a request), encoded as MessagePack. */
export const VALUE_BYTES_MAX = 8 * 1024 * 1024;
/** A whole message: a value and room for what is around it. */
export const MESSAGE_BYTES_MAX = VALUE_BYTES_MAX + 65_536;
/** Bytes of standard input or output of one command that may be under way without a CREDIT. */
export const EXEC_WINDOW_BYTES = 262_144;
/** Where programs of a guest find `sf-guestd`. */
export const GUEST_SOCKET_PATH = '/run/snowfork/guest.sock';
export const PORT_PROTOCOL_VERSION = 1;

const OFFSET = { length: 0, type: 4, flags: 5, reserved: 6, stream: 8 } as const;

export const FLAG_MORE = 1;
export const FLAG_END = 2;
const FLAGS_ALL = FLAG_MORE | FLAG_END;

export const FrameType = {
  /** guest: ready. Lines `protocol=1`, `kernel=…`, `hostname=…`. */
  hello: 0x01,
  /** agent: get ready to be frozen. Lines `fork=ID`. */
  prepare: 0x02,
  /** guest: quiet now, nothing but PONG is sent until RESUME. Lines `fork=ID`. */
  prepared: 0x03,
  /** agent: the freeze is over. Lines `fork=ID`, `role=parent|clone`, `id=K`, `time=NS`, `entropy=HEX`, `hostname=…`. */
  resume: 0x04,
  /** guest: identity repaired. Lines `fork=ID` and `ok=1` or `error=…`. */
  resumed: 0x05,
  ping: 0x06,
  pong: 0x07,
  /**
   * agent: it is another one, and knows nothing of what was under way: ask again what RESUME and the
   * responses behind it have not answered. Lines `owner=STREAM`, if it must know whether that is open.
   */
  again: 0x08,
  /** program: MessagePack `{ id, method, params }`; the stream is the program's connection. */
  request: 0x10,
  /** agent: MessagePack `{ id, result }` or `{ id, error: { code, message, details } }`. */
  response: 0x11,
  /** guest: the program's connection is closed. */
  closed: 0x12,
  /** guest, to each program: this VM was forked. Lines `role=parent|clone`, `id=K`, `generation=N`, which grows. */
  forked: 0x13,
  /** agent: run a command. NUL-terminated strings: folder, number of arguments, arguments, `NAME=value`… */
  exec: 0x20,
  /** agent: bytes for standard input; END closes it. */
  stdin: 0x21,
  /** agent: send a signal. Lines `signal=N`. */
  signal: 0x22,
  /** guest: the command runs. Lines `pid=N`. */
  started: 0x23,
  stdout: 0x24,
  stderr: 0x25,
  /** guest: the command ended and all its output was sent. Lines `code=N`, `signal=N` or `error=…`. */
  exit: 0x26,
  /** both: so many bytes of standard input (guest) or output (agent) were taken. Lines `bytes=N`. */
  credit: 0x27,
} as const;
export type FrameType = (typeof FrameType)[keyof typeof FrameType];
const knownTypes: ReadonlySet<number> = new Set(Object.values(FrameType));

export interface Frame {
  readonly type: FrameType;
  readonly flags: number;
  /** A program's connection or a command; 0 for what concerns the whole guest. */
  readonly stream: number;
  readonly payload: Buffer;
}

/** Thrown by the decoders, and nothing else is: the peer broke the format. */
export class FrameError extends Error {
  override readonly name = 'FrameError';
}

/** One frame. @throws RangeError when the payload is longer than FRAME_PAYLOAD_BYTES_MAX. */
export function encodeFrame(
  type: FrameType,
  stream: number,
  payload: Uint8Array = Buffer.alloc(0),
  flags = 0,
): Buffer {
  if (payload.length > FRAME_PAYLOAD_BYTES_MAX) throw new RangeError('frame payload too long');
  const frame = Buffer.allocUnsafe(FRAME_HEADER_BYTES + payload.length);
  frame.writeUInt32LE(payload.length, OFFSET.length);
  frame.writeUInt8(type, OFFSET.type);
  frame.writeUInt8(flags, OFFSET.flags);
  frame.writeUInt16LE(0, OFFSET.reserved);
  frame.writeUInt32LE(stream, OFFSET.stream);
  frame.set(payload, FRAME_HEADER_BYTES);
  return frame;
}

/** A message of any length as one buffer of frames. @throws RangeError above MESSAGE_BYTES_MAX. */
export function encodeMessage(type: FrameType, stream: number, payload: Uint8Array): Buffer {
  if (payload.length > MESSAGE_BYTES_MAX) throw new RangeError('message too long');
  const frames: Buffer[] = [];
  let offset = 0;
  do {
    const end = Math.min(offset + FRAME_PAYLOAD_BYTES_MAX, payload.length);
    const flags = end < payload.length ? FLAG_MORE : 0;
    frames.push(encodeFrame(type, stream, payload.subarray(offset, end), flags));
    offset = end;
  } while (offset < payload.length);
  return frames.length === 1 ? frames[0]! : Buffer.concat(frames);
}

/** `key=value` lines, the payload of the frames that concern the whole guest. */
export function encodeLines(fields: Readonly<Record<string, string | number>>): Buffer {
  let text = '';
  for (const [key, value] of Object.entries(fields)) text += `${key}=${value}\n`;
  return Buffer.from(text);
}

/** The inverse of `encodeLines`; lines without `=` are passed over. */
export function decodeLines(payload: Uint8Array): Map<string, string> {
  const fields = new Map<string, string>();
  for (const line of Buffer.from(payload).toString('utf8').split('\n')) {
    const at = line.indexOf('=');
    if (at > 0) fields.set(line.slice(0, at), line.slice(at + 1));
  }
  return fields;
}

/** Cuts a byte stream into frames. One per connection; after a FrameError it must not be used on. */
export class FrameReader {
  #chunks: Uint8Array[] = [];
  #pendingBytes = 0;
  /** With fewer bytes than this no frame is whole. */
  #neededBytes = FRAME_HEADER_BYTES;

  /** Bytes held back because their frame is not whole yet; at most one frame's. */
  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  /** The frames that `chunk` completes. @throws FrameError when the bytes are no frame. */
  push(chunk: Uint8Array): Frame[] {
    this.#chunks.push(chunk);
    this.#pendingBytes += chunk.length;
    const isWaiting = this.#pendingBytes < this.#neededBytes;
    // A peer that sends byte by byte must not have its frame copied for each of them.
    if (isWaiting && this.#chunks.length < CHUNKS_MAX) return [];
    let bytes: Buffer = Buffer.concat(this.#chunks, this.#pendingBytes);
    const frames: Frame[] = [];
    this.#neededBytes = FRAME_HEADER_BYTES;
    while (bytes.length >= FRAME_HEADER_BYTES) {
      const end = frameEnd(bytes);
      if (bytes.length < end) {
        this.#neededBytes = end;
        break;
      }
      frames.push({
        type: bytes.readUInt8(OFFSET.type) as FrameType,
        flags: bytes.readUInt8(OFFSET.flags),
        stream: bytes.readUInt32LE(OFFSET.stream),
        payload: bytes.subarray(FRAME_HEADER_BYTES, end),
      });
      bytes = bytes.subarray(end);
    }
    this.#pendingBytes = bytes.length;
    this.#chunks = bytes.length === 0 ? [] : [bytes];
    return frames;
  }
}

const CHUNKS_MAX = 256;

/** Where the frame that begins the bytes ends. @throws FrameError when its header is none. */
function frameEnd(bytes: Buffer): number {
  const length = bytes.readUInt32LE(OFFSET.length);
  const type = bytes.readUInt8(OFFSET.type);
  const flags = bytes.readUInt8(OFFSET.flags);
  if (length > FRAME_PAYLOAD_BYTES_MAX) throw new FrameError(`frame of ${length} bytes`);
  if (!knownTypes.has(type)) throw new FrameError(`unknown frame type ${type}`);
  if ((flags & ~FLAGS_ALL) !== 0) throw new FrameError(`unknown frame flags ${flags}`);
  if (bytes.readUInt16LE(OFFSET.reserved) !== 0) throw new FrameError('reserved field not zero');
  return FRAME_HEADER_BYTES + length;
}

/** Frames of messages under way: a peer may send them byte by byte, and each has a cost. */
export const MESSAGE_FRAMES_MAX = 16_384;

/** Puts the frames of long messages together again, bounded per stream and over all streams. */
export class MessageAssembler {
  /** By stream, then by type. */
  readonly #parts = new Map<number, Map<FrameType, Uint8Array[]>>();
  #bytes = 0;
  #frames = 0;

  /** The whole payload when `frame` ends its message. @throws FrameError when a bound is passed. */
  push(frame: Frame): Buffer | undefined {
    const ofStream = this.#parts.get(frame.stream);
    const parts = ofStream?.get(frame.type);
    if ((frame.flags & FLAG_MORE) === 0) {
      if (ofStream === undefined || parts === undefined) return frame.payload;
      this.#forget(parts);
      ofStream.delete(frame.type);
      if (ofStream.size === 0) this.#parts.delete(frame.stream);
      return Buffer.concat([...parts, frame.payload]);
    }
    if (frame.payload.length === 0) throw new FrameError('empty frame in a longer message');
    this.#bytes += frame.payload.length;
    this.#frames++;
    if (this.#bytes > 2 * MESSAGE_BYTES_MAX || this.#frames > MESSAGE_FRAMES_MAX)
      throw new FrameError('messages under way are too large');
    // A copy: the payload would keep all that it was read with.
    const part = new Uint8Array(frame.payload);
    if (parts !== undefined) parts.push(part);
    else if (ofStream !== undefined) ofStream.set(frame.type, [part]);
    else this.#parts.set(frame.stream, new Map([[frame.type, [part]]]));
    return undefined;
  }

  /** Forgets what a closed stream had begun. */
  drop(stream: number): void {
    for (const parts of this.#parts.get(stream)?.values() ?? []) this.#forget(parts);
    this.#parts.delete(stream);
  }

  #forget(parts: readonly Uint8Array[]): void {
    for (const part of parts) this.#bytes -= part.length;
    this.#frames -= parts.length;
  }
}
