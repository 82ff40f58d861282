// The pager is killed again and again while VMs wait for pages: every byte is right, and nobody hangs.

import { createHash } from 'node:crypto';
import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, expect, it } from 'vitest';
import { clonesOf, describeVms, endVms, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { limitMs, times } from '../support/soak.js';
import { hostApart } from '../support/test-host.js';

const KILLS = times(50, 2000);
/** Two clones fault at the same time. */
const CLONES = 2;
/** Of RAM, by a pager that is killed then: each dies under load, and some progress is made. */
const READS_BEFORE_KILL = 4;
const PAGES = 6144;
const PAGE_BYTES = 4096;

describeVms('a pager under load', () => {
  let apart: Awaited<ReturnType<typeof hostApart>> | undefined;
  afterAll(() => apart?.dispose());

  it(
    `is killed ${KILLS} times, and no clone reads a wrong byte`,
    async () => {
      // No warm pool: nothing but the clones uses the processors.
      apart = await hostApart({ warmPoolSize: 0 }, 'minimal');
      const { host } = apart;
      const parent = await host.launch('minimal');
      for (let round = 0, kills = 0; kills < KILLS; round++) {
        // Other bytes in each round, so that nothing is known from the round before.
        const expected = await fill(parent, round);
        const clones = clonesOf(await parent.fork(CLONES));
        let isHashing = true;
        const hashes = Promise.all(clones.map(hashOf)).finally(() => {
          isHashing = false;
        });
        while (isHashing) {
          if ((await readsOf(host)) < READS_BEFORE_KILL) continue;
          await killPager(host);
          kills += 1;
        }
        expect(await hashes).toEqual(clones.map(() => expected));
        expect(await hashOf(parent)).toBe(expected);
        await endVms(host, [parent]);
      }
    },
    limitMs(300_000),
  );
});

/** Writes pages of known bytes into the guest's RAM; returns their hash. */
async function fill(vm: Vm, round: number): Promise<string> {
  const lines = `for (1..${PAGES}) { print F substr("round ${round} page $_ " x 512, 0, ${PAGE_BYTES}) }`;
  await sh(vm, `perl -e 'open F, ">", "/tmp/memory" or die; ${lines}'`);
  const hash = createHash('md5');
  for (let page = 1; page <= PAGES; page++) {
    hash.update(`round ${round} page ${page} `.repeat(512).slice(0, PAGE_BYTES));
  }
  return hash.digest('hex');
}

async function hashOf(vm: Vm): Promise<string> {
  return (await sh(vm, 'md5sum /tmp/memory')).split(' ')[0]!;
}

/** Kills the pager and returns when another one serves. */
async function killPager(host: Host): Promise<void> {
  const { pid } = (await host.stats()).pager;
  process.kill(pid, 'SIGKILL');
  await eventually(async () => expect((await host.stats()).pager.pid).not.toBe(pid));
}

/** READs that the pager of this moment has answered, of all RAM. */
async function readsOf(host: Host): Promise<number> {
  const { objects } = (await host.stats()).pager;
  return objects.reduce((sum, { object, reads }) => sum + (object === 'ram' ? reads : 0), 0);
}
