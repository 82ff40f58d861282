// What the guests of a family may take: counted from VMs, tickets and snapshots as they are, refused
// with the setting's name, and never at the cost of another family.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { readSettings, type Settings } from '../../packages/clone-agent/src/settings.js';
import { Journal, type Standing } from '../../packages/clone-agent/src/store/journal.js';
import type { Snapshot } from '../../packages/clone-agent/src/store/snapshots.js';
import {
  inExcess,
  Limits,
  type Member,
  TICKETS_OF_FAMILY_MAX,
} from '../../packages/clone-agent/src/vms/limits.js';
import { type Ticket, Tickets } from '../../packages/clone-agent/src/vms/tickets.js';

let folder: string;
let tickets: Tickets;
let vms: Member[];
let snapshots: Snapshot[];
let now: number;

beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'sf-limits-'));
  tickets = new Tickets(
    new Journal(path.join(folder, 'journal'), (error) => {
      throw error;
    }),
  );
  vms = [];
  snapshots = [];
  now = 1_000_000;
});
afterEach(() => fs.rmSync(folder, { recursive: true }));

function limitsWith(own: Partial<Settings>): Limits {
  const settings = { ...readSettings(path.join(folder, 'none'), {}), ...own };
  return new Limits({
    settings,
    vms: () => vms,
    tickets: () => tickets.all(),
    forgetTicket: (ticket) => tickets.forget(ticket),
    snapshots: () => snapshots,
    layerPath: (layer) => path.join(folder, layer),
    now: () => now,
  });
}

function vmOf(family: string, standing: Partial<Standing> = {}): Member {
  const vm: Member & { end: Member['end'] } = {
    id: `vm${vms.length + 1}`,
    family,
    pid: undefined,
    descent: { standing: { generation: 0, ordinal: 0, since: now, ...standing } },
    startedAt: now,
    end: undefined,
    finish: (end) => {
      vm.end ??= end;
    },
  };
  vms.push(vm);
  return vm;
}

let ticketNumber = 0;

function ticketOf(vm: Member, granted: number): Ticket {
  const none = () => {};
  const placed = { granted, release: none, elsewhere: [], releaseElsewhere: none };
  const of = { vm: vm.id, family: vm.family, asked: granted };
  return tickets.create(`t${++ticketNumber}`, of, placed);
}

function snapshotOf(family: string, kept: boolean, layer?: { id: string; bytes: number }): void {
  const layers = layer === undefined ? [] : [layer.id];
  if (layer !== undefined) {
    fs.writeFileSync(path.join(folder, layer.id), Buffer.alloc(layer.bytes, 1));
  }
  const file = {
    family: { id: family, image: 'minimal' },
    kept,
    deviceStateBytes: 0,
    pages: { totalPages: 0 },
    objects: [{ name: 'ram', sizeBytes: 0, map: 'ram.map', layers }],
  };
  snapshots.push({ file } as unknown as Snapshot);
}

const refused = (setting: string) =>
  expect.objectContaining({ code: 'SF_LIMIT', message: expect.stringContaining(setting) });

describe('the number of VMs', () => {
  it('of a family is bounded: fewer are granted with the reason, then none', () => {
    const limits = limitsWith({ familyVmsMax: 5 });
    const vm = vmOf('a');
    expect(limits.grant(vm, 3)).toEqual({ clones: 3 });
    vmOf('a');
    expect(limits.grant(vm, 9)).toEqual({
      clones: 3,
      reason: expect.stringContaining('familyVmsMax'),
    });
    ticketOf(vm, 3);
    expect(() => limits.grant(vm, 1)).toThrow(refused('familyVmsMax'));
    expect(limits.grant(vmOf('b'), 4)).toEqual({ clones: 4 });
  });

  it('counts a slot as long as it may be filled, and the VM in it once', () => {
    const limits = limitsWith({ familyVmsMax: 4 });
    const vm = vmOf('a');
    const ticket = ticketOf(vm, 3);
    const clone = vmOf('a');
    ticket.attach(1, clone.id);
    ticket.settle(2, { reason: 'it did not come up' });
    expect(limits.grant(vm, 9).clones).toBe(1);
    clone.finish({ how: 'lost', reason: '' });
    expect(limits.grant(vm, 9).clones).toBe(2);
  });

  it('lets the clones of one fork be as many as a call may ask for', () => {
    expect(limitsWith({}).grant(vmOf('a'), 256)).toEqual({ clones: 256 });
  });

  it('ever made is known from those that are left', () => {
    const limits = limitsWith({ familyClonesMax: 10 });
    const vm = vmOf('a');
    const ticket = ticketOf(vm, 6);
    ticket.use();
    const standings = limits.standings(vm.descent.standing, ticket);
    for (let cloneId = 1; cloneId <= 6; cloneId++) {
      const clone = vmOf('a', standings(cloneId));
      ticket.attach(cloneId, clone.id);
      clone.finish({ how: 'lost', reason: '' });
    }
    // Forgotten, but for the last.
    vms = [vm, vms.at(-1)!];
    expect(limits.grant(vm, 9)).toEqual({
      clones: 4,
      reason: expect.stringContaining('familyClonesMax'),
    });
  });

  it('ever made also counts those that are on their way', () => {
    const limits = limitsWith({});
    const vm = vmOf('a');
    const first = ticketOf(vm, 4);
    const second = ticketOf(vm, 2);
    first.use();
    second.use();
    expect(limits.standings(vm.descent.standing, first)(1).ordinal).toBe(3);
    expect(limits.standings(vm.descent.standing, second)(2).ordinal).toBe(6);
  });
});

