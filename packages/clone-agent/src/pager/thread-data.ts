// What the main thread of the pager hands to its worker threads when it starts them, and the words
// that they send back. Types only.

import type { MessagePort } from 'node:worker_threads';

export interface ThreadData {
  readonly fuseDescriptor: number;
  readonly thread: number;
  readonly port: MessagePort;
  readonly board: SharedArrayBuffer;
  readonly stores: SharedArrayBuffer;
  readonly histogram: SharedArrayBuffer;
}

export type ThreadWord =
  /** A request that this thread does not answer; `startedAt` is ms since the epoch. */
  | { readonly kind: 'request'; readonly request: Uint8Array; readonly startedAt: number }
  /** The mount has gone. */
  | { readonly kind: 'gone' }
  /** The notifications of `tell` were written. */
  | { readonly kind: 'told'; readonly id: number }
  | { readonly kind: 'complaint'; readonly message: string };
