// Hosts that die, hang, are taken out or come back, as the others see it in the cluster's store: three
// members of etcd with TLS. By loopback: needs no root.

import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { Placing } from '@snowfork/sdk/api';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import type {
  Holdings,
  HostReservation,
  HostRoom,
  ReserveRequest,
  StoredTicket,
} from '../../packages/clone-agent/src/cluster/cluster-store.js';
import type { EtcdOptions, EtcdStore } from '../../packages/clone-agent/src/cluster/etcd.js';
import { EtcdLink } from '../../packages/clone-agent/src/cluster/etcd-link.js';
import { EtcdMembers } from '../support/etcd-members.js';
import { eventually } from '../support/eventually.js';
import { familyRequest } from '../support/store-behaviour.js';
import type { StoreHostStart } from './store-host-main.js';

const HOST_MAIN = fileURLToPath(new URL('store-host-main.ts', import.meta.url));
/** So long that no host is lost for being slow. */
const HOST_TIMEOUT_MS = 60_000;
/** Of hosts that die, or whose lease is taken from them, which they notice by a third of it. */
const SHORT_TIMEOUT_MS = 10_000;
/** Longer than is waited for here. */
const ENDLESS_TIMEOUT_MS = 3_600_000;
const NO_HOLDINGS: Holdings = { families: new Map(), unsettled: new Set(), tickets: [] };
/** So many that some would go to each member. */
const RENEWALS = 20;
const ROOM: HostRoom = { roomBytes: 8000, slots: 8, vms: 0 };
let members: EtcdMembers;
let stores: EtcdStore[];
let children: ChildProcess[];

beforeAll(async () => {
  members = await EtcdMembers.start(['one', 'two', 'three']);
  stores = [];
  children = [];
});
afterEach(async () => {
  for (const child of children) child.kill('SIGKILL');
  await Promise.all(stores.map((store) => store.close()));
  stores = [];
  children = [];
  members.forgetAll();
});
afterAll(() => members.close());

function selfOf(name: string) {
  return { id: `id of ${name}`, name, address: '127.0.0.1', port: 1, version: '1', startedAt: 1 };
}

async function open(name: string, more: Partial<EtcdOptions> = {}): Promise<EtcdStore> {
  const store = await members.open(name, { hostTimeoutMs: HOST_TIMEOUT_MS, ...more });
  stores.push(store);
  return store;
}

async function join(name: string, more: Partial<EtcdOptions> = {}): Promise<EtcdStore> {
  const store = await open(name, more);
  await store.join(selfOf(name), ROOM);
  return store;
}

/** As a process of its own. */
async function joinApart(name: string, hostTimeoutMs: number): Promise<ChildProcess> {
  const child = fork(HOST_MAIN, { execArgv: ['--import', 'tsx'] });
  children.push(child);
  const access = await members.access(name);
  const of = { access, self: selfOf(name), room: ROOM, hostTimeoutMs };
  child.send(of satisfies StoreHostStart);
  const said = await Promise.race([once(child, 'message'), once(child, 'exit')]);
  expect(said).toEqual(['joined', undefined]);
  return child;
}

let lastTicket = 0;
function ask(here: string, asked: number, hosts: string[], hereSlots = 0): ReserveRequest {
  const placing: Placing = { hosts };
  const ticket = `t${++lastTicket}-${here}`;
  return { ticket, asked, bytesEach: 1000, placing, hereSlots };
}

function namesIn(store: EtcdStore): string[] {
  return store.hosts().map(({ name }) => name);
}

/** What a host hears from now on. */
function hearing(store: EtcdStore) {
  const heard = { lost: [] as string[], reservations: [] as readonly HostReservation[] };
  store.onLost((host) => heard.lost.push(host));
  store.onReservations((reservations) => {
    heard.reservations = reservations;
  });
  return heard;
}

for (const signal of ['SIGKILL', 'SIGSTOP'] as const) {
  test(`a host that gets ${signal} is lost, and the room that its tickets have is free`, async () => {
    const alpha = await join('alpha');
    const heard = hearing(alpha);
    const beta = await joinApart('beta', SHORT_TIMEOUT_MS);
    await eventually(() => expect(namesIn(alpha)).toEqual(['alpha', 'beta']));
    beta.send(ask('beta', 8, ['alpha']));
    await once(beta, 'message');
    await eventually(() => expect(heard.reservations.map(({ slots }) => slots)).toEqual([8]));
    expect(alpha.hosts()[0]?.room.slots).toBe(0);
    beta.kill(signal);
    await eventually(() => expect(heard).toEqual({ lost: ['beta'], reservations: [] }));
    expect(namesIn(alpha)).toEqual(['alpha']);
    await alpha.publishRoom(ROOM);
    const gamma = await join('gamma');
    const { elsewhere } = await gamma.reserve(ask('gamma', 8, ['alpha']));
    expect(elsewhere).toEqual([{ host: 'alpha', slots: 8 }]);
    // Its tickets are not there again when it is.
    await join('beta');
    await eventually(() => expect(namesIn(alpha)).toEqual(['alpha', 'beta', 'gamma']));
    expect(alpha.tickets().map(({ home }) => home)).toEqual(['gamma']);
  });
}

