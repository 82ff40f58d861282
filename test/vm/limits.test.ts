// Where a host is full: the tmpfs for layers, its memory, the number of VMs. Each has an agent of its
// own with small settings.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { ErrorCode, Host, Vm } from '@snowfork/sdk';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import {
  clonesOf,
  describeVms,
  endAll,
  leftOvers,
  MiB,
  rejection,
  Steady,
  sh,
} from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { hostApart } from '../support/test-host.js';

type Apart = Awaited<ReturnType<typeof hostApart>>;

const LAYERS_BYTES = 16 * MiB;

describeVms('a full tmpfs for layers', () => {
  let apart: Apart;
  let host: Host;
  let vm: Vm;
  let steady: Steady;

  beforeAll(async () => {
    // With room for two clones only: a fork that fails must give back what it had reserved.
    const settings = { layersBytesMax: LAYERS_BYTES, vmsMax: 3, warmPoolSize: 0 };
    apart = await hostApart(settings, 'minimal');
    host = apart.host;
    vm = await host.launch('minimal');
  });

  afterAll(async () => {
    await apart?.dispose();
  });

  /** As it was before: memory, commands, and no clone or layer that was half made. */
  async function expectUnharmed(): Promise<void> {
    expect(await steady.hash()).toBe(steady.expectedHash());
    expect(await sh(vm, 'echo here')).toBe('here');
    expect((await host.vms()).map(({ id }) => id)).toEqual([vm.id]);
    expect(leftOvers(apart.state)).toEqual([]);
  }

  it('fails forks and checkpoints with SF_LAYERS_FULL; the parent goes on unharmed', async () => {
    steady = await Steady.start(vm, { mebibytes: 32, who: 'parent' });
    for (const call of [() => vm.fork(2), () => vm.checkpoint()]) {
      const error = await rejection(call());
      expect(error).toMatchObject({ code: 'SF_LAYERS_FULL' satisfies ErrorCode });
      await expectUnharmed();
    }
    const { stderr } = await vm.exec('sf-guest fork 1');
    expect(stderr).toContain('SF_LAYERS_FULL');
    await expectUnharmed();
  });

  it('lets the same VM fork when it has less memory of its own', async () => {
    await steady.stop();
    steady = await Steady.start(vm, { mebibytes: 2, who: 'smaller' });
    const [clone] = clonesOf(await vm.fork(1));
    const inherited = steady.inherited(clone!);
    for (const one of [steady, inherited]) expect(await one.hash()).toBe(one.expectedHash());
    await clone!.kill();
  });

  it('harms nobody however little is left of it', async () => {
    await steady.vm.kill();
    vm = await host.launch('minimal');
    steady = await Steady.start(vm, { mebibytes: 1, who: 'parent' });
    const filler = path.join(apart.state, 'run', 'filler');
    const outcomes: string[] = [];
    for (const leftKib of [0, 64, 1024, 2048, 2200, 2304, 2560, 3072, 4096]) {
      fs.rmSync(filler, { force: true });
      fillUp(filler, leftKib * 1024);
      const outcome = await vm.fork(1).then(
        async (fork) => {
          const [clone] = clonesOf(fork);
          const inherited = steady.inherited(clone!);
          expect(await inherited.hash()).toBe(inherited.expectedHash());
          await clone!.kill();
          return 'forked';
        },
        (error: { code?: string }) => error.code ?? String(error),
      );
      outcomes.push(`${leftKib}: ${outcome}`);
      expect(await steady.hash()).toBe(steady.expectedHash());
      expect((await host.vms()).map(({ id }) => id)).toEqual([vm.id]);
    }
    fs.rmSync(filler);
    expect(outcomes.filter((outcome) => !/: (forked|SF_LAYERS_FULL)$/.test(outcome))).toEqual([]);
    expect(clonesOf(await vm.fork(1))).toHaveLength(1);
    await endAll(host, apart.state);
  });
});

/** Leaves so many bytes of the tmpfs that the file lies on. */
function fillUp(file: string, leftBytes: number): void {
  const { bavail, bsize } = fs.statfsSync(path.dirname(file));
  const bytes = Math.max(0, bavail * bsize - leftBytes);
  const fd = fs.openSync(file, 'w');
  const chunk = Buffer.alloc(bsize);
  for (let at = 0; at + bsize <= bytes; at += bsize) fs.writeSync(fd, chunk);
  fs.closeSync(fd);
}

