// Gathers the pages that a receiver asks for into requests: neighbours become runs, and a request
// never needs more than a small datagram. Sends nothing by itself.

import {
  DATAGRAM_PAGES_MAX,
  REQUEST_HEAD_BYTES,
  REQUEST_RUN_BYTES,
  type RequestRun,
} from '../wire/datagrams.js';

/** So that a request fits on any path (IPv6 promises 1,280 bytes). */
export const REQUEST_BYTES_MAX = 1116;
export const REQUEST_RUNS_MAX = Math.floor(
  (REQUEST_BYTES_MAX - REQUEST_HEAD_BYTES) / REQUEST_RUN_BYTES,
);

export class RequestRuns {
  #runs: RequestRun[] = [];
  #pages = 0;

  get isEmpty(): boolean {
    return this.#runs.length === 0;
  }

  get isFull(): boolean {
    return this.#runs.length === REQUEST_RUNS_MAX || this.#pages === DATAGRAM_PAGES_MAX;
  }

  add(layer: number, page: number, missing: { pieces: number; pieceCount: number }): void {
    this.#pages++;
    const last = this.#runs.at(-1);
    const { pieces, pieceCount } = missing;
    if (
      last !== undefined &&
      last.layer === layer &&
      last.page + last.count === page &&
      last.pieces === pieces &&
      last.pieceCount === pieceCount
    ) {
      last.count++;
      return;
    }
    this.#runs.push({ layer, page, count: 1, pieces, pieceCount });
  }

  take(): readonly RequestRun[] {
    const runs = this.#runs;
    this.#runs = [];
    this.#pages = 0;
    return runs;
  }
}