describe('a request', () => {
  it('that forks is refused below the last generation; others are not', () => {
    const limits = limitsWith({ familyGenerationsMax: 2 });
    limits.admit(vmOf('a', { generation: 1 }), 'fork');
    const last = vmOf('a', { generation: 2 });
    for (const method of ['fork', 'clone', 'requestTicket', 'createClones'] as const) {
      expect(() => limits.admit(last, method)).toThrow(refused('familyGenerationsMax'));
    }
    for (const method of ['join', 'exit', 'checkpoint', 'info'] as const)
      limits.admit(last, method);
  });

  it('that forks is refused above a rate, which is a family’s own', () => {
    const limits = limitsWith({ familyForksBurst: 3, familyForksPerSecond: 2 });
    const vm = vmOf('a');
    for (let i = 0; i < 3; i++) limits.admit(vmOf('a'), 'fork');
    for (let i = 0; i < 1000; i++) limits.admit(vm, 'info');
    expect(() => limits.admit(vm, 'checkpoint')).toThrow(
      expect.objectContaining({ code: 'SF_LIMIT', details: { retryAfterMs: 500 } }),
    );
    limits.admit(vmOf('b'), 'fork');
    now += 500;
    limits.admit(vm, 'fork');
    expect(() => limits.admit(vm, 'fork')).toThrow(refused('familyForksPerSecond'));
    now += 60_000;
    for (let i = 0; i < 3; i++) limits.admit(vm, 'fork');
    expect(() => limits.admit(vm, 'fork')).toThrow(refused('familyForksPerSecond'));
  });

  it('for a checkpoint is refused when the family keeps enough of them', () => {
    const limits = limitsWith({ familyCheckpointsMax: 2 });
    const vm = vmOf('a');
    snapshotOf('a', true);
    snapshotOf('a', false);
    snapshotOf('b', true);
    limits.admit(vm, 'checkpoint');
    snapshotOf('a', true);
    expect(() => limits.admit(vm, 'checkpoint')).toThrow(refused('familyCheckpointsMax'));
    limits.admit(vm, 'fork');
  });

  it('that freezes is refused when the layers of the family take too much; shared ones count once', () => {
    const limits = limitsWith({ familyLayersBytesMax: 3 * 65_536 });
    const vm = vmOf('a');
    snapshotOf('a', false, { id: 'l1', bytes: 65_536 });
    snapshotOf('a', false, { id: 'l1', bytes: 65_536 });
    snapshotOf('a', true, { id: 'l2', bytes: 65_536 });
    snapshotOf('b', true, { id: 'l3', bytes: 10 * 65_536 });
    fs.symlinkSync(path.join(folder, 'l3'), path.join(folder, 'l4'));
    snapshotOf('a', true);
    limits.admit(vm, 'fork');
    snapshotOf('a', false, { id: 'l5', bytes: 65_536 });
    for (const method of ['fork', 'clone', 'checkpoint'] as const) {
      expect(() => limits.admit(vm, method)).toThrow(refused('familyLayersBytesMax'));
    }
    limits.admit(vm, 'requestTicket');
  });
});

