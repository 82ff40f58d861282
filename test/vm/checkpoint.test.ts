// Stored snapshots: clones of a state that is long past, who needs a snapshot, and what becomes of
// those that nobody needs.

import type { Host, SnapshotInfo } from '@snowfork/sdk';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import {
  clonesOf,
  describeVms,
  endAll,
  leftOvers,
  rejection,
  Steady,
  sh,
} from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { testHost } from '../support/test-host.js';

const MEBIBYTES = 4;
const PAGES = MEBIBYTES * 256;
/** A guest's clock may stand this far from the host's: it is set once, at its start. */
const SKEW_SECONDS_MAX = 30;

describeVms('a stored snapshot', () => {
  let host: Host;

  beforeAll(async () => {
    host = await testHost('minimal');
  });

  // Whatever a test made, nothing of it is left in the layers' folder when its VMs have ended.
  afterEach(async () => {
    if (host !== undefined) await endAll(host);
  });

  afterAll(async () => {
    await host?.close();
  });

  it('is cloned twice after its parent has gone, and deleted when its clones have', async () => {
    const parent = await host.launch('minimal');
    const steady = await Steady.start(parent, { mebibytes: MEBIBYTES, who: 'then' });
    const { snapshot } = await parent.checkpoint();
    expect(snapshot).toMatchObject({ kept: true, vm: parent.id, users: [] });
    const inTheSnapshot = steady.inherited(parent);
    await steady.fill({ who: 'later' });
    await parent.kill();

    const clones = [];
    for (let round = 0; round < 2; round++) {
      const result = await host.createClones(snapshot, 2);
      expect(result.clones.map(({ cloneId }) => cloneId)).toEqual([1, 2]);
      clones.push(...clonesOf(result));
    }
    expect(new Set(clones.map(({ id }) => id)).size).toBe(4);
    for (const vm of clones) {
      const inherited = inTheSnapshot.inherited(vm);
      expect(await inherited.hash()).toBe(inherited.expectedHash());
      await inherited.fill({ who: vm.id });
      const skew = Number(await sh(vm, 'date +%s')) - Date.now() / 1000;
      expect(Math.abs(skew)).toBeLessThan(SKEW_SECONDS_MAX);
    }

    const error = await rejection(host.removeSnapshot(snapshot.id));
    expect(error).toMatchObject({ code: 'SF_SNAPSHOT_IN_USE' });
    for (const { id } of clones) expect(error.message).toContain(id);
    await Promise.all(clones.map((vm) => vm.kill()));
    expect((await host.snapshots()).map(({ id }) => id)).toContain(snapshot.id);
    await host.removeSnapshot(snapshot.id);
    expect(leftOvers()).toEqual([]);
    expect(await rejection(host.createClones(snapshot, 1))).toMatchObject({
      code: 'SF_SNAPSHOT_NOT_FOUND',
    });
    expect(await rejection(host.removeSnapshot(snapshot.id))).toMatchObject({
      code: 'SF_SNAPSHOT_NOT_FOUND',
    });
  });

  it('is cloned from inside, twice, and by the host when the guest that made it has gone', async () => {
    const parent = await host.launch('minimal');
    const script = `
      echo then >/tmp/word
      set -- $(sf-guest checkpoint)
      [ "$3" = 1 ] && exec sf-guest exit "clone $2 read $(cat /tmp/word)"
      echo later >/tmp/word
      for round in 1 2; do
        ticket=$(sf-guest ticket 2) && ticket=\${ticket%% *}
        sf-guest create-clones "$1" "$ticket" && sf-guest join "$ticket"
      done
      echo "$1"`;
    const [checkpoint, ...lines] = (await sh(parent, script)).split('\n').reverse();
    const round = ['1 exited clone 1 read then', '2 exited clone 2 read then'];
    expect(lines.reverse()).toEqual([...round, ...round]);
    await parent.kill();
    const { ticket } = await host.createClones(checkpoint!, 2);
    expect(await host.join(ticket)).toMatchObject([
      { cloneId: 1, status: 'exited', value: 'clone 1 read then' },
      { cloneId: 2, status: 'exited', value: 'clone 2 read then' },
    ]);
  });

  it('is not to be had by guests of another family, nor are their tickets', async () => {
    const [one, other] = await Promise.all([host.launch('minimal'), host.launch('minimal')]);
    const checkpoint = (await sh(one, 'sf-guest checkpoint')).split(' ')[0]!;
    const ticket = (await sh(one, 'sf-guest ticket 1')).split(' ')[0]!;
    const own = (await sh(other, 'sf-guest ticket 1')).split(' ')[0]!;
    const refused = await other.exec(`sf-guest create-clones ${checkpoint} ${own}`);
    expect(refused).toMatchObject({ code: 1 });
    expect(refused.stderr).toContain('SF_SNAPSHOT_NOT_FOUND');
    for (const call of [`clone ${ticket}`, `join ${ticket}`, `kill ${ticket}`]) {
      const { code, stderr } = await other.exec(`sf-guest ${call}`);
      expect({ call, code, stderr }).toMatchObject({ code: 1 });
      expect(stderr).toContain('SF_TICKET_NOT_FOUND');
    }
    // Neither ticket was used up by that.
    expect(await sh(one, `sf-guest create-clones ${checkpoint} ${ticket}`)).toBe('');
  });

  it('refers to the last layer for pages that did not change, and outlives that snapshot', async () => {
    const parent = await host.launch('minimal');
    const steady = await Steady.start(parent, { mebibytes: MEBIBYTES, who: 'parent' });
    const first = await parent.fork(1);
    await steady.fill({ who: 'few', first: 10, count: 10 });
    const second = await parent.fork(2);
    const { privatePages, storedPages, referencedPages } = second.snapshot.pages;
    expect(privatePages).toBeGreaterThan(PAGES);
    expect(referencedPages).toBeGreaterThan(PAGES - 10);
    expect(storedPages).toBeLessThan(privatePages / 2);

    await clonesOf(first)[0]!.kill();
    await eventually(async () => expect(await ids(host)).not.toContain(first.snapshot.id));
    const clones = clonesOf(second).map((vm) => steady.inherited(vm));
    for (const one of [steady, ...clones]) expect(await one.hash()).toBe(one.expectedHash());
    const third = await parent.fork(1);
    expect(third.snapshot.pages.storedPages).toBeLessThan(privatePages / 2);
    const late = steady.inherited(clonesOf(third)[0]!);
    expect(await late.hash()).toBe(late.expectedHash());
  });

  it('that only its VM still refers to can be deleted; that VM goes on and forks', async () => {
    const parent = await host.launch('minimal');
    const steady = await Steady.start(parent, { mebibytes: MEBIBYTES, who: 'parent' });
    const { snapshot } = await parent.checkpoint();
    await host.removeSnapshot(snapshot.id);
    expect(leftOvers()).toEqual([]);
    await steady.fill({ who: 'few', first: 10, count: 10 });
    const [clone] = clonesOf(await parent.fork(1));
    const inherited = steady.inherited(clone!);
    for (const one of [steady, inherited]) expect(await one.hash()).toBe(one.expectedHash());
  });

  it('that is not kept goes with the last VM that needs it', async () => {
    const parent = await host.launch('minimal');
    const { snapshot, clones } = await parent.fork(2);
    const [one, two] = clonesOf({ clones } as never);
    await parent.kill();
    await one!.kill();
    const found = (await host.snapshots()).find(({ id }) => id === snapshot.id);
    expect(found).toMatchObject({ kept: false, users: [two!.id] });
    expect(await rejection(host.removeSnapshot(snapshot.id))).toMatchObject({
      code: 'SF_SNAPSHOT_IN_USE',
    });
    await two!.kill();
    expect(await ids(host)).not.toContain(snapshot.id);
    expect(leftOvers()).toEqual([]);
  });
});

async function ids(host: Host): Promise<string[]> {
  return (await host.snapshots()).map(({ id }: SnapshotInfo) => id);
}
