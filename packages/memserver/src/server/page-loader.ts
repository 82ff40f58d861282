// Reads a page and says in what form it goes: without data, packed, or as it is. Keeps the last one
// until it is put into a datagram: what did not fit behind others is first in the next. Called by
// `outgoing.ts`.

import { pageKey } from '../page-key.js';
import { PAGE_BYTES } from '../page-map.js';
import { PACKED_HEAD_BYTES, PAGE_KIND, type PageKind } from '../wire/datagrams.js';
import { PACKED_BYTES_MAX, packPage } from '../wire/packing.js';

const ZEROS = Buffer.alloc(PAGE_BYTES);
const NONE = -1;

/** Where the server's pages come from: the files of layers. */
export interface PageSource {
  /** Puts a page at `offset`; `false` when it does not hold the page, or can't read it. */
  readPage(layer: number, page: number, target: Buffer, offset: number): boolean;
  /** Whether the page is not here, and will be when it is wanted. */
  isAwaited?(layer: number, page: number): boolean;
}

export class PageLoader {
  /** The page as it is. */
  readonly page = Buffer.alloc(PAGE_BYTES);
  kind: PageKind = PAGE_KIND.absent;
  /** What its data take in a datagram. */
  bytes = 0;
  readonly #source: PageSource;
  readonly #packed = Buffer.alloc(PACKED_HEAD_BYTES + PACKED_BYTES_MAX);
  #key = NONE;
  #room = 0;

  constructor(source: PageSource) {
    this.#source = source;
  }

  /** `room`: what a datagram has for data at most. It is packed when it then fits, and only then. */
  load(layer: number, page: number, room: number): void {
    const key = pageKey(layer, page);
    if (key === this.#key && room === this.#room) return;
    this.#key = key;
    this.#room = room;
    this.kind = this.#read(layer, page);
    this.bytes = this.kind === PAGE_KIND.data ? PAGE_BYTES : 0;
    const roomPacked = Math.min(room - PACKED_HEAD_BYTES, PACKED_BYTES_MAX);
    if (this.kind !== PAGE_KIND.data || roomPacked <= 0) return;
    const packed = this.#packed.subarray(PACKED_HEAD_BYTES);
    const packedBytes = packPage(this.page, packed, roomPacked);
    if (packedBytes === 0) return;
    this.#packed.writeUInt16LE(packedBytes);
    this.kind = PAGE_KIND.packed;
    this.bytes = PACKED_HEAD_BYTES + packedBytes;
  }

  /** Puts its data at `offset`, and forgets the page. */
  putInto(target: Buffer, offset: number): void {
    this.#key = NONE;
    const from = this.kind === PAGE_KIND.packed ? this.#packed : this.page;
    from.copy(target, offset, 0, this.bytes);
  }

  #read(layer: number, page: number): PageKind {
    if (!this.#source.readPage(layer, page, this.page, 0)) return PAGE_KIND.absent;
    return this.page.equals(ZEROS) ? PAGE_KIND.zero : PAGE_KIND.data;
  }
}
