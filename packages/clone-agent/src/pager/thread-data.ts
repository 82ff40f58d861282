// Which threads the pager has, what its main thread hands to the others when it starts them, and the
// words that they send back.

import type { MessagePort } from 'node:worker_threads';

/** Two, so that a READ of a megabyte stops nobody; a third gave nothing on 2 cores. */
export const SERVING_THREADS = 2;
export const STORE_THREAD = SERVING_THREADS;
export const MAIN_THREAD = SERVING_THREADS + 1;
/** Indices of threads are 0 to THREADS − 1. */
export const THREADS = SERVING_THREADS + 2;

export interface ThreadData {
  readonly fuseDescriptor: number;
  readonly runFolder: string;
  readonly thread: number;
  readonly port: MessagePort;
  readonly board: SharedArrayBuffer;
  readonly stores: SharedArrayBuffer;
  readonly histogram: SharedArrayBuffer;
}

export type ThreadWord =
  /** A request that this thread does not answer; `startedAt` is ms since the epoch. */
  | {
      readonly kind: 'request';
      readonly request: Uint8Array;
      readonly startedAt: number;
      /** Where it is kept until it is answered (`taken.ts`). */
      readonly slot: number | undefined;
      /** It is a READ of a page of another host, which was asked for (`early-asks.ts`). */
      readonly isAsked: boolean;
    }
  /** The mount has gone. */
  | { readonly kind: 'gone' }
  /** The notifications of `tell` were written. */
  | { readonly kind: 'told'; readonly id: number }
  /** Of these pages, which are likely to be touched next, some lie on another host. */
  | {
      readonly kind: 'absent';
      readonly nodeid: number;
      readonly firstPage: number;
      readonly count: number;
    }
  | { readonly kind: 'complaint'; readonly message: string };
