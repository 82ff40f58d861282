// What holds of the store of tickets and families, whichever it is: the embedded one of a host by itself,
// and etcd's. Each runs these tests on a store that one host has joined, and that knows of nothing.

import { beforeEach, expect, test } from 'vitest';
import type { ClusterStore } from '../../packages/clone-agent/src/cluster/cluster-store.js';
import {
  type FamilyCounts,
  type FamilyLimits,
  type FamilyRequest,
  NOTHING,
} from '../../packages/clone-agent/src/cluster/family-record.js';

export const LIMITS: FamilyLimits = {
  familyVmsMax: 5,
  familyClonesMax: 1000,
  familyCheckpointsMax: 2,
  familyLayersBytesMax: 1000,
  familyForksPerSecond: 2,
  familyForksBurst: 100,
};

/** What a guest asks of a family of which this host has `counted`. */
export function familyRequest(
  of: Partial<Omit<FamilyRequest, 'limits' | 'counted'>> & {
    counted?: Partial<FamilyCounts>;
    limits?: Partial<FamilyLimits>;
  },
): FamilyRequest {
  const { counted, limits, ...more } = of;
  return {
    ...{ family: 'vm1-alpha', clones: 0, checkpoints: 0, freezes: false, askedAt: 1_000_000 },
    ...{ ...more, limits: { ...LIMITS, ...limits } },
    counted: () => ({ ...NOTHING, vms: 1, ...counted }),
  };
}

export function refusedBy(setting: string) {
  const message = expect.stringContaining(setting);
  return expect.objectContaining({ code: 'SF_LIMIT', message });
}

export function describeStore(open: () => Promise<ClusterStore>): void {
  let store: ClusterStore;
  let lastTicket = 0;

  beforeEach(async () => {
    store = await open();
  });

  async function reserve(asked: number, of: Parameters<typeof familyRequest>[0], hereSlots = 9) {
    return await store.reserve({
      ...{ ticket: `t${++lastTicket}-alpha`, vm: 'vm1-alpha', family: 'vm1-alpha', placing: {} },
      ...{ asked, bytesEach: 1000, hereSlots },
      ofFamily: familyRequest({ ...of, clones: asked }),
    });
  }

  test('a ticket is for as many clones as there is room', async () => {
    expect(await reserve(3, {})).toEqual({ here: 3, elsewhere: [] });
    expect(await reserve(3, { counted: { vms: 1 } }, 2)).toMatchObject({ here: 2, elsewhere: [] });
    const asked = { ticket: 't0-alpha', asked: 4, bytesEach: 1000, placing: {}, hereSlots: 4 };
    // What the owner asks for is not limited.
    expect(await store.reserve(asked)).toEqual({ here: 4, elsewhere: [] });
  });

  test('and for no more than its family may have VMs, also such as are promised', async () => {
    const few = { here: 2, elsewhere: [], reason: expect.stringContaining('familyVmsMax') };
    expect(await reserve(9, { counted: { vms: 2, promised: 1 } })).toEqual(few);
    const none = reserve(1, { counted: { vms: 2, promised: 3 } });
    await expect(none).rejects.toEqual(refusedBy('familyVmsMax'));
    expect(await reserve(5, { family: 'vm2-alpha', counted: { vms: 0 } })).toMatchObject({
      here: 5,
    });
  });

  test('nor than it may make clones, ever', async () => {
    const limits = { familyClonesMax: 10 };
    const few = { here: 3, elsewhere: [], reason: expect.stringContaining('familyClonesMax') };
    expect(await reserve(4, { limits, counted: { clones: 7 } })).toEqual(few);
    const promised = reserve(1, { limits, counted: { vms: 0, clones: 7, promised: 3 } });
    await expect(promised).rejects.toEqual(refusedBy('familyClonesMax'));
  });

  test('clones that were made are known to it, though the host forgets them', async () => {
    const limits = { familyClonesMax: 10 };
    await store.takeOfFamily(familyRequest({ limits, counted: { clones: 8 } }));
    await expect.poll(() => store.heardOf('vm1-alpha').here.clones).toBe(8);
    expect(await reserve(4, { limits, counted: { clones: 1 } })).toMatchObject({ here: 2 });
  });

  test('a checkpoint is refused when the family keeps enough of them', async () => {
    const asked = { checkpoints: 1, freezes: true };
    await store.takeOfFamily(familyRequest({ ...asked, counted: { checkpoints: 1 } }));
    const refused = store.takeOfFamily(familyRequest({ ...asked, counted: { checkpoints: 2 } }));
    await expect(refused).rejects.toEqual(refusedBy('familyCheckpointsMax'));
    expect(await reserve(1, { freezes: true, counted: { checkpoints: 2 } })).toMatchObject({
      here: 1,
    });
  });

  test('a freeze is refused when the family’s layers take too much', async () => {
    const counted = { layersBytes: LIMITS.familyLayersBytesMax };
    const refused = refusedBy('familyLayersBytesMax');
    await expect(reserve(1, { freezes: true, counted })).rejects.toEqual(refused);
    const checkpoint = familyRequest({ freezes: true, checkpoints: 1, counted });
    await expect(store.takeOfFamily(checkpoint)).rejects.toEqual(refused);
    expect(await reserve(1, { counted })).toMatchObject({ here: 1 });
  });

  test('whatever is asked for counts as a fork, and too many are refused', async () => {
    const limits = { familyForksBurst: 4 };
    let askedAt = 1_000_000;
    const ask = (family = 'vm1-alpha') =>
      store.takeOfFamily(familyRequest({ family, limits, askedAt }));
    await ask();
    await reserve(1, { limits });
    await expect(reserve(1, { limits, counted: { vms: 5 } })).rejects.toEqual(
      refusedBy('familyVmsMax'),
    );
    await ask();
    const details = { retryAfterMs: 500 };
    await expect(ask()).rejects.toMatchObject({ code: 'SF_LIMIT', details });
    await expect(reserve(1, { limits })).rejects.toEqual(refusedBy('familyForksPerSecond'));
    await ask('vm2-alpha');
    askedAt += 500;
    await ask();
    await expect(ask()).rejects.toEqual(refusedBy('familyForksPerSecond'));
    askedAt += 60_000;
    for (let forks = 0; forks < 4; forks++) await ask();
    await expect(ask()).rejects.toEqual(refusedBy('familyForksPerSecond'));
  });

  test('nothing is measured for a family that asks too often', async () => {
    const limits = { familyForksBurst: 1 };
    await store.takeOfFamily(familyRequest({ limits }));
    const counted = () => {
      throw new Error('it was measured');
    };
    const asked = { ...familyRequest({ limits }), counted };
    await expect(store.takeOfFamily(asked)).rejects.toEqual(refusedBy('familyForksPerSecond'));
  });

  test('time that goes back and forth gives nothing', async () => {
    const ask = (askedAt: number) =>
      store.takeOfFamily(familyRequest({ limits: { familyForksBurst: 2 }, askedAt }));
    await ask(1_000_000);
    await ask(990_000);
    await expect(ask(1_000_000)).rejects.toEqual(refusedBy('familyForksPerSecond'));
    await ask(1_000_500);
  });

  test('a ticket that has nothing elsewhere is no affair of others', async () => {
    await reserve(1, {});
    expect(store.tickets()).toEqual([]);
    const families = new Map([['vm1-alpha', { ...NOTHING, vms: 2 }]]);
    await store.publish({ families, unsettled: new Set(), tickets: [] });
    expect(store.heardOf('vm1-alpha').elsewhere).toEqual(NOTHING);
    await store.check();
  });
}
