// What a receiver shares with other threads of its process, so that these can ask in its name
// (`net/page-asker.ts`): how it wants its pages now, and the count of datagrams that it has sealed, which
// none may use twice. The receiver alone writes, but for that count.
//
//   0                 8           12       16               20             24
//  +-----------------+-----------+--------+----------------+--------------+
//  | datagrams (u64) | delivery  | seen   | round trip, µs | whom it asks |
//  +-----------------+-----------+--------+----------------+--------------+

import { CHANNEL, type Channel } from '../wire/datagrams.js';
import type { DatagramCounter } from '../wire/sealing.js';

const BYTES = 24;
const DELIVERY = 2;
const SEEN = 3;
const ROUND_TRIP_US = 4;
const ADDRESS = 5;

export class AskingState implements DatagramCounter {
  readonly memory: SharedArrayBuffer;
  readonly #count: BigInt64Array;
  readonly #words: Uint32Array;

  /** `memory`: of another thread's. */
  constructor(memory = new SharedArrayBuffer(BYTES)) {
    this.memory = memory;
    this.#count = new BigInt64Array(memory, 0, 1);
    this.#words = new Uint32Array(memory);
  }

  get taken(): number {
    return Number(Atomics.load(this.#count, 0));
  }

  take(): number {
    return Number(Atomics.add(this.#count, 0, 1n)) + 1;
  }

  get delivery(): Channel {
    return this.#words[DELIVERY] === CHANNEL.group ? CHANNEL.group : CHANNEL.unicast;
  }

  get seen(): number {
    return this.#words[SEEN]!;
  }

  get roundTripUs(): number {
    return this.#words[ROUND_TRIP_US]!;
  }

  /** Of the addresses that may be asked. */
  get addressIndex(): number {
    return this.#words[ADDRESS]!;
  }

  set addressIndex(index: number) {
    this.#words[ADDRESS] = index;
  }

  set(delivery: Channel, seen: number, roundTripUs: number): void {
    this.#words[DELIVERY] = delivery;
    this.#words[SEEN] = seen;
    this.#words[ROUND_TRIP_US] = roundTripUs;
  }
}
