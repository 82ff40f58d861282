// What the guests of a family may take: counted from VMs, tickets and snapshots as they are, refused
// with the setting's name, and never at the cost of another family. What the store decides by these
// counts is tested with the store (`test/support/store-behaviour.ts`).

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { cloneMethods } from '../../packages/clone-agent/src/cluster/clone-methods.js';
import { EmbeddedStore } from '../../packages/clone-agent/src/cluster/embedded-store.js';
import {
  type FamilyCounts,
  NOTHING,
} from '../../packages/clone-agent/src/cluster/family-record.js';
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
/** As a host of a cluster: its name, and what it has heard of other hosts' shares. */
let hostName: string | undefined;
let heard: { here: FamilyCounts; elsewhere: FamilyCounts };

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
  hostName = undefined;
  heard = { here: NOTHING, elsewhere: NOTHING };
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
    hostName: () => hostName,
    isMember: (host) => ['alpha', 'beta'].includes(host),
    heardOf: () => heard,
    now: () => now,
  });
}

function vmOf(family: string, standing: Partial<Standing> = {}, ticket?: string): Member {
  const vm: Member & { end: Member['end'] } = {
    id: `vm${vms.length + 1}`,
    family,
    pid: undefined,
    cloneId: ticket === undefined ? 0 : 1,
    descent: {
      standing: { generation: 0, ordinal: 0, since: now, ...standing },
      ...(ticket === undefined ? {} : { ticket }),
    },
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
  const placed = { granted, release: () => {}, elsewhere: [], bytesEach: 1000 };
  const of = { vm: vm.id, family: vm.family, asked: granted };
  return tickets.create(`t${++ticketNumber}`, of, placed);
}

function snapshotOf(
  family: string,
  kept: boolean,
  layer?: { id: string; bytes: number },
  more: object = {},
): void {
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
    ...more,
  };
  snapshots.push({ file } as unknown as Snapshot);
}

const refused = (setting: string) =>
  expect.objectContaining({ code: 'SF_LIMIT', message: expect.stringContaining(setting) });

