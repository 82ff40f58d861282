// What depends on the version of the guest's kernel: `npm run matrix` runs this file with each.

import type { Host, Vm } from '@snowfork/sdk';
import { afterEach, beforeAll, expect, it } from 'vitest';
import { clonesOf, describeVms, endAll, MiB, sh } from '../fixtures/guests.js';
import { testHost } from '../support/test-host.js';

const PAGE_BYTES = 4096;
const FREED_MIB = 32;

describeVms('a kernel', () => {
  let host: Host;

  beforeAll(async () => {
    host = await testHost('minimal');
  });

  afterEach(async () => {
    await endAll(host);
  });

  it('with the driver of vmgenid, which 6.1 lacks, is told of each fork; its parent is not', async () => {
    const vm = await host.launch('minimal');
    const driver = await sh(vm, 'echo /sys/bus/*/drivers/vmgenid');
    const release = await sh(vm, 'uname -r');
    // Debian's 6.1 was built without it; it must be no other that has none.
    expect(driver.includes('*')).toBe(release.startsWith('6.1.'));
    const perFork = driver.includes('*') ? 0 : 1;
    const before = await reseeds(vm);
    const [clone] = clonesOf(await vm.fork(1));
    expect(await reseeds(clone!)).toBe(before + perFork);
    expect(await reseeds(vm)).toBe(before);
  });

  it('has what a program gave back among its free pages: a fork does not store it', async () => {
    const vm = await host.launch('minimal');
    await vm.fork(1);
    await sh(vm, `perl -e '$held = "x" x ${FREED_MIB * MiB}'`);
    const { snapshot } = await vm.fork(1);
    expect(snapshot.pages.storedPages * PAGE_BYTES).toBeLessThan((FREED_MIB / 4) * MiB);
  });
});

/** How often its random generator was given new bytes as the machine is a copy now. */
async function reseeds(vm: Vm): Promise<number> {
  const lines = await sh(vm, 'dmesg | grep -c "reseeded due to virtual machine fork" || true');
  return Number(lines);
}
