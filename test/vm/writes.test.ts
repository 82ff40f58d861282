// Forks that copy what was written since the last one, by VMs that fork again and again: every clone has all of the
// memory, whoever died in between. Each test has an agent of its own.

import fs from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { connect, type Host, type Vm } from '@snowfork/sdk';
import { afterEach, expect, it } from 'vitest';
import { clonesOf, describeVms, endAll, Steady, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { isRunning } from '../support/processes.js';
import { hostApart } from '../support/test-host.js';

const MEBIBYTES = 4;
/** After a fork was asked for. */
const KILL_DELAYS_MS = [15, 30, 50, 80];

describeVms('a VM that forks again and again', () => {
  let apart: Awaited<ReturnType<typeof hostApart>>;
  let host: Host;

  async function start(settings: Record<string, unknown> = {}): Promise<Vm> {
    apart = await hostApart({ warmPoolSize: 1, ...settings }, 'minimal');
    host = apart.host;
    return await host.launch('minimal');
  }

  afterEach(async () => {
    await host.shutDown();
    await host.close();
    await apart.dispose();
  });

  async function anotherAgent(): Promise<void> {
    const { pid } = await host.info();
    process.kill(pid, 'SIGKILL');
    await eventually(() => expect(isRunning(pid)).toBe(false));
    await host.close();
    host = await connect({ stateFolder: apart.state });
  }

  async function isTracked({ id }: Vm): Promise<boolean> {
    const { pid } = (await host.vms()).find((vm) => vm.id === id)!;
    const open = fs.readdirSync(`/proc/${pid}/fd`).map((fd) => {
      return fs.readlinkSync(`/proc/${pid}/fd/${fd}`, 'latin1');
    });
    return open.some((target) => target.includes('userfaultfd'));
  }

  /** Writes a little, forks, and compares all of the clone's memory. */
  async function writeAndFork(steady: Steady, round: number): Promise<Steady> {
    await steady.fill({ who: `round-${round}`, first: round * 100, count: 50 + round });
    const [vm] = clonesOf(await steady.vm.fork(1));
    const clone = steady.inherited(vm!);
    expect(await clone.hash()).toBe(clone.expectedHash());
    return clone;
  }

  it('has clones with all of its memory, and so have they', async () => {
    let steady = await Steady.start(await start(), { mebibytes: MEBIBYTES, who: 'parent' });
    for (let generation = 0; generation < 2; generation++) {
      let clone: Steady | undefined;
      for (let round = 0; round < 3; round++) {
        await clone?.vm.kill();
        clone = await writeAndFork(steady, round);
        // What a program gave back is free in one snapshot, and another's memory in the next.
        await sh(steady.vm, `head -c ${(round + 1) * 3}000000 /dev/zero >/tmp/a; rm /tmp/a`);
      }
      expect(await isTracked(steady.vm)).toBe(true);
      expect(await steady.hash()).toBe(steady.expectedHash());
      steady = clone!;
    }
    await endAll(host, apart.state);
  });

  it('has them under the next agent, and after one that was killed within a fork', async () => {
    let steady = await Steady.start(await start(), { mebibytes: MEBIBYTES, who: 'parent' });
    const { id } = steady.vm;
    await (await writeAndFork(steady, 0)).vm.kill();
    for (const [round, delayMs] of KILL_DELAYS_MS.entries()) {
      await steady.fill({ who: `death-${round}`, first: round * 10, count: 7 });
      const fork = steady.vm.fork(1).catch(() => undefined);
      await delay(delayMs);
      await anotherAgent();
      await fork;
      steady = steady.inherited(await host.vm(id));
      for (const later of [1, 2]) {
        await (await writeAndFork(steady, round * 2 + later)).vm.kill();
      }
    }
    expect(await isTracked(steady.vm)).toBe(true);
    await endAll(host, apart.state);
  });

  it('has them where its writes are not tracked', async () => {
    const parent = await start({ trackWrites: false });
    const steady = await Steady.start(parent, { mebibytes: MEBIBYTES, who: 'parent' });
    for (let round = 0; round < 3; round++) await (await writeAndFork(steady, round)).vm.kill();
    expect(await isTracked(parent)).toBe(false);
    await endAll(host, apart.state);
  });
});
