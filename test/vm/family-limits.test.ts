// What the guests of a family may take of the host, with guests that take all they can get: fork
// bombs are stopped by the settings, their words name the setting, and a neighbour notices nothing.

import type { Host, Vm, VmInfo } from '@snowfork/sdk';
import { afterEach, describe, expect, it } from 'vitest';
import { clonesOf, describeVms, endAll, Steady, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { hostApart } from '../support/test-host.js';

describeVms('the limits of a family', () => {
  let apart: Awaited<ReturnType<typeof hostApart>>;
  let host: Host;

  async function start(settings: Record<string, number>): Promise<void> {
    apart = await hostApart({ warmPoolSize: 2, ...settings }, 'minimal');
    host = apart.host;
  }

  afterEach(async () => {
    await apart?.dispose();
  });

  async function membersOf(vm: Vm, all = true): Promise<VmInfo[]> {
    return (await host.vms({ all })).filter(({ family }) => family === vm.id);
  }

  describe('stop', () => {
    let neighbour: Steady;
    let bomb: Vm;

    async function arm(settings: Record<string, number>): Promise<void> {
      await start(settings);
      neighbour = await Steady.start(await host.launch('minimal'), { mebibytes: 2, who: 'near' });
      bomb = await host.launch('minimal');
    }

    afterEach(async () => {
      expect(await neighbour.hash()).toBe(neighbour.expectedHash());
      // Another family's guests have limits of their own; and the owner's wishes are not limited.
      await sh(neighbour.vm, 'sf-guest ticket 1');
      expect(clonesOf(await neighbour.vm.fork(7))).toHaveLength(7);
      await endAll(host, apart.state);
    });

    /** Every clone goes on with the loop, too. */
    const explode = (line: string) => sh(bomb, `(while :; do ${line}; done) >/dev/null 2>&1 &`);

    async function expectRefusedBy(setting: string, vm = bomb): Promise<void> {
      await eventually(async () => expect(await sh(vm, 'cat /tmp/errors')).toContain(setting));
    }

    it('a fork bomb at its number of VMs', async () => {
      await arm({ familyVmsMax: 6 });
      await explode('sf-guest fork 2 2>>/tmp/errors');
      await expectRefusedBy('familyVmsMax');
      await eventually(async () => expect(await membersOf(bomb, false)).toHaveLength(6));
      for (let look = 0; look < 10; look++) {
        expect((await membersOf(bomb)).length).toBe(6);
        await sh(neighbour.vm, 'sleep 0.1');
      }
    });

    it('a fork bomb at its rate', async () => {
      await arm({ familyForksPerSecond: 0.001, familyForksBurst: 3 });
      await explode('sf-guest fork 1 2>>/tmp/errors');
      await expectRefusedBy('familyForksPerSecond');
      await eventually(async () => expect(await membersOf(bomb)).toHaveLength(4));
    });

    it('a chain of forks at its last generation', async () => {
      await arm({ familyVmsMax: 6, familyGenerationsMax: 3 });
      // Each generation hands the loop on to the next, and ends.
      const next = 'id=$(sf-guest fork 1 2>>/tmp/errors)';
      await explode(`${next} || break; [ "$id" = 0 ] && break`);
      await eventually(async () => expect(await membersOf(bomb)).toHaveLength(4));
      const last = (await membersOf(bomb)).find(({ parent }, _, all) => {
        const depth = (id: string | undefined): number =>
          id === undefined ? 0 : 1 + depth(all.find((vm) => vm.id === id)?.parent);
        return depth(parent) === 3;
      });
      expect(last).toBeDefined();
      await expectRefusedBy('familyGenerationsMax', await host.vm(last!.id));
    });

    it('one that forks for ever, though its clones end at once', async () => {
      await arm({ familyClonesMax: 3 });
      const exit = 'case $id in 0 | "") ;; *) sf-guest exit ;; esac';
      await explode(`id=$(sf-guest fork 1 2>>/tmp/errors); ${exit}`);
      await expectRefusedBy('familyClonesMax');
      expect(await membersOf(bomb)).toHaveLength(1 + 3);
      await eventually(async () => expect(await membersOf(bomb, false)).toHaveLength(1));
    });
  });

  it('bound what is kept of it: results and checkpoints', async () => {
    await start({ familyResultsBytesMax: 10_000, familyCheckpointsMax: 1 });
    const vm = await host.launch('minimal');
    const value = async (bytes: number) => {
      const { ticket, clones } = await vm.fork(1);
      const [clone] = clonesOf({ ticket, clones } as never);
      await clone!.exec(`sf-guest exit $(head -c ${bytes} /dev/zero | tr '\\0' x)`).catch(() => {});
      await clone!.wait();
      return ticket.id;
    };
    const first = await value(8000);
    const second = await value(8000);
    expect(await host.join(second)).toMatchObject([
      { status: 'lost', reason: expect.stringContaining('familyResultsBytesMax') },
    ]);
    expect(await host.join(first)).toMatchObject([{ status: 'exited' }]);
    expect(await host.join(await value(8000))).toMatchObject([{ status: 'exited' }]);

    await sh(vm, 'sf-guest checkpoint');
    const { code, stderr } = await vm.exec('sf-guest checkpoint');
    expect(code).toBe(1);
    expect(stderr).toMatch(/SF_LIMIT: .*familyCheckpointsMax/);
    const own = await vm.checkpoint();
    expect((await host.snapshots()).filter(({ kept, image }) => kept && !image)).toHaveLength(2);
    expect(clonesOf(await host.createClones(own.snapshot.id, 2))).toHaveLength(2);
    await endAll(host, apart.state);
  });

  it('end all its VMs when its time is over, and those of nobody else', async () => {
    await start({ familyLifetimeMs: 25_000 });
    const vm = await host.launch('minimal');
    const { ticket, clones } = await vm.fork(2);
    const [clone] = clonesOf({ ticket, clones } as never);
    const end = { how: 'killed', reason: expect.stringContaining('familyLifetimeMs') };
    expect(await clone!.wait()).toMatchObject(end);
    expect(await vm.wait()).toMatchObject(end);
    expect(await host.join(ticket)).toMatchObject([
      { status: 'lost', reason: expect.stringContaining('familyLifetimeMs') },
      { status: 'lost' },
    ]);
    expect(await sh(await host.launch('minimal'), 'echo here')).toBe('here');
    await endAll(host, apart.state);
  });
});
