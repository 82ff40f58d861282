// What a family may have on all hosts of a cluster together, as the store counts it: etcd with TLS. By
// loopback: needs no root.

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { EtcdStore } from '../../packages/clone-agent/src/cluster/etcd.js';
import {
  type FamilyCounts,
  NOTHING,
} from '../../packages/clone-agent/src/cluster/family-record.js';
import { Seeded } from '../sim/seeded.js';
import { EtcdMembers } from '../support/etcd-members.js';
import { eventually } from '../support/eventually.js';
import { describeStore, familyRequest, LIMITS, refusedBy } from '../support/store-behaviour.js';

const FAMILY = 'vm1-alpha';
const MAX = 4;
const ROUNDS = 30;
/** So long that no host is lost for being slow. */
const HOST_TIMEOUT_MS = 60_000;
const SEED = Number(process.env.SNOWFORK_SIM_SEED ?? 20);
let members: EtcdMembers;
let stores: EtcdStore[] = [];
let lastTicket = 0;

beforeAll(async () => {
  members = await EtcdMembers.start(['one']);
});
afterEach(async () => {
  await Promise.all(stores.map((store) => store.close()));
  stores = [];
  members.forgetAll();
});
afterAll(() => members.close());

async function join(name: string): Promise<EtcdStore> {
  const store = await members.open(name, { hostTimeoutMs: HOST_TIMEOUT_MS });
  stores.push(store);
  const self = { id: `id of ${name}`, name, address: '127.0.0.1', port: 1 };
  // What is asked for is had of the host that asks.
  const room = { roomBytes: 0, slots: 0, vms: 0 };
  await store.join({ ...self, version: '1', startedAt: 1 }, room);
  return store;
}

type Asked = Parameters<typeof familyRequest>[0];

/** How many clones more a host gets that has `counted` of the family. */
async function take(store: EtcdStore, asked: number, of: Asked = {}): Promise<number> {
  const limits = { familyVmsMax: MAX, ...of.limits };
  const ofFamily = familyRequest({
    ...of,
    counted: { vms: 0, ...of.counted },
    limits,
    clones: asked,
  });
  const ticket = `t${++lastTicket}-alpha`;
  const request = { ticket, asked, bytesEach: 1, placing: {}, hereSlots: asked, ofFamily };
  try {
    return (await store.reserve(request)).here;
  } catch (error) {
    expect(error).toMatchObject({ code: 'SF_LIMIT' });
    return 0;
  }
}

async function takeCheckpoint(store: EtcdStore, of: Asked = {}): Promise<number> {
  try {
    await store.takeOfFamily(familyRequest({ ...of, checkpoints: 1 }));
    return 1;
  } catch (error) {
    expect(error).toEqual(refusedBy('familyCheckpointsMax'));
    return 0;
  }
}

/** As agents do, again and again: of two that publish at once, one gets its turn later. */
async function tell(store: EtcdStore, of: Partial<FamilyCounts>, family = FAMILY): Promise<void> {
  const { clones: _, ...counts } = { ...NOTHING, ...of };
  await eventually(async () => {
    await tellOnce(store, of, family);
    expect(store.heardOf(family).here).toMatchObject(counts);
  });
}

async function tellOnce(store: EtcdStore, of: Partial<FamilyCounts>, family: string) {
  const families = new Map([[family, { ...NOTHING, ...of }]]);
  await store.publish({ families, unsettled: new Set(), tickets: [] });
}

async function heard(store: EtcdStore, elsewhere: Partial<FamilyCounts>): Promise<void> {
  await eventually(() => expect(store.heardOf(FAMILY).elsewhere).toMatchObject(elsewhere));
}

describe('the store in etcd', () => {
  describeStore(() => join('alpha'));
});

test('of hosts that ask at once, none gets what another has got', async () => {
  const joined = await Promise.all(['alpha', 'beta', 'gamma'].map(join));
  const got = await Promise.all(joined.map((store) => take(store, 3)));
  expect(got.reduce((sum, vms) => sum + vms, 0)).toBe(MAX);
});

test('the last clones and the last checkpoint go to one of two hosts, however often they ask', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const random = new Seeded(SEED);
  for (let round = 0; round < ROUNDS; round++) {
    const family = `vm${round}-alpha`;
    const max = random.whole(1, 7);
    const limits = { familyVmsMax: 1000, familyClonesMax: max, familyCheckpointsMax: 1 };
    // Of what was made so far, either made some.
    const byAlpha = { vms: 1, clones: random.whole(0, max) };
    const byBeta = { vms: 1, clones: random.whole(0, max - byAlpha.clones) };
    await tell(alpha, byAlpha, family);
    await tell(beta, byBeta, family);
    const left = max - byAlpha.clones - byBeta.clones;
    const [first, second] = await Promise.all([
      take(alpha, random.whole(1, max + 1), { family, limits, counted: byAlpha }),
      take(beta, random.whole(1, max + 1), { family, limits, counted: byBeta }),
    ]);
    const counted = { ...byAlpha, promised: first };
    const rest = await take(alpha, max, { family, limits, counted });
    expect(first + second + rest, `round ${round}`).toBe(left);
    const kept = await Promise.all(
      [alpha, beta].map((store) => takeCheckpoint(store, { family: `${family} kept`, limits })),
    );
    expect(kept.sort(), `round ${round}`).toEqual([0, 1]);
  }
});

