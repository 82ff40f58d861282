// What each way to deliver a file is given, and what it has to do.

import type { NetHost } from '../support/agent-parts.js';

/** Prepares everything; `start` is what is timed: it resolves when all receivers have the file. */
export type Deliver = (
  of: DeliverOptions,
) => Promise<{ readonly files: readonly string[]; start(): Promise<unknown> }>;

export interface DeliverOptions {
  readonly sender: NetHost;
  readonly receivers: readonly NetHost[];
  /** In memory, empty. */
  readonly folder: string;
  readonly file: string;
  readonly fileBytes: number;
  readonly linkBitsPerSecond: number;
}