test('what a ticket has of a host that is lost goes when its home says so', async () => {
  const alpha = await join('alpha');
  const heard = hearing(alpha);
  const beta = await joinApart('beta', SHORT_TIMEOUT_MS);
  await eventually(() => expect(namesIn(alpha)).toEqual(['alpha', 'beta']));
  await alpha.reserve(ask('alpha', 5, ['beta']));
  beta.kill('SIGKILL');
  await eventually(() => expect(heard.lost).toEqual(['beta']));
  await alpha.publish(NO_HOLDINGS);
  const again = await open('beta');
  const kept = hearing(again);
  await again.join(selfOf('beta'), ROOM);
  await eventually(() => expect(kept.reservations).toEqual([]));
  await eventually(() => expect(alpha.hosts()[1]?.room).toEqual(ROOM));
});

test('room, ticket and what the family takes are one change', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  await eventually(() => expect(namesIn(alpha)).toEqual(['alpha', 'beta']));
  await beta.check();
  const of = ask('alpha', 3, ['beta']);
  await alpha.reserve({ ...of, ofFamily: familyRequest({ clones: 3 }) });
  const link = new EtcdLink(await members.access('alpha'));
  const { kvs } = await link.call((space) => space.getAll().exec());
  link.close();
  const keys = [`ticket/${of.ticket}`, 'room/beta', 'family/vm1-alpha'];
  const changed = kvs.filter(({ key }) => keys.includes(key.toString()));
  expect(changed).toHaveLength(keys.length);
  expect(new Set(changed.map(({ mod_revision: revision }) => revision)).size).toBe(1);
});

test('any host sees what each ticket has where, until its home settles it', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const heard = hearing(beta);
  const of = { ...ask('alpha', 5, ['alpha', 'beta'], 2), vm: 'vm1-alpha', family: 'vm1-alpha' };
  expect(await alpha.reserve(of)).toEqual({ here: 2, elsewhere: [{ host: 'beta', slots: 3 }] });
  const ticket: StoredTicket = {
    ...{ id: of.ticket, home: 'alpha', vm: 'vm1-alpha', family: 'vm1-alpha', bytesEach: 1000 },
    slots: { alpha: { open: 2, running: 0 }, beta: { open: 3, running: 0 } },
  };
  await eventually(() => expect(beta.tickets()).toEqual([ticket]));
  expect(heard.reservations).toMatchObject([{ ticket: of.ticket, home: 'alpha', slots: 3 }]);
  const used = {
    ...ticket,
    slots: { alpha: { open: 0, running: 2 }, beta: { open: 1, running: 2 } },
  };
  await alpha.publish({ ...NO_HOLDINGS, tickets: [used] });
  await eventually(() => expect(beta.tickets()).toEqual([used]));
  expect(heard.reservations).toMatchObject([{ slots: 1 }]);
  await alpha.publish(NO_HOLDINGS);
  await eventually(() => expect(beta.tickets()).toEqual([]));
  expect(heard.reservations).toEqual([]);
});

test('a ticket goes on with its home, and not without it', async () => {
  const short = { hostTimeoutMs: SHORT_TIMEOUT_MS };
  const [alpha, beta] = [await join('alpha', short), await join('beta')];
  const heard = hearing(beta);
  await alpha.reserve(ask('alpha', 3, ['beta']));
  await eventually(() => expect(beta.tickets()).toHaveLength(1));
  const tickets = beta.tickets();
  // Taken for lost by mistake: what hung on its lease is gone, until it is told again.
  const link = new EtcdLink(await members.access('alpha'));
  const { kvs } = await link.call((space) => space.get('host/alpha').exec());
  await link.call(({ leaseClient }) => leaseClient.leaseRevoke({ ID: kvs[0]!.lease }));
  link.close();
  await eventually(() => expect(heard).toEqual({ lost: ['alpha'], reservations: [] }));
  await eventually(async () => {
    await alpha.publish({ ...NO_HOLDINGS, tickets });
    expect(beta.tickets()).toEqual(tickets);
  });
  // Its agent was started again: all that hangs on the lease of the one before is to go.
  const next = await join('alpha');
  await next.publish({ ...NO_HOLDINGS, tickets });
  await alpha.close();
  await beta.check();
  expect(beta.tickets()).toEqual(tickets);
  stores = [beta];
  await next.close();
  await eventually(() => expect(heard.reservations).toEqual([]));
  // And is not there again when the host is.
  await join('alpha');
  await eventually(() => expect(namesIn(beta)).toEqual(['alpha', 'beta']));
  expect(beta.tickets()).toEqual([]);
});