describe('results', () => {
  const settled = (limits: Limits, vm: Member, bytes: number): Ticket => {
    const ticket = ticketOf(vm, 1);
    const clone = vmOf(vm.family);
    ticket.settle(1, limits.result(clone, ticket, Buffer.alloc(bytes)));
    return ticket;
  };

  it('that nobody joins are bounded; those that were joined make room', () => {
    const limits = limitsWith({ familyResultsBytesMax: 100 });
    const vm = vmOf('a');
    const first = settled(limits, vm, 60);
    const second = settled(limits, vm, 60);
    expect(first.slots[0]?.status).toBe('exited');
    expect(second.slots[0]).toMatchObject({
      status: 'lost',
      reason: expect.stringContaining('familyResultsBytesMax'),
    });
    expect(first.read(1)).toHaveLength(60);
    const third = settled(limits, vm, 60);
    expect(third.slots[0]?.status).toBe('exited');
    expect(tickets.find(first.id)).toBeUndefined();
    expect(settled(limits, vmOf('b'), 90).slots[0]?.status).toBe('exited');
  });

  it('of one ticket are not let go for each other', () => {
    const limits = limitsWith({ familyResultsBytesMax: 100 });
    const vm = vmOf('a');
    const ticket = ticketOf(vm, 2);
    ticket.settle(1, limits.result(vmOf('a'), ticket, Buffer.alloc(60)));
    ticket.read(1);
    ticket.settle(2, limits.result(vmOf('a'), ticket, Buffer.alloc(60)));
    expect(ticket.slots.map(({ status }) => status)).toEqual(['exited', 'lost']);
    expect(tickets.find(ticket.id)).toBe(ticket);
  });

  it('of a family that makes tickets without end are forgotten, and nobody else’s', () => {
    const limits = limitsWith({});
    const other = settled(limits, vmOf('b'), 10);
    const vm = vmOf('a');
    const unjoined = settled(limits, vm, 10);
    const joined = settled(limits, vm, 10);
    joined.read(1);
    const waiting = ticketOf(vm, 1);
    for (let i = 0; i < TICKETS_OF_FAMILY_MAX; i++) ticketOf(vm, 1).giveUp('it was killed');
    limits.forgetTickets('a');
    expect(tickets.find(joined.id)).toBeUndefined();
    expect([...tickets.all()]).toHaveLength(TICKETS_OF_FAMILY_MAX + 2);
    for (const kept of [other, unjoined, waiting]) expect(tickets.find(kept.id)).toBe(kept);
  });
});

describe('a lifetime', () => {
  it('of a family ends all its VMs, with the reason, and counts from its beginning', () => {
    const limits = limitsWith({ familyLifetimeMs: 1000 });
    const since = now;
    const first = vmOf('a');
    now += 900;
    const clone = vmOf('a', { since });
    const other = vmOf('b');
    limits.endOutlived();
    limits.admit(clone, 'fork');
    now += 100;
    expect(() => limits.admit(clone, 'fork')).toThrow(refused('familyLifetimeMs'));
    limits.endOutlived();
    for (const vm of [first, clone]) {
      expect(vm.end).toEqual({
        how: 'killed',
        reason: expect.stringContaining('familyLifetimeMs'),
      });
    }
    expect(other.end).toBeUndefined();
  });

  it('of a VM ends that VM', () => {
    const limits = limitsWith({ vmLifetimeMs: 1000 });
    const old = vmOf('a');
    now += 999;
    const young = vmOf('a', { since: now - 999 });
    now += 1;
    limits.endOutlived();
    expect(old.end).toMatchObject({ how: 'killed' });
    expect(young.end).toBeUndefined();
  });

  it('is endless when nobody has set one', () => {
    const limits = limitsWith({});
    const vm = vmOf('a');
    now += 1e12;
    limits.endOutlived();
    limits.admit(vm, 'fork');
    expect(vm.end).toBeUndefined();
  });
});

describe('what is forgotten', () => {
  const members = (families: string) =>
    [...families].map((family, at) => ({ family, name: `${family}${at}` }));
  const forgotten = (families: string, max: number) =>
    inExcess(members(families), max).map(({ name }) => name);

  it('is the oldest of the family that has the most', () => {
    expect(forgotten('abbabbb', 5)).toEqual(['b1', 'b2']);
    expect(forgotten('aaab', 1)).toEqual(['a0', 'a1', 'a2']);
    expect(forgotten('aabb', 4)).toEqual([]);
    expect(forgotten('', 0)).toEqual([]);
  });
});