describe('what a host has of a family', () => {
  it('are VMs: one that was launched, and a slot as long as its clone may run', () => {
    const limits = limitsWith({});
    const vm = vmOf('a');
    expect(limits.counted('a')).toEqual({ ...NOTHING, vms: 1 });
    const ticket = ticketOf(vm, 3);
    expect(limits.counted('a')).toMatchObject({ vms: 1, promised: 3 });
    ticket.use();
    ticket.attach(1, vmOf('a', {}, ticket.id).id);
    expect(limits.counted('a')).toMatchObject({ vms: 4, promised: 0 });
    ticket.settle(2, { reason: 'it did not come up' });
    expect(limits.counted('a')).toMatchObject({ vms: 3 });
    vm.finish({ how: 'lost', reason: '' });
    expect(limits.counted('a')).toMatchObject({ vms: 2 });
    expect(limits.counted('b')).toEqual(NOTHING);
  });

  it('are clones ever made, known from those that are left', () => {
    const limits = limitsWith({});
    const vm = vmOf('a');
    const ticket = ticketOf(vm, 6);
    ticket.use();
    const standings = limits.standings(vm.descent.standing, ticket);
    for (let cloneId = 1; cloneId <= 6; cloneId++) vmOf('a', standings(cloneId), ticket.id);
    expect(limits.counted('a').clones).toBe(6);
    tickets.forget(ticket);
    // Forgotten, but for the last.
    vms = [vm, vms.at(-1)!];
    expect(limits.counted('a').clones).toBe(6);
  });

  it('are also those that are on their way', () => {
    const limits = limitsWith({});
    const vm = vmOf('a');
    const [first, second] = [ticketOf(vm, 4), ticketOf(vm, 2)];
    first.use();
    expect(limits.standings(vm.descent.standing, first)(4).ordinal).toBe(4);
    expect(limits.counted('a')).toMatchObject({ clones: 4, promised: 2 });
    second.use();
    expect(limits.standings(vm.descent.standing, second)(2).ordinal).toBe(6);
    expect(limits.counted('a')).toMatchObject({ clones: 6, promised: 0 });
    // Its parent could not be frozen.
    second.unuse();
    expect(limits.counted('a')).toMatchObject({ clones: 4, promised: 2 });
  });

  it('are those that the store remembers of this host', () => {
    const limits = limitsWith({});
    const vm = vmOf('a');
    heard = { here: { ...NOTHING, clones: 10 }, elsewhere: { ...NOTHING, clones: 100 } };
    expect(limits.counted('a').clones).toBe(10);
    const ticket = ticketOf(vm, 2);
    ticket.use();
    expect(limits.standings(vm.descent.standing, ticket)(2).ordinal).toBe(12);
  });

  it('are no clones of another host’s tickets, as long as that one counts them', () => {
    hostName = 'beta';
    const limits = limitsWith({});
    const part = (home: string) => {
      const of = { id: `t1-${home}`, home, vm: 'vm1', family: 'a' };
      vmOf('a', { ordinal: 7 }, of.id);
      return tickets.takePart(of, [1, 2], { granted: 2, release: () => {} });
    };
    part('alpha').settle(1, { value: Buffer.alloc(10) });
    expect(limits.counted('a')).toEqual(NOTHING);
    // That one is gone.
    part('gamma').settle(1, { value: Buffer.alloc(10) });
    expect(limits.counted('a')).toEqual({ ...NOTHING, vms: 1, resultsBytes: 10 });
  });

  it('are checkpoints, and layers, of which shared ones count once', () => {
    const limits = limitsWith({});
    snapshotOf('a', true);
    snapshotOf('a', false, { id: 'l1', bytes: 65_536 });
    snapshotOf('a', false, { id: 'l1', bytes: 65_536 });
    snapshotOf('a', true, { id: 'l2', bytes: 65_536 });
    snapshotOf('b', true, { id: 'l3', bytes: 10 * 65_536 });
    fs.symlinkSync(path.join(folder, 'l3'), path.join(folder, 'l4'));
    snapshotOf('a', false, undefined, { objects: [{ layers: ['l4'] }] });
    expect(limits.counted('a')).toEqual({ ...NOTHING, checkpoints: 2, layersBytes: 2 * 65_536 });
  });

  it('are no layers that lie on another host', () => {
    const limits = limitsWith({});
    const origins = [{ host: 'alpha', layers: ['l1'] }];
    snapshotOf('a', false, { id: 'l1', bytes: 65_536 }, { origins });
    snapshotOf('a', false, { id: 'l2', bytes: 65_536 });
    expect(limits.counted('a').layersBytes).toBe(65_536);
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

  it('takes what it is for, of a family of which this host has so much', () => {
    const limits = limitsWith({});
    const vm = vmOf('a');
    const fork = limits.request(vm, 'fork', 3);
    expect(fork).toMatchObject({ family: 'a', clones: 3, checkpoints: 0, freezes: true });
    expect(limits.request(vm, 'requestTicket', 3)).toMatchObject({ clones: 3, freezes: false });
    expect(limits.request(vm, 'clone')).toMatchObject({ clones: 0, freezes: true });
    expect(limits.request(vm, 'checkpoint')).toMatchObject({ checkpoints: 1, freezes: true });
    expect(limits.request(vm, 'createClones')).toMatchObject({ checkpoints: 0, freezes: false });
    ticketOf(vm, 2);
    expect(fork.counted()).toMatchObject({ vms: 1, promised: 2 });
  });

  it('for as many clones as a call may ask for is granted', async () => {
    const request = limitsWith({}).request(vmOf('a'), 'fork', 256);
    const asked = { ticket: 't1', asked: 256, bytesEach: 1, placing: {}, hereSlots: 256 };
    const reserved = await new EmbeddedStore().reserve({ ...asked, ofFamily: request });
    expect(reserved).toEqual({ here: 256, elsewhere: [] });
  });
});

describe('a clone on another host', () => {
  it('stands as it would here: in its generation, since its family began', () => {
    const limits = limitsWith({ familyGenerationsMax: 3, familyLifetimeMs: 1000 });
    const since = now;
    const vm = vmOf('a', { generation: 1 });
    const ticket = ticketOf(vm, 2);
    ticket.use();
    const here = limits.standings(vm.descent.standing, ticket);
    // What the other host is told, and makes of it.
    const told = cloneMethods.startClones.params.shape.standing.parse(here(0));
    hostName = 'beta';
    const of = { id: 't1-alpha', home: 'alpha', family: 'a' };
    const part = tickets.takePart(of, [2], { granted: 1, release: () => {} });
    now += 900;
    const there = limits.standings(told, part)(2);
    expect(there).toEqual(here(2));
    const clone = vmOf('a', there, of.id);
    limits.admit(clone, 'fork');
    expect(() => limits.admit(vmOf('a', { ...there, generation: 3 }), 'fork')).toThrow(
      refused('familyGenerationsMax'),
    );
    now += 100;
    expect(there.since).toBe(since);
    limits.endOutlived();
    expect(clone.end).toMatchObject({
      how: 'killed',
      reason: expect.stringContaining('familyLifetimeMs'),
    });
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

  it('make no room by what has none: clones that still run are not forgotten', () => {
    const limits = limitsWith({ familyResultsBytesMax: 100 });
    const vm = vmOf('a');
    const [running, half, unused] = [ticketOf(vm, 1), ticketOf(vm, 2), ticketOf(vm, 1)];
    running.use();
    half.use();
    half.settle(1, limits.result(vm, half, Buffer.alloc(60)));
    half.read(1);
    hostName = 'beta';
    const of = { id: 't1-alpha', home: 'alpha', family: 'a' };
    const part = tickets.takePart(of, [1], { granted: 1, release: () => {} });
    part.settle(1, { reason: 'home has not heard of it' });
    expect(settled(limits, vm, 90).slots[0]).toMatchObject({ status: 'lost' });
    for (const kept of [running, half, unused, part]) expect(tickets.find(kept.id)).toBe(kept);
  });

  it('that other hosts keep count, as far as they have told', () => {
    const limits = limitsWith({ familyResultsBytesMax: 100 });
    heard = { here: NOTHING, elsewhere: { ...NOTHING, resultsBytes: 50 } };
    expect(settled(limits, vmOf('a'), 60).slots[0]).toMatchObject({ status: 'lost' });
    expect(settled(limits, vmOf('a'), 50).slots[0]).toMatchObject({ status: 'exited' });
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
