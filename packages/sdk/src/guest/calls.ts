// The calls of a program inside a Snowfork VM: each is one question to the agent of the host (or,
// `join`, a few), on one connection that is opened by the first. Keeps no other state. Exported by
// `index.ts`, and `map.ts` is built upon it.
//
// They are SnowFlock's (Lagar-Cavilla et al., EuroSys 2009): sf_request_ticket, sf_clone,
// sf_checkpoint_parent, sf_create_clones, sf_exit, sf_join, sf_kill.

import { SnowforkError } from '../api/errors.js';
import { decodeValue, encodeValue } from '../api/value.js';
import {
  assertCloneCount,
  assertTimeout,
  type Checkpoint,
  type Fork,
  type GuestSlot,
  type Info,
  idOf,
  readBytes,
  readCheckpoint,
  readFork,
  readInfo,
  readSlots,
  readTicket,
  type Ticket,
} from './answers.js';
import { GuestClient } from './client.js';
import { type ForkHook, Identity } from './identity.js';

/** What became of one clone. */
export type CloneResult<T = unknown> =
  | { readonly id: number; readonly status: 'fulfilled'; readonly value: T }
  | { readonly id: number; readonly status: 'rejected'; readonly reason: SnowforkError };

export interface JoinOptions {
  /** Clones that have not ended by then are `rejected` with SF_TIMEOUT; they go on. */
  readonly timeoutMs?: number | undefined;
  /** Gives up: `join` rejects with SF_ABORTED. The clones go on. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Results that are fetched at once. `sf-guestd` cuts off a program that leaves more than three of the
 * largest values unread.
 */
const RESULTS_AT_ONCE = 2;

/** Where clones are to run, in a cluster; without it they are spread over its hosts. */
export interface Placing {
  /** Only on these hosts. */
  readonly hosts?: readonly string[] | undefined;
  /** `spread`: as evenly as there is room; `pack`: on as few hosts as possible, this one first. */
  readonly place?: 'spread' | 'pack' | undefined;
}

const identity = new Identity();
const client = new GuestClient((notice) => identity.take(notice));

/**
 * Forks this VM: one call, and it returns in the parent with id 0 and in each clone with its id, 1 to
 * `ticket.clones`. There may be fewer clones than asked for; `ticket.reason` says why.
 *
 * A clone belongs to the program that forked: if that ends without `exit`, the clone is lost.
 * When the call returns, random generators of this process are renewed and hooks of `onFork` have run,
 * in parent and clones.
 *
 * @param clones whole number from 1 to 256
 * @param placing where the clones are to run, in a cluster
 * @throws SnowforkError SF_BAD_REQUEST, SF_NO_ROOM, SF_LAYERS_FULL, SF_CLONE_FAILED,
 * SF_IDENTITY_FAILED, SF_AGENT_UNREACHABLE
 * @example
 * const { id, ticket } = await sf.fork(8);
 * if (id > 0) await sf.exit(work(id));
 * const results = await sf.join(ticket);
 */
export async function fork(clones: number, placing: Placing = {}): Promise<Fork> {
  assertCloneCount(clones);
  return await forking('fork', { clones, ...readPlacing(placing) }, readFork);
}

/**
 * Asks for room for clones, without forking yet: SnowFlock's `sf_request_ticket`.
 * @param clones whole number from 1 to 256
 * @throws SnowforkError SF_BAD_REQUEST, SF_NO_ROOM, SF_AGENT_UNREACHABLE
 */
export async function requestTicket(clones: number, placing: Placing = {}): Promise<Ticket> {
  assertCloneCount(clones);
  return readTicket(await client.call('requestTicket', { clones, ...readPlacing(placing) }));
}

/**
 * Forks this VM into the clones of a ticket, and returns in all of them: 0 in the parent, 1 to
 * `ticket.clones` in the clones (SnowFlock's `sf_clone`).
 * @throws SnowforkError SF_TICKET_NOT_FOUND, SF_TICKET_USED, SF_LAYERS_FULL, SF_AGENT_UNREACHABLE
 */
export async function clone(ticket: Ticket | string): Promise<number> {
  const id = idOf(ticket, 'id', 'a ticket');
  return (await forking('clone', { ticket: id }, readFork)).id;
}

/**
 * Keeps this VM as it is now, to be cloned later and any number of times, also after it has ended
 * (SnowFlock's `sf_checkpoint_parent`). Returns here with `restored: false` and id 0, and in every
 * clone made of the checkpoint with `restored: true` and the clone's id.
 * @throws SnowforkError SF_LAYERS_FULL, SF_AGENT_UNREACHABLE
 */
export async function checkpointParent(): Promise<Checkpoint> {
  return await forking('checkpoint', {}, readCheckpoint);
}

/** What is undefined is left out. */
function readPlacing({ hosts, place }: Placing): object {
  return { ...(hosts === undefined ? {} : { hosts }), ...(place === undefined ? {} : { place }) };
}

/** Resolves when all that the fork copied is renewed, here and in every clone. */
async function forking<T extends { readonly id: number }>(
  method: string,
  params: object,
  read: (answer: unknown) => T,
): Promise<T> {
  const renewal = identity.begin();
  try {
    const answer = read(await client.call(method, params));
    await renewal.finish(answer.id);
    return answer;
  } finally {
    renewal.end();
  }
}

/**
 * Registers what this program has to renew after a fork, as its seeds, tokens and connections. Hooks
 * run in the order of their registration, one after the other, in the parent (`role` is `parent`, `id`
 * 0) and in each clone, whoever asked for the fork, and before a call that forks resolves. A clone in
 * which one fails is lost; in the parent the call that forks rejects with SF_IDENTITY_FAILED.
 * @returns a function that takes the hook back
 * @example
 * sf.onFork(({ role }) => { if (role === 'clone') pool = connectToDatabase(); });
 */
export function onFork(hook: ForkHook): () => void {
  const takeBack = identity.addHook(hook);
  client.watch();
  return takeBack;
}

/**
 * Starts the clones of a ticket from a checkpoint (SnowFlock's `sf_create_clones`). They go on where
 * `checkpointParent` was called; this VM goes on here, with the ticket to join.
 * @throws SnowforkError SF_SNAPSHOT_NOT_FOUND, SF_TICKET_NOT_FOUND, SF_TICKET_USED, SF_AGENT_UNREACHABLE
 */
export async function createClones(
  checkpoint: Pick<Checkpoint, 'checkpoint'> | string,
  ticket: Ticket | string,
): Promise<Ticket> {
  const params = {
    checkpoint: idOf(checkpoint, 'checkpoint', 'a checkpoint'),
    ticket: idOf(ticket, 'id', 'a ticket'),
  };
  return readTicket(await client.call('createClones', params));
}

/**
 * Ends this VM, at once and whole, and hands `value` to whoever joins. Never returns; it throws, and
 * the VM goes on, only when there is something wrong with the value or the way to the agent.
 *
 * @param value anything that MessagePack can say, up to VALUE_BYTES_MAX when encoded
 * @throws SnowforkError SF_VALUE_TOO_LARGE, SF_BAD_REQUEST (no MessagePack form), SF_AGENT_UNREACHABLE
 */
export async function exit(value?: unknown): Promise<never> {
  const encoded = encodeValue(value);
  await client.call('exit', { value: encoded });
  // The agent has taken the value and ends this VM; nothing of this program runs on.
  return new Promise<never>(() => setInterval(() => {}, 1000));
}

/**
 * Waits until all clones of a ticket have ended, and returns one settled result for each, in the
 * order of their ids: what it handed to `exit`, or why it was lost (SF_VM_GONE).
 * @throws SnowforkError SF_TICKET_NOT_FOUND, SF_ABORTED, SF_AGENT_UNREACHABLE, SF_BAD_REQUEST
 */
export async function join<T = unknown>(
  ticket: Ticket | string,
  options: JoinOptions = {},
): Promise<CloneResult<T>[]> {
  const { timeoutMs, signal } = options;
  const id = idOf(ticket, 'id', 'a ticket');
  assertTimeout(timeoutMs);
  const params = timeoutMs === undefined ? { ticket: id } : { ticket: id, timeoutMs };
  const slots = readSlots(await client.call('join', params, signal));
  const results = new Array<CloneResult<T>>(slots.length);
  let next = 0;
  const fetchSome = async () => {
    while (next < slots.length) {
      const at = next;
      next += 1;
      results[at] = await slotResult<T>(id, slots[at]!, options);
    }
  };
  await Promise.all(Array.from({ length: RESULTS_AT_ONCE }, fetchSome));
  return results;
}

async function slotResult<T>(
  ticket: string,
  { cloneId, status, reason }: GuestSlot,
  { timeoutMs, signal }: JoinOptions,
): Promise<CloneResult<T>> {
  const details = { ticket, cloneId };
  if (status === 'running') {
    const message = `clone ${cloneId} still runs after ${timeoutMs} ms`;
    return rejected(cloneId, new SnowforkError('SF_TIMEOUT', message, { details }));
  }
  if (status === 'lost') {
    const message = `clone ${cloneId} was lost: ${reason ?? 'no reason is known'}`;
    return rejected(cloneId, new SnowforkError('SF_VM_GONE', message, { details }));
  }
  try {
    const bytes = readBytes(await client.call('result', { ticket, cloneId }, signal));
    return { id: cloneId, status: 'fulfilled', value: decodeValue(bytes) as T };
  } catch (error) {
    const known = SnowforkError.from(error);
    // What concerns the way to the agent concerns all; the rest concerns this clone's value.
    if (known.code === 'SF_ABORTED' || known.code === 'SF_AGENT_UNREACHABLE') throw known;
    return rejected(cloneId, known);
  }
}

function rejected(id: number, reason: SnowforkError): CloneResult<never> {
  return { id, status: 'rejected', reason };
}

/**
 * Ends all clones of a ticket; their results are lost.
 * @throws SnowforkError SF_TICKET_NOT_FOUND, SF_AGENT_UNREACHABLE
 */
export async function kill(ticket: Ticket | string): Promise<void> {
  await client.call('kill', { ticket: idOf(ticket, 'id', 'a ticket') });
}

/**
 * Who am I: this VM, its id within its ticket (0: nobody's clone), its family and its parent.
 * @throws SnowforkError SF_AGENT_UNREACHABLE when this is no Snowfork VM
 */
export async function info(): Promise<Info> {
  return readInfo(await client.call('info', {}));
}
