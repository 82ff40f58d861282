// Tells the process that fetches pages of replicas what this host's neighbours want of them, by that
// process's control socket. What can't be told is not kept: who waits asks again, and it is told
// again. One for all replicas that the process fills: it takes few connections. `page-service.ts` has it.

import net from 'node:net';
import type { WantedPage } from '../server/waiting-pages.js';
import { URGENCY } from '../wire/datagrams.js';

/** Of lines that the other process has not read: then it has enough to do. */
const UNREAD_BYTES_MAX = 256 * 1024;

export interface WantedOf {
  /** The other process's name of the snapshot. */
  readonly snapshot: string;
  /** The snapshot's key, in base64: by it the other process knows whom to ask. */
  readonly key: string;
}

/** First page and count. */
export type Run = [number, number];

export class WantedLine {
  readonly #path: string;
  #socket: net.Socket | undefined;

  /** `path`: the control socket of a process that knows the command `want`. */
  constructor(path: string) {
    this.#path = path;
  }

  /** Never throws. */
  tell({ snapshot, key }: WantedOf, pages: readonly WantedPage[]): void {
    const socket = this.#connected();
    if (socket.writableLength > UNREAD_BYTES_MAX) return;
    const layers = new Set(pages.map(({ layer }) => layer));
    for (const layer of layers) {
      const of = pages.filter((page) => page.layer === layer);
      const demand = runsOf(of.filter(({ urgency }) => urgency === URGENCY.demand));
      const prefetch = runsOf(of.filter(({ urgency }) => urgency === URGENCY.prefetch));
      const args = { snapshot, key, layer, demand, prefetch };
      socket.write(`${JSON.stringify({ execute: 'want', arguments: args })}\n`);
    }
  }

  close(): void {
    this.#socket?.destroy();
    this.#socket = undefined;
  }

  #connected(): net.Socket {
    if (this.#socket !== undefined) return this.#socket;
    const socket = net.connect(this.#path);
    const forget = () => {
      socket.destroy();
      if (this.#socket === socket) this.#socket = undefined;
    };
    socket.on('error', forget).on('close', forget).resume();
    this.#socket = socket;
    return socket;
  }
}

/** In the order in which they were asked for. */
function runsOf(pages: readonly WantedPage[]): Run[] {
  const runs: Run[] = [];
  for (const { page } of pages) {
    const last = runs.at(-1);
    if (last !== undefined && last[0] + last[1] === page) last[1]++;
    else runs.push([page, 1]);
  }
  return runs;
}
