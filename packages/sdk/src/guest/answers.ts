// What a program hands over and what the agent answers, checked by hand: the schemas of
// `../api/guest.ts` would bring all of zod into every program of the guest. Called by `index.ts`.

import { SnowforkError } from '../api/errors.js';
import type { GuestResult } from '../api/guest.js';

/** CLONES_MAX of `../api/schemas.ts`, which can't be imported without zod. */
const CLONES_MAX = 256;
/** Largest delay that timers take, 24.8 days. */
const TIMEOUT_MS_MAX = 2 ** 31 - 1;
const ID_LENGTH_MAX = 64;

/** Room for `clones` ≤ `asked` clones; `reason` says why fewer. */
export type Ticket = GuestResult<'requestTicket'>;
export type Info = GuestResult<'info'>;
export type Checkpoint = GuestResult<'checkpoint'>;
export type Fork = GuestResult<'fork'>;
export type GuestSlot = GuestResult<'join'>['slots'][number];

export function assertCloneCount(count: unknown): asserts count is number {
  if (Number.isInteger(count) && (count as number) >= 1 && (count as number) <= CLONES_MAX) return;
  const given = typeof count === 'string' ? `the string '${count}'` : String(count);
  throw new SnowforkError(
    'SF_BAD_REQUEST',
    `the number of clones is a whole number from 1 to ${CLONES_MAX}, not ${given}`,
  );
}

export function assertTimeout(timeoutMs: unknown): void {
  if (timeoutMs === undefined) return;
  if (typeof timeoutMs === 'number' && timeoutMs >= 0 && timeoutMs <= TIMEOUT_MS_MAX) return;
  throw new SnowforkError(
    'SF_BAD_REQUEST',
    `timeoutMs is a number from 0 to ${TIMEOUT_MS_MAX}, not ${String(timeoutMs)}`,
  );
}

/** The id of a ticket or checkpoint that is given by its id, or as what `field` belongs to. */
export function idOf(given: unknown, field: 'id' | 'checkpoint', what: string): string {
  const id = isRecord(given) ? given[field] : given;
  if (typeof id === 'string' && id.length >= 1 && id.length <= ID_LENGTH_MAX) return id;
  throw new SnowforkError('SF_BAD_REQUEST', `${what} is asked for, not ${String(given)}`);
}

export function readTicket(answer: unknown): Ticket {
  return isTicket(answer) ? answer : refuse('ticket');
}

export function readFork(answer: unknown): Fork {
  const good = isRecord(answer) && isCloneId(answer.id) && isTicket(answer.ticket);
  return good ? (answer as Fork) : refuse('fork');
}

export function readCheckpoint(answer: unknown): Checkpoint {
  const good =
    isRecord(answer) &&
    typeof answer.checkpoint === 'string' &&
    isCloneId(answer.id) &&
    typeof answer.restored === 'boolean';
  return good ? (answer as Checkpoint) : refuse('checkpoint');
}

export function readInfo(answer: unknown): Info {
  const good =
    isRecord(answer) &&
    typeof answer.vm === 'string' &&
    typeof answer.family === 'string' &&
    isCloneId(answer.id);
  return good ? (answer as Info) : refuse('info');
}

export function readSlots(answer: unknown): GuestSlot[] {
  const good = isRecord(answer) && Array.isArray(answer.slots) && answer.slots.every(isSlot);
  return good ? (answer.slots as GuestSlot[]) : refuse('join');
}

export function readBytes(answer: unknown): Uint8Array {
  return answer instanceof Uint8Array ? answer : refuse('result');
}

function refuse(method: string): never {
  throw new SnowforkError(
    'SF_INTERNAL',
    `the agent's answer to ${method} is not understood: this SDK and the agent are of versions ` +
      'that do not fit together',
  );
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

function isCloneId(value: unknown): boolean {
  return Number.isInteger(value) && (value as number) >= 0;
}

function isTicket(value: unknown): value is Ticket {
  return isRecord(value) && typeof value.id === 'string' && isCloneId(value.clones);
}

function isSlot(value: unknown): boolean {
  if (!isRecord(value) || !isCloneId(value.cloneId)) return false;
  return value.status === 'running' || value.status === 'exited' || value.status === 'lost';
}