test('a host that has just joined can be named at once', async () => {
  const alpha = await join('alpha');
  for (let count = 1; count <= 5; count++) {
    const beta = await join('beta');
    const { elsewhere } = await alpha.reserve(ask('alpha', 1, ['beta']));
    expect(elsewhere).toEqual([{ host: 'beta', slots: 1 }]);
    await beta.close();
    await eventually(() => expect(alpha.hosts()).toHaveLength(1));
  }
  await expect(alpha.reserve(ask('alpha', 1, ['beta']))).rejects.toMatchObject({
    code: 'SF_HOST_NOT_FOUND',
  });
});

test('a ticket of a host that was taken out of the cluster has nothing any more', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const heard = hearing(beta);
  await alpha.reserve(ask('alpha', 3, ['beta']));
  await eventually(() => expect(heard.reservations).toHaveLength(1));
  await beta.remove('alpha');
  await eventually(() => expect(heard.reservations).toEqual([]));
  expect(beta.tickets()).toEqual([]);
});

test('a reservation of which its home knows nothing, as it died before it did, runs out', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const heard = hearing(alpha);
  const reserving = beta.reserve(ask('beta', 3, ['alpha']));
  // What is not handed out yet stands.
  await beta.publish(NO_HOLDINGS);
  await reserving;
  await eventually(() => expect(heard.reservations).toHaveLength(1));
  // Told again and again: its own word of the ticket may come late.
  await eventually(async () => {
    await beta.publish(NO_HOLDINGS);
    expect(heard.reservations).toEqual([]);
  });
  expect(heard.lost).toEqual([]);
});

test('what a family may have and the room for it are had in one, or not at all', async () => {
  const names = ['alpha', 'beta'];
  const hosts = await Promise.all(names.map((name) => join(name)));
  await eventually(() => {
    for (const host of hosts) expect(namesIn(host)).toEqual(names);
  });
  const limits = { familyVmsMax: 6 };
  const ofFamily = familyRequest({ clones: 5, limits, counted: { vms: 0 } });
  const [one, other] = await Promise.all(
    hosts.map(async (store, index) => {
      const of = ask(names[index]!, 5, [names[1 - index]!]);
      return (await store.reserve({ ...of, ofFamily })).elsewhere[0]!.slots;
    }),
  );
  expect(one! + other!).toBe(6);
  // There is no room but for three more; the family is told of no more than those.
  const more = { ...limits, familyVmsMax: 100 };
  const asked = familyRequest({ clones: 50, limits: more, counted: { promised: one!, vms: 0 } });
  const { elsewhere } = await hosts[0]!.reserve({ ...ask('alpha', 50, ['beta']), ofFamily: asked });
  expect(elsewhere).toEqual([{ host: 'beta', slots: ROOM.slots - one! }]);
  await expect
    .poll(() => hosts[0]!.heardOf('vm1-alpha').here.promised)
    .toBe(one! + elsewhere[0]!.slots);
});

test('room that is given back can be promised again as soon as it is told', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const heard = hearing(alpha);
  const all = ask('beta', 8, ['alpha']);
  expect((await beta.reserve(all)).elsewhere).toEqual([{ host: 'alpha', slots: 8 }]);
  const none = await beta.reserve(ask('beta', 1, ['alpha']));
  expect(none).toEqual({ here: 0, elsewhere: [], reason: expect.stringContaining('0 of 1') });
  await beta.publish(NO_HOLDINGS);
  await eventually(() => expect(heard.reservations).toEqual([]));
  await alpha.publishRoom(ROOM);
  const { elsewhere } = await beta.reserve(ask('beta', 8, ['alpha']));
  expect(elsewhere).toEqual([{ host: 'alpha', slots: 8 }]);
});

