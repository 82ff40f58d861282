// Asks for a page in the name of a receiver of another thread of this process: by its socket, as the
// sender that it is, so that the answer comes to it. For the thread that is the first to know that
// somebody waits. The receiver is told after that; it asks again when nothing comes.

import { AskingState } from '../receiver/asking-state.js';
import type { Address } from '../server/known-receivers.js';
import {
  encodeRequest,
  REQUEST_HEAD_BYTES,
  REQUEST_RUN_BYTES,
  URGENCY,
} from '../wire/datagrams.js';
import { DATAGRAM, HEADER_BYTES, Sealer, TAG_BYTES } from '../wire/sealing.js';
import { Message } from './system-socket.js';

/** Of a request for one page. */
export const ASKED_BYTES = HEADER_BYTES + REQUEST_HEAD_BYTES + REQUEST_RUN_BYTES + TAG_BYTES;

/** All that another thread needs; can be sent to it. */
export interface AskingTerms {
  /** Of the socket that the receiver asks by; it stays open for as long as anybody has the terms. */
  readonly descriptor: number;
  /** Of those that may be asked: the state says which is. */
  readonly addresses: readonly Address[];
  readonly keyId: number;
  readonly senderId: number;
  readonly senderKey: Uint8Array;
  /** Of its `AskingState`. */
  readonly memory: SharedArrayBuffer;
}

export class PageAsker {
  readonly #descriptor: number;
  readonly #addresses: readonly Address[];
  readonly #state: AskingState;
  readonly #sealer: Sealer;
  readonly #message = new Message(ASKED_BYTES);

  constructor(of: AskingTerms) {
    const { descriptor, addresses, keyId, senderId, senderKey, memory } = of;
    this.#descriptor = descriptor;
    this.#addresses = addresses;
    this.#state = new AskingState(memory);
    const key = { id: keyId, senderKey: () => Buffer.from(senderKey) };
    this.#sealer = new Sealer(key, senderId, this.#state);
  }

  /** Whether the request has left: once, whole pages of demand. */
  ask(layer: number, page: number): boolean {
    const { delivery, seen, roundTripUs, addressIndex } = this.#state;
    const to = this.#addresses[addressIndex];
    if (to === undefined) return false;
    const runs = [{ layer, page, count: 1, pieces: 0, pieceCount: 0 }];
    const body = encodeRequest({ urgency: URGENCY.demand, delivery, seen, roundTripUs, runs });
    const lengthBytes = this.#sealer.sealInto(this.#message.bytes, DATAGRAM.request, body);
    const message = { start: 0, lengthBytes, to, segmentBytes: 0 };
    return this.#message.send(this.#descriptor, message);
  }
}
