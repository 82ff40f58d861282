// `@snowfork/sdk/guest`: what a program inside a Snowfork VM calls. Only gathers; `calls.ts` and
// `map.ts` do the work. Runs on Node 18 and later, and starts fast: no zod in here, as Node under
// emulation is slow enough.

import {
  checkpointParent,
  clone,
  createClones,
  exit,
  fork,
  info,
  join,
  kill,
  onFork,
  requestTicket,
} from './calls.js';
import { map, mapSettled } from './map.js';

export { type ErrorCode, SnowforkError } from '../api/errors.js';
export { VALUE_BYTES_MAX } from '../api/port.js';
export type { Checkpoint, Fork, Info, Ticket } from './answers.js';
export * from './calls.js';
export type { ForkHook, ForkNotice } from './identity.js';
export * from './map.js';

/** All calls under one name: `import { sf } from '@snowfork/sdk/guest'`. */
export const sf = {
  fork,
  requestTicket,
  clone,
  checkpointParent,
  createClones,
  exit,
  join,
  kill,
  info,
  onFork,
  map,
  mapSettled,
} as const;
