// Looks through MessagePack before it is decoded: its bytes are a stranger's. A few bytes can announce
// millions of items, lie about lengths, nest without end, or name an extension that makes a decoder
// do something; what passes here decodes into a bounded number of plain values. Called by `value.ts`.

/** Items of one value: numbers, strings, arrays, map keys and so on, at all depths together. */
export const VALUE_ITEMS_MAX = 1_048_576;
/** Arrays and maps in one another. */
export const VALUE_DEPTH_MAX = 256;

/** Types of extensions: a date (MessagePack's own), and `undefined` as msgpackr writes it. */
const EXTENSION_DATE = -1;
const EXTENSION_UNDEFINED = 0;

/** Per type from 0xc0 on: bytes of the length that follows it, and of a value without a length. */
const LENGTH_BYTES: Readonly<Record<number, number>> = {
  196: 1, // bin 8, 16, 32
  197: 2,
  198: 4,
  199: 1, // ext 8, 16, 32
  200: 2,
  201: 4,
  217: 1, // str 8, 16, 32
  218: 2,
  219: 4,
  220: 2, // array 16, 32
  221: 4,
  222: 2, // map 16, 32
  223: 4,
};
const FIXED_BYTES: Readonly<Record<number, number>> = {
  192: 0, // nil, false, true
  194: 0,
  195: 0,
  202: 4, // float 32, 64
  203: 8,
  204: 1, // uint
  205: 2,
  206: 4,
  207: 8,
  208: 1, // int
  209: 2,
  210: 4,
  211: 8,
};

/**
 * The number of items. @throws Error that says what is wrong: no MessagePack, more than one value,
 * too many items, too deep, or an extension that values do not have.
 */
export function checkMsgpack(encoded: Uint8Array): number {
  const bytes = Buffer.from(encoded.buffer, encoded.byteOffset, encoded.length);
  /** Items that the containers around still announce, the innermost last. */
  const open: number[] = [];
  let items = 0;
  let announced = 1;
  let at = 0;
  for (let left = 1; left > 0 || open.length > 0; ) {
    if (left === 0) {
      left = open.pop()!;
      continue;
    }
    left--;
    items++;
    const { end, children } = readItem(bytes, at);
    at = end;
    if (children === 0) continue;
    announced += children;
    if (announced > VALUE_ITEMS_MAX) throw new Error(`more than ${VALUE_ITEMS_MAX} items`);
    if (open.length >= VALUE_DEPTH_MAX) throw new Error(`nested more than ${VALUE_DEPTH_MAX} deep`);
    open.push(left);
    left = children;
  }
  if (at !== bytes.length) throw new Error(`${bytes.length - at} bytes after the value`);
  return items;
}

interface Item {
  /** Where the next item begins. */
  readonly end: number;
  /** Items that it announces: of an array, or keys and values of a map. */
  readonly children: number;
}

/** @throws Error */
function readItem(bytes: Buffer, at: number): Item {
  const type = bytes[at];
  if (type === undefined) throw new Error('it is cut short');
  if (type <= 0x7f || type >= 0xe0) return { end: at + 1, children: 0 };
  if (type <= 0x8f) return container(at + 1, 2 * (type & 0x0f));
  if (type <= 0x9f) return container(at + 1, type & 0x0f);
  if (type <= 0xbf) return content(bytes, at + 1, type & 0x1f);
  const fixedBytes = FIXED_BYTES[type];
  if (fixedBytes !== undefined) return content(bytes, at + 1, fixedBytes);
  if (type >= 0xd4 && type <= 0xd8) return extension(bytes, at + 1, 1 << (type - 0xd4));
  const lengthBytes = LENGTH_BYTES[type];
  if (lengthBytes === undefined) throw new Error(`the type 0x${type.toString(16)}`);
  const begin = at + 1 + lengthBytes;
  if (begin > bytes.length) throw new Error('it is cut short');
  const length = bytes.readUIntBE(at + 1, lengthBytes);
  if (type >= 0xde) return container(begin, 2 * length);
  if (type >= 0xdc) return container(begin, length);
  if (type >= 0xc7 && type <= 0xc9) return extension(bytes, begin, length);
  return content(bytes, begin, length);
}

function container(end: number, children: number): Item {
  return { end, children };
}

function content(bytes: Buffer, begin: number, length: number): Item {
  if (begin + length > bytes.length) throw new Error('it is cut short');
  return { end: begin + length, children: 0 };
}

function extension(bytes: Buffer, begin: number, length: number): Item {
  if (begin + 1 > bytes.length) throw new Error('it is cut short');
  const type = bytes.readInt8(begin);
  const isKnown = type === EXTENSION_DATE || (type === EXTENSION_UNDEFINED && length === 1);
  if (!isKnown || length > 12) throw new Error(`an extension of type ${type}`);
  return content(bytes, begin + 1, length);
}