test('a host that was taken for lost by mistake is there again', async () => {
  const short = { hostTimeoutMs: SHORT_TIMEOUT_MS };
  const [alpha, beta] = [await join('alpha'), await join('beta', short)];
  const heard = hearing(alpha);
  await beta.publishRoom({ ...ROOM, vms: 5 });
  await eventually(() => expect(alpha.hosts()[1]?.room.vms).toBe(5));
  const link = new EtcdLink(await members.access('alpha'));
  const leaseOfBeta = async () => {
    return (await link.call((space) => space.get('host/beta').exec())).kvs[0]?.lease;
  };
  const ID = (await leaseOfBeta())!;
  await link.call(({ leaseClient }) => leaseClient.leaseRevoke({ ID }));
  await eventually(() => expect(heard.lost).toEqual(['beta']));
  await eventually(() =>
    expect(alpha.hosts()[1]).toMatchObject({ name: 'beta', room: { vms: 5 } }),
  );
  // By one lease more, which it keeps.
  const lease = await leaseOfBeta();
  for (let look = 0; look < 20; look++) expect(await leaseOfBeta()).toBe(lease);
  link.close();
});

test('a host that leaves is gone at once', async () => {
  const hostTimeoutMs = ENDLESS_TIMEOUT_MS;
  const [alpha, beta] = [await join('alpha'), await join('beta', { hostTimeoutMs })];
  const heard = hearing(alpha);
  await beta.close();
  await eventually(() => expect(heard.lost).toEqual(['beta']));
});

test('a host that was taken out of the cluster does not come back', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const heard = hearing(alpha);
  await eventually(() => expect(namesIn(alpha)).toEqual(['alpha', 'beta']));
  await alpha.remove('beta');
  await eventually(() => expect(heard.lost).toEqual(['beta']));
  await beta.publishRoom({ ...ROOM, vms: 1 });
  const again = await open('beta');
  await expect(again.join(selfOf('beta'), ROOM)).rejects.toMatchObject({ code: 'SF_PERMISSION' });
  await expect(alpha.remove('beta')).rejects.toMatchObject({
    code: 'SF_HOST_NOT_FOUND',
    message: expect.stringMatching(/beta .* alpha/),
  });
  // Another may have its name.
  const other = await open('beta');
  await other.join({ ...selfOf('beta'), id: 'another' }, ROOM);
  await eventually(() => expect(alpha.hosts()[1]?.id).toBe('another'));
  expect(namesIn(alpha)).toEqual(['alpha', 'beta']);
});

test('two hosts do not have one name', async () => {
  await join('alpha');
  const other = await open('alpha');
  await expect(other.join({ ...selfOf('alpha'), id: 'another' }, ROOM)).rejects.toMatchObject({
    code: 'SF_BAD_REQUEST',
  });
});

test('another agent of a host is told of, and no other word of a host', async () => {
  const alpha = await join('alpha');
  const started: string[] = [];
  alpha.onStarted((host) => started.push(host));
  const first = await join('beta', { hostTimeoutMs: ENDLESS_TIMEOUT_MS });
  await eventually(() => expect(started).toEqual(['beta']));
  await first.publishRoom({ ...ROOM, vms: 5 });
  await eventually(() => expect(alpha.hosts()[1]?.room.vms).toBe(5));
  const next = await open('beta');
  await next.join({ ...selfOf('beta'), startedAt: 2 }, ROOM);
  await eventually(() => expect(started).toEqual(['beta', 'beta']));
});

test('a host that was taken out is known for it, until it joins anew', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  await eventually(() => expect(namesIn(alpha)).toEqual(['alpha', 'beta']));
  await alpha.remove('beta');
  await eventually(() => expect(namesIn(alpha)).toEqual(['alpha']));
  // Also to an agent that never heard of it.
  const gamma = await join('gamma');
  const said = () =>
    [alpha, gamma].map((store) => ['beta', 'delta'].map((n) => store.isRemoved(n)));
  expect(said()).toEqual([
    [true, false],
    [true, false],
  ]);
  await beta.close();
  const anew = await open('beta');
  await anew.join({ ...selfOf('beta'), id: 'another' }, ROOM);
  await eventually(() => {
    expect(said()).toEqual([
      [false, false],
      [false, false],
    ]);
  });
});

test('an agent that starts again hears what was promised of its host', async () => {
  const alpha = await join('alpha');
  await joinApart('beta', ENDLESS_TIMEOUT_MS).then((beta) => {
    beta.kill('SIGKILL');
  });
  await eventually(() => expect(namesIn(alpha)).toEqual(['alpha', 'beta']));
  await alpha.reserve(ask('alpha', 2, ['beta']));
  const beta = await open('beta');
  const heard = hearing(beta);
  await beta.join(selfOf('beta'), ROOM);
  expect(heard.reservations).toMatchObject([{ home: 'alpha', slots: 2, bytesEach: 1000 }]);
});

