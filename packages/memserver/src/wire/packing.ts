// LZ4 for pages on the wire: memory packs to about a third, and most pages then fit a datagram of
// Ethernet whole (docs/internals/multicast.md has figures). By the reference library, called
// directly: it gives up as soon as a page would not fit, and nothing is allocated. Called by server and
// receiver.

import koffi from 'koffi';
import { PAGE_BYTES } from '../page-map.js';

/** One that packs to more goes as it is: unpacking costs more than the bytes. */
export const PACKED_BYTES_MAX = PAGE_BYTES - 512;
/** Of Debian's `liblz4-1`. */
const LIBRARY = 'liblz4.so.1';
const ACCELERATION = 1;

const lz4 = load();
const compress = lz4.func(
  'int LZ4_compress_fast_extState(void *state, void *from, void *into, int bytes, int room, int acceleration)',
);
const decompress = lz4.func('int LZ4_decompress_safe(void *from, void *into, int bytes, int room)');
/** Of this thread: it serves one page at a time. */
const state = Buffer.alloc(lz4.func('int LZ4_sizeofState()')());

/** Packs a page into at most `room` bytes; returns how many, 0 when it does not fit. */
export function packPage(page: Buffer, into: Buffer, room: number): number {
  if (page.length < PAGE_BYTES || into.length < room)
    throw new RangeError('no room to pack a page');
  return compress(state, page, into, PAGE_BYTES, room, ACCELERATION);
}

/** `false` when the bytes are not exactly one page, packed; then `into` means nothing. */
export function unpackPage(packed: Buffer, into: Buffer): boolean {
  if (into.length < PAGE_BYTES) throw new RangeError('no room for a page');
  return decompress(packed, into, packed.length, PAGE_BYTES) === PAGE_BYTES;
}

function load(): ReturnType<typeof koffi.load> {
  try {
    return koffi.load(LIBRARY);
  } catch (error) {
    throw new Error(`${LIBRARY} is not there: install liblz4 (Debian: liblz4-1)`, { cause: error });
  }
}
