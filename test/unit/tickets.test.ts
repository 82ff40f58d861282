// Tickets: each slot settles once, a ticket serves one fork, and room is given back once.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Journal } from '../../packages/clone-agent/src/store/journal.js';
import {
  KILLED_BY_TICKET,
  TICKET_LIFETIME_MS,
  TICKET_VALUES_BYTES_MAX,
  Tickets,
} from '../../packages/clone-agent/src/vms/tickets.js';
import type { RawEnd, Vm } from '../../packages/clone-agent/src/vms/vm.js';

const never = new AbortController().signal;

let folder: string;
let journal: Journal;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'sf-tickets-'));
  journal = new Journal(folder, (error) => {
    throw error;
  });
});
afterEach(() => rmSync(folder, { recursive: true }));

describe('a ticket', () => {
  const release = vi.fn();
  const roomHere = (granted: number) => {
    return { granted, release, elsewhere: [], bytesEach: 1000 };
  };
  const create = (granted: number) =>
    new Tickets(journal).create('t1', { vm: 'vm1', asked: 8 }, roomHere(granted));

  beforeEach(() => {
    vi.useFakeTimers();
    release.mockClear();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('has as many slots as there is room', () => {
    expect(create(3).info()).toMatchObject({ asked: 8, clones: 3, used: false });
  });

  it('settles each slot once: the first word counts', async () => {
    const ticket = create(2);
    ticket.settle(1, { value: Buffer.from('first') });
    ticket.settle(1, { reason: 'late' });
    ticket.settle(1, { value: Buffer.from('second') });
    ticket.settle(7, { reason: 'no slot of this ticket' });
    expect(ticket.slots[0]).toMatchObject({ status: 'exited', value: Buffer.from('first') });
    expect(ticket.done).toBe(false);
    ticket.settle(2, { reason: 'crashed' });
    await ticket.settled(undefined, never);
    expect(ticket.slots[1]).toMatchObject({ status: 'lost', reason: 'crashed' });
  });

  it('takes values up to a bound together', () => {
    const ticket = create(2);
    ticket.settle(1, { value: Buffer.alloc(TICKET_VALUES_BYTES_MAX) });
    ticket.settle(2, { value: Buffer.alloc(1) });
    expect(ticket.slots.map(({ status }) => status)).toEqual(['exited', 'lost']);
  });

  it('serves one fork, or another when the first did not come off', () => {
    const ticket = create(1);
    ticket.use();
    expect(() => ticket.use()).toThrow(expect.objectContaining({ code: 'SF_TICKET_USED' }));
    ticket.unuse();
    ticket.use();
  });

  it('gives its room back when nobody used it, once', () => {
    const ticket = create(3);
    vi.advanceTimersByTime(TICKET_LIFETIME_MS);
    expect(release.mock.calls).toEqual([[3]]);
    ticket.giveUp('again');
    expect(release).toHaveBeenCalledTimes(1);
    expect(ticket.slots.map(({ status }) => status)).toEqual(['lost', 'lost', 'lost']);
  });

  it('that is in use does not run out', () => {
    const ticket = create(1);
    ticket.use();
    vi.advanceTimersByTime(2 * TICKET_LIFETIME_MS);
    expect(release).not.toHaveBeenCalled();
    expect(ticket.slots[0]?.status).toBe('running');
  });

  it('is waited for until a time, or until the caller gives up', async () => {
    const ticket = create(1);
    const waiting = ticket.settled(50, never);
    await vi.advanceTimersByTimeAsync(50);
    await waiting;
    expect(ticket.done).toBe(false);
    const caller = new AbortController();
    const given = ticket.settled(undefined, caller.signal);
    caller.abort();
    await expect(given).rejects.toMatchObject({ code: 'SF_ABORTED' });
  });

  it('says of a clone that has ended why, and that it is lost no second time', () => {
    const tickets = new Tickets(journal);
    const ticket = tickets.create('t1', { vm: 'vm1', asked: 3 }, roomHere(3));
    ticket.used = true;
    const ended = (cloneId: number, end: RawEnd) =>
      ({ id: `vm${cloneId}`, descent: { ticket: 't1', cloneId }, end }) as Vm;
    tickets.settleAfter([
      ended(1, { how: 'lost', reason: 'it ended while no agent ran' }),
      ended(2, KILLED_BY_TICKET),
    ]);
    expect(ticket.slots.map(({ reason }) => reason)).toEqual([
      'it ended while no agent ran',
      'its ticket was killed',
      'it did not come up: the agent died before',
    ]);
  });

  it('is found by its owner and by nobody else', () => {
    const tickets = new Tickets(journal);
    const { id } = tickets.create('t1', { vm: 'vm1', asked: 1 }, roomHere(1));
    expect(tickets.get(id, 'vm1').id).toBe(id);
    expect(() => tickets.get(id, 'vm2')).toThrow(
      expect.objectContaining({ code: 'SF_TICKET_NOT_FOUND' }),
    );
    tickets.abandonUnusedOf('vm1');
    expect(tickets.get(id).done).toBe(true);
  });
});
