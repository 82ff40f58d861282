// How pages are cut to fit datagrams: the room for a datagram's body on a path, and the pieces that
// a page is sent in when it does not fit whole. `docs/internals/multicast.md` has the figures for
// usual paths. Called by server and receiver; knows no sockets.

import { PAGE_BYTES } from '../page-map.js';
import { PAGES_HEAD_BYTES, PIECE_HEAD_BYTES, PIECES_MAX, RUN_BYTES } from './datagrams.js';
import { DATAGRAM_BYTES_MAX, HEADER_BYTES, TAG_BYTES } from './sealing.js';

const UDP_HEADER_BYTES = 8;
const IP_HEADER_BYTES = { 4: 20, 6: 40 } as const;
/** What a datagram costs a link beside itself: Ethernet with preamble and gap (38), IPv4, UDP. */
export const WIRE_OVERHEAD_BYTES = 66;
export const BODY_BYTES_MIN = Math.ceil(PAGE_BYTES / PIECES_MAX) + PIECE_HEAD_BYTES;

/** The room for a body in a datagram that is not fragmented on a path of this MTU. */
export function bodyBytesFor(mtuBytes: number, ipVersion: 4 | 6 = 4): number {
  const datagramBytes = mtuBytes - IP_HEADER_BYTES[ipVersion] - UDP_HEADER_BYTES;
  return Math.min(datagramBytes, DATAGRAM_BYTES_MAX) - HEADER_BYTES - TAG_BYTES;
}

/** What every path is taken to carry; in pieces, where a datagram must be cut. */
const USUAL_MTU_BYTES = 1500;
/** More would make pages wait for each other, and no Ethernet takes it. */
const LARGE_MTU_BYTES_MAX = 9000;

/** How large the bodies of a server's datagrams may be. */
export interface BodySizes {
  /** Always comes. */
  readonly usual: number;
  /** What the server's own link carries, when whole pages fit: to be tried out on the path. */
  readonly large: number | undefined;
}

/** Of a host whose interface has this MTU. */
export function bodySizesFor(mtuBytes: number): BodySizes {
  const usual = bodyBytesFor(Math.min(mtuBytes, USUAL_MTU_BYTES));
  const large = bodyBytesFor(Math.min(mtuBytes, LARGE_MTU_BYTES_MAX));
  return { usual, large: pieceCountFor(large) === 1 ? large : undefined };
}

/** Length of a datagram with such a body. */
export function datagramBytesFor(bodyBytes: number): number {
  return HEADER_BYTES + bodyBytes + TAG_BYTES;
}

/** 1: whole pages fit, as in jumbo frames. */
export function pieceCountFor(bodyBytes: number): number {
  if (bodyBytes >= PAGES_HEAD_BYTES + RUN_BYTES + PAGE_BYTES) return 1;
  return Math.ceil(PAGE_BYTES / (bodyBytes - PIECE_HEAD_BYTES));
}

/** The bits of all pieces of a page. */
export function allPieces(pieceCount: number): number {
  return (1 << pieceCount) - 1;
}