test('reservers at once never get more than there is, and all get their turn', async () => {
  const names = ['alpha', 'beta', 'gamma'];
  const hosts = await Promise.all(names.map((name) => join(name)));
  await eventually(() => {
    for (const host of hosts) expect(namesIn(host)).toEqual(names);
  });
  const heard = hosts.map(hearing);
  const answers = await Promise.all(
    hosts.flatMap((store, index) => {
      const others = names.filter((_, of) => of !== index);
      return [1, 2, 3, 4].map((asked) => store.reserve(ask(names[index]!, asked, others)));
    }),
  );
  const granted = answers.flatMap((answer) => answer.elsewhere);
  // 30 are asked for, of 24.
  for (const [index, host] of names.entries()) {
    const slots = granted.filter((of) => of.host === host).reduce((sum, of) => sum + of.slots, 0);
    expect(slots).toBe(ROOM.slots);
    await eventually(() => {
      const kept = heard[index]!.reservations.reduce((sum, of) => sum + of.slots, 0);
      expect(kept).toBe(slots);
    });
    await eventually(() => expect(hosts[0]!.hosts()[index]!.room.slots).toBe(0));
  }
});

test('a member that dies is not missed, whichever it is', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const heard = hearing(beta);
  for (const [index, member] of ['one', 'two', 'three'].entries()) {
    await members.stop(member);
    const { elsewhere } = await alpha.reserve(ask('alpha', 1, ['beta']));
    expect(elsewhere).toEqual([{ host: 'beta', slots: 1 }]);
    await eventually(() => expect(heard.reservations).toHaveLength(index + 1));
    await members.start(member);
  }
  expect(heard.lost).toEqual([]);
});

test('a member that hangs is not missed by those that ask again and again', async () => {
  await members.stop('one');
  const hung = await members.start('one');
  const link = new EtcdLink(await members.access('alpha'));
  const { ID } = await link.call(({ leaseClient }) => leaseClient.leaseGrant({ TTL: 600 }));
  process.kill(hung.pid, 'SIGSTOP');
  try {
    // Each goes to any member; that it may be the one that led makes no difference.
    for (let count = 0; count < RENEWALS; count++) {
      expect(await link.renew(ID)).toBeGreaterThan(0);
    }
  } finally {
    process.kill(hung.pid, 'SIGCONT');
    link.close();
  }
});

test('without a majority tickets are refused, hosts stay, and all goes on by itself', async () => {
  // Shorter than the store is without.
  const short = { hostTimeoutMs: SHORT_TIMEOUT_MS };
  const [alpha, beta] = [await join('alpha', short), await join('beta', short)];
  await eventually(() => expect(namesIn(alpha)).toEqual(['alpha', 'beta']));
  const lost = [hearing(alpha), hearing(beta)].map((heard) => heard.lost);
  await members.stop('one');
  await members.stop('two');
  const refused = {
    code: 'SF_CLUSTER_UNAVAILABLE',
    message: expect.stringMatching(/running clones go on, new tickets are refused/),
  };
  await expect(alpha.reserve(ask('alpha', 1, ['beta']))).rejects.toMatchObject(refused);
  // Also one that needs no other host.
  await expect(alpha.reserve(ask('alpha', 1, ['alpha'], 8))).rejects.toMatchObject(refused);
  // A guest that asks for a checkpoint, or forks with a ticket that it has.
  await expect(alpha.takeOfFamily(familyRequest({}))).rejects.toMatchObject(refused);
  await expect(beta.publishRoom({ ...ROOM, vms: 1 })).rejects.toMatchObject(refused);
  await expect(open('gamma')).rejects.toMatchObject(refused);
  expect(namesIn(alpha)).toEqual(['alpha', 'beta']);
  await Promise.all([members.start('one'), members.start('two')]);
  await eventually(async () => {
    const { elsewhere } = await alpha.reserve(ask('alpha', 1, ['beta']));
    expect(elsewhere).toEqual([{ host: 'beta', slots: 1 }]);
  });
  await eventually(async () => {
    await beta.publishRoom({ ...ROOM, vms: 2 });
    expect(alpha.hosts()[1]?.room.vms).toBe(2);
  });
  expect(lost).toEqual([[], []]);
});
