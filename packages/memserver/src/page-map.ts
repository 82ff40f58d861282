// Where each page of an object is: in which layer of its stack, or nowhere (a page of zeros).
// Written by the freeze, read by the pager; `docs/internals/formats.md` draws the file.

export const PAGE_BYTES = 4096;
/** The page is all zero: no layer holds it. */
export const ZERO_PAGE = 0;
export const LAYERS_MAX = 65_535;

const MAGIC = 0x4d504653; // "SFPM"
const VERSION = 1;
const HEADER_BYTES = 20;
const OFFSET = { magic: 0, version: 4, pages: 8, layers: 12, reserved: 16 } as const;
const PAGES_MAX = 2 ** 28; // 1 TiB

/** Thrown by `decodePageMap`, and nothing else is. */
export class PageMapError extends Error {
  override readonly name = 'PageMapError';
}

/** Per page: ZERO_PAGE, or k for the k-th layer of the object's stack, counted from 1. */
export interface PageMap {
  readonly entries: Uint16Array;
  readonly layerCount: number;
}

export function encodePageMap(map: PageMap): Buffer {
  const encoded = Buffer.allocUnsafe(HEADER_BYTES + map.entries.length * 2);
  encoded.writeUInt32LE(MAGIC, OFFSET.magic);
  encoded.writeUInt32LE(VERSION, OFFSET.version);
  encoded.writeUInt32LE(map.entries.length, OFFSET.pages);
  encoded.writeUInt32LE(map.layerCount, OFFSET.layers);
  encoded.writeUInt32LE(0, OFFSET.reserved);
  const { buffer, byteOffset, byteLength } = map.entries;
  encoded.set(new Uint8Array(buffer, byteOffset, byteLength), HEADER_BYTES);
  return encoded;
}

/** @throws PageMapError when the bytes are not exactly a page map. */
export function decodePageMap(encoded: Buffer): PageMap {
  if (encoded.length < HEADER_BYTES) throw new PageMapError('shorter than its header');
  if (encoded.readUInt32LE(OFFSET.magic) !== MAGIC) throw new PageMapError('not a page map');
  const version = encoded.readUInt32LE(OFFSET.version);
  if (version !== VERSION) throw new PageMapError(`page map of version ${version}`);
  const pages = encoded.readUInt32LE(OFFSET.pages);
  const layerCount = encoded.readUInt32LE(OFFSET.layers);
  if (pages > PAGES_MAX || layerCount > LAYERS_MAX) throw new PageMapError('page map too large');
  if (encoded.readUInt32LE(OFFSET.reserved) !== 0)
    throw new PageMapError('reserved field not zero');
  if (encoded.length !== HEADER_BYTES + pages * 2) throw new PageMapError('page map cut short');
  const entries = new Uint16Array(pages);
  Buffer.from(entries.buffer).set(encoded.subarray(HEADER_BYTES));
  for (const entry of entries) {
    if (entry > layerCount) throw new PageMapError(`page in layer ${entry} of ${layerCount}`);
  }
  return { entries, layerCount };
}