test('what has ended on one host may be had by another', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  expect(await take(alpha, 9, { counted: { vms: 1 } })).toBe(3);
  expect(await take(beta, 1)).toBe(0);
  await tell(alpha, { vms: 2 });
  expect(await take(beta, 9)).toBe(2);
  await tell(alpha, {});
  await tell(beta, {});
  await eventually(async () => expect(await take(alpha, 9)).toBe(MAX));
});

test('clones that were made count for ever, also those of a host that is gone', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const limits = { familyVmsMax: 100, familyClonesMax: 10 };
  await tell(beta, { vms: 1 });
  expect(await take(alpha, 5, { limits, counted: { clones: 1 } })).toBe(5);
  // Three were made of the five, two were given back.
  await tell(alpha, { clones: 4 });
  expect(await take(beta, 9, { limits })).toBe(6);
  await tell(beta, { vms: 1, promised: 4 });
  await heard(alpha, { promised: 4 });
  stores = [beta];
  await alpha.close();
  await eventually(() => expect(beta.hosts()).toHaveLength(1));
  const counted = { vms: 1, promised: 4 };
  expect(await take(beta, 9, { limits, counted })).toBe(2);
  await tell(beta, { vms: 1, clones: 6 });
  const again = await join('alpha');
  await expect.poll(() => again.heardOf(FAMILY).here.clones).toBe(4);
  expect(await take(again, 1, { limits })).toBe(0);
});

test('what a host that is gone had promised counts as made', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const limits = { familyVmsMax: 100, familyClonesMax: 10 };
  expect(await take(alpha, 4, { limits, counted: { clones: 3 } })).toBe(4);
  stores = [beta];
  await alpha.close();
  await eventually(() => expect(beta.hosts()).toHaveLength(1));
  expect(await take(beta, 9, { limits })).toBe(3);
});

test('forks of a family are counted together, wherever its guests ask', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const limits = { familyForksBurst: 3 };
  for (const store of [alpha, beta, alpha]) await store.takeOfFamily(familyRequest({ limits }));
  const refused = refusedBy('familyForksPerSecond');
  for (const store of [alpha, beta]) {
    await expect.poll(() => store.heardOf(FAMILY).here.vms).toBe(1);
    await expect(store.takeOfFamily(familyRequest({ limits }))).rejects.toEqual(refused);
  }
  // A host whose clock is ahead gets what time has gone by once.
  const late = { limits, askedAt: 1_000_500 };
  await beta.takeOfFamily(familyRequest(late));
  await expect(alpha.takeOfFamily(familyRequest(late))).rejects.toEqual(refused);
});

test('layers, results and checkpoints are those of all hosts that are there', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  const own = { layersBytes: 400, resultsBytes: 7, checkpoints: 1 };
  await tell(beta, { vms: 1, ...own });
  await heard(alpha, own);
  const counted = { layersBytes: LIMITS.familyLayersBytesMax - 400 };
  const full = alpha.takeOfFamily(familyRequest({ freezes: true, counted }));
  await expect(full).rejects.toEqual(refusedBy('familyLayersBytesMax'));
  expect(await takeCheckpoint(alpha)).toBe(1);
  expect(await takeCheckpoint(alpha, { counted: { checkpoints: 1 } })).toBe(0);
  stores = [alpha];
  await beta.close();
  await heard(alpha, NOTHING);
  await alpha.takeOfFamily(familyRequest({ freezes: true, counted }));
  expect(await takeCheckpoint(alpha, { counted: { checkpoints: 1 } })).toBe(1);
});

test('a host that is gone has none any more', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  expect(await take(alpha, 9)).toBe(MAX);
  expect(await take(beta, 1)).toBe(0);
  stores = [beta];
  await alpha.close();
  await eventually(async () => expect(await take(beta, 9)).toBe(MAX));
});

test('what a family has taken stands while its ticket is being made', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  expect(await take(alpha, 3)).toBe(3);
  await alpha.publish({ families: new Map(), unsettled: new Set([FAMILY]), tickets: [] });
  expect(await take(beta, 9)).toBe(1);
});

test('what is taken while another family is told stands', async () => {
  const [alpha, beta] = [await join('alpha'), await join('beta')];
  await tell(alpha, { vms: 1 }, 'vm0-alpha');
  expect(await take(alpha, 1)).toBe(1);
  const told = tellOnce(alpha, { vms: 2 }, 'vm0-alpha');
  expect(await take(alpha, 2, { counted: { promised: 1 } })).toBe(2);
  await told;
  expect(await take(beta, 9)).toBe(1);
});

test('of a family that is over nothing is kept', async () => {
  const alpha = await join('alpha');
  expect(await take(alpha, 2, { counted: { vms: 1, clones: 5 } })).toBe(2);
  await expect.poll(() => alpha.heardOf(FAMILY).here.clones).toBe(5);
  // Results can still be joined, but no guest can add to them.
  await tellOnce(alpha, { clones: 7, resultsBytes: 10 }, FAMILY);
  await expect.poll(() => alpha.heardOf(FAMILY).here).toEqual(NOTHING);
});
