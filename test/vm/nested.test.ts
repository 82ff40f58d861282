// Forks of forks of forks: memory in several layers, and values that come back through every level.

import fs from 'node:fs';
import path from 'node:path';
import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { clonesOf, describeVms, endAll, Steady, sh } from '../fixtures/guests.js';
import { testHost } from '../support/test-host.js';

const MEBIBYTES = 4;
const PAGES = MEBIBYTES * 256;

describeVms('nested forks', () => {
  let host: Host;

  beforeAll(async () => {
    host = await testHost('minimal');
  });

  afterAll(async () => {
    if (host === undefined) return;
    await endAll(host);
    await host.close();
  });

  it('keep every generation of a family apart, page by page, when all go on writing', async () => {
    const root = await host.launch('minimal');
    const generations = [await Steady.start(root, { mebibytes: MEBIBYTES, who: 'root' })];
    // Each generation writes a part of what it inherited; parts overlap, and the last page of one
    // is always somebody else's.
    for (let generation = 1; generation <= 4; generation++) {
      const older = generations.at(-1)!;
      const [clone] = clonesOf(await older.vm.fork(1));
      const younger = older.inherited(clone!);
      await younger.fill({ who: `g${generation}`, first: generation * 100, count: 333 });
      // The older one writes on, where the younger one has not written and where it has.
      await older.fill({ who: `late${generation}`, first: generation * 150, count: 77 });
      generations.push(younger);
    }
    for (const one of generations) expect(await one.hash()).toBe(one.expectedHash());
    const hashes = new Set(generations.map((one) => one.expectedHash()));
    expect(hashes.size).toBe(generations.length);

    // The same after the older ones have gone, and for clones of the youngest.
    const youngest = generations.at(-1)!;
    for (const { vm } of generations.slice(0, -1)) await vm.kill();
    const clones = clonesOf(await youngest.vm.fork(2)).map((vm) => youngest.inherited(vm));
    await clones[0]!.fill({ who: 'last', first: 0, count: PAGES });
    for (const one of [youngest, ...clones]) expect(await one.hash()).toBe(one.expectedHash());
  });

  it('keep memory right when the same VM forks many times and its clones too', async () => {
    const root = await host.launch('minimal');
    let steady = await Steady.start(root, { mebibytes: MEBIBYTES, who: 'root' });
    const kept: Steady[] = [];
    for (let round = 1; round <= 6; round++) {
      await steady.fill({ who: `round${round}`, first: round * 37, count: 301 });
      const [clone] = clonesOf(await steady.vm.fork(1));
      kept.push(steady);
      // Now and then the clone is the one that goes on.
      const inherited = steady.inherited(clone!);
      kept.push(inherited);
      if (round % 2 === 0) steady = inherited;
    }
    for (const one of new Set(kept)) expect(await one.hash()).toBe(one.expectedHash());
  });

  it('hand values back through each level', async () => {
    const root: Vm = await host.launch('minimal');
    const script = fs.readFileSync(path.join(import.meta.dirname, '../fixtures/nest.sh'));
    await root.writeFile('/root/nest.sh', script);
    // The clones of the third level fork and join as well.
    expect(await sh(root, 'sh /root/nest.sh 1 2 1 1')).toBe('r(1(1(1(1)),2(1(1))))');
    const family = (await host.vms({ all: true })).filter((vm) => vm.family === root.id);
    const depthOf = (id: string): number => {
      const parent = family.find((vm) => vm.id === id)?.parent;
      return parent === undefined ? 0 : 1 + depthOf(parent);
    };
    const depths = family.map(({ id }) => depthOf(id)).sort();
    expect(depths).toEqual([0, 1, 2, 2, 3, 3, 4, 4]);
    const ends = family.filter(({ id }) => id !== root.id).map(({ end }) => end?.how);
    expect(new Set(ends)).toEqual(new Set(['exited']));
  });
});