describeVms('a host with room for few', () => {
  let apart: Apart | undefined;

  afterEach(async () => {
    await apart?.dispose();
    apart = undefined;
  });

  it('gives tickets for fewer with the reason, then SF_NO_ROOM: by its memory', async () => {
    const roomBytes = 3 * 1024 * MiB;
    const reservedBytes = Math.max(0, availableBytes() - roomBytes);
    apart = await hostApart({ reservedBytes, warmPoolSize: 0 }, 'minimal');
    const { host } = apart;
    const vm = await host.launch('minimal');
    // Others on this machine may take memory, or free some.
    const { ticket, clones } = await eventually(async () => {
      const fork = await vm.fork(64);
      try {
        expect(fork.ticket.asked).toBe(64);
        expect(fork.ticket.clones).toBeGreaterThan(0);
        expect(fork.ticket.clones).toBeLessThan(roomBytes / (256 * MiB));
        const reason = /^memory for \d+ of 64: a VM of this image may take 3\d\d MiB/;
        expect(fork.ticket.reason).toMatch(reason);
      } catch (error) {
        await host.killTicket(fork.ticket);
        throw error;
      }
      return fork;
    });
    expect(clonesOf({ clones } as never)).toHaveLength(ticket.clones);

    // The freeze itself may take as much as the VM has.
    await eventually(async () => {
      expect(await rejection(vm.fork(64))).toMatchObject({ code: 'SF_NO_ROOM' });
      const inside = await vm.exec('sf-guest fork 2');
      expect(inside).toMatchObject({ code: 1, stdout: '' });
      expect(inside.stderr).toContain('SF_NO_ROOM');
    });
    await host.killTicket(ticket);
    await eventually(async () => {
      const again = await vm.exec('sf-guest ticket 64');
      expect(again.stdout).toMatch(/^t\d+ \d+\n$/);
    });
  });

  it('launches none when nothing is left', async () => {
    apart = await hostApart({ reservedBytes: os.totalmem(), warmPoolSize: 0 }, 'minimal');
    const error = await rejection(apart.host.launch('minimal'));
    expect(error).toMatchObject({ code: 'SF_NO_ROOM' });
    expect(error.message).toContain('memory for 0 of 1');
    expect(await apart.host.vms({ all: true })).toEqual([]);
  });

  it('gives tickets for fewer with the reason, then SF_NO_ROOM: by the setting vmsMax', async () => {
    apart = await hostApart({ vmsMax: 4, warmPoolSize: 0 }, 'minimal');
    const { host } = apart;
    const vm = await host.launch('minimal');
    const { ticket, clones } = await vm.fork(8);
    expect(ticket).toMatchObject({ asked: 8, clones: 3 });
    expect(ticket.reason).toContain('at most 4 VMs (setting vmsMax)');
    expect(clonesOf({ clones } as never)).toHaveLength(3);
    for (const call of [() => vm.fork(1), () => host.launch('minimal')]) {
      expect(await rejection(call())).toMatchObject({ code: 'SF_NO_ROOM' });
    }
    await clonesOf({ clones } as never)[0]!.kill();

    // An unused ticket holds its room; one that was given up, or whose VM has ended, does not.
    const held = (await sh(vm, 'sf-guest ticket 8 2>/dev/null')).split(' ');
    expect(held[1]).toBe('1');
    expect(await rejection(vm.fork(1))).toMatchObject({ code: 'SF_NO_ROOM' });
    await sh(vm, `sf-guest kill ${held[0]}`);
    const once = await sh(
      vm,
      `id=$(sf-guest fork 8 2>/tmp/words); [ "$id" = 0 ] || sf-guest exit "$id"; cat /tmp/words`,
    );
    expect(once).toContain('sf-guest: 1 of 8 clones: this host runs at most 4 VMs');
  });
});

function availableBytes(): number {
  const text = fs.readFileSync('/proc/meminfo', 'utf8');
  return Number(/^MemAvailable:\s+(\d+) kB/m.exec(text)![1]) * 1024;
}
