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

  it('that has the driver of vmgenid is told of each fork by it, its parent is not', async (test) => {
    const vm = await host.launch('minimal');
    const driver = await sh(vm, 'echo /sys/bus/*/drivers/vmgenid');
    if (driver.includes('*')) {
      // Debian's 6.1 was built without it.
      expect(await sh(vm, 'uname -r')).toMatch(/^6\.1\./);
      test.skip('this kernel has no driver of vmgenid');
    }
    const before = await reseeds(vm);
    const [clone] = clonesOf(await vm.fork(1));
    expect(await reseeds(clone!)).toBe(before + 1);
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
