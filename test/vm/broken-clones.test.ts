// Clones that break, each in its own way: their slots say so, and nobody else notices.

import fs from 'node:fs';
import path from 'node:path';
import type { ClonesResult, Host, Vm } from '@snowfork/sdk';
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  clonesOf,
  describeVms,
  endAll,
  guestSidePid,
  rejection,
  Screen,
  Steady,
  sh,
} from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { testHost } from '../support/test-host.js';

const VALUE_BYTES_MAX = 8 * 1024 * 1024;
const MEBIBYTES = 2;

describeVms('a clone that breaks', () => {
  let host: Host;
  let parent: Vm;
  let steady: Steady;
  let fork: ClonesResult;
  /** Taken from by the tests, one after another; the last two are never broken. */
  let clones: Vm[];
  const bystanders: Steady[] = [];

  beforeAll(async () => {
    host = await testHost('minimal');
    parent = await host.launch('minimal');
    const program = fs.readFileSync(path.join(import.meta.dirname, '../fixtures/exit-twice.pl'));
    await parent.writeFile('/root/exit-twice.pl', program);
    steady = await Steady.start(parent, { mebibytes: MEBIBYTES, who: 'parent' });
    fork = await parent.fork(10);
    clones = clonesOf(fork);
    for (let i = 0; i < 2; i++) bystanders.push(steady.inherited(clones.pop()!));
  });

  afterAll(async () => {
    if (host === undefined) return;
    await endAll(host);
    await host.close();
  });

  /** What the ticket says of a clone that must have ended. */
  async function slotOf(vm: Vm): Promise<unknown> {
    await vm.wait();
    const slots = await host.join(fork.ticket, { timeoutMs: 0 });
    return slots.find((slot) => slot.vm === vm.id);
  }

  it('by a kernel panic is lost; its console has the words', async () => {
    const clone = clones.pop()!;
    await using screen = await Screen.open(clone);
    await screen.type('echo is-$((3+4))', 'is-7');
    const crash = clone.exec('echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger');
    expect(await rejection(crash)).toMatchObject({ code: 'SF_VM_GONE' });
    expect(await slotOf(clone)).toMatchObject({
      status: 'lost',
      reason: 'the guest powered off, rebooted or panicked',
    });
    await screen.shows('Kernel panic - not syncing: sysrq triggered crash');
    expect((await clone.info()).end).toMatchObject({ how: 'lost' });
  });

  it.each(['poweroff', 'reboot'])('by its own %s is lost', async (command) => {
    const clone = clones.pop()!;
    await clone.exec(`${command} -f`).catch(() => {});
    expect(await slotOf(clone)).toMatchObject({ status: 'lost' });
  });

  it('whose QEMU is killed is lost', async () => {
    const clone = clones.pop()!;
    process.kill((await clone.info()).pid!, 'SIGKILL');
    expect(await slotOf(clone)).toMatchObject({
      status: 'lost',
      reason: expect.stringContaining('QEMU was killed by SIGKILL'),
    });
    expect(await rejection(clone.exec('true'))).toMatchObject({ code: 'SF_VM_GONE' });
  });

  it('whose QEMU is killed while commands run fails those at once', async () => {
    const clone = clones.pop()!;
    const running = await clone.spawn('echo started; sleep 1000');
    for await (const chunk of running.stdout) {
      expect(chunk.toString()).toBe('started\n');
      break;
    }
    process.kill((await clone.info()).pid!, 'SIGKILL');
    expect(await rejection(running.exit)).toMatchObject({ code: 'SF_VM_GONE' });
  });

  it('that hands over too much is told so, and may hand over less', async () => {
    const clone = clones.pop()!;
    const tooMuch = `head -c ${VALUE_BYTES_MAX} /dev/zero | sf-guest exit --stdin`;
    const { code, stderr } = await clone.exec(tooMuch);
    expect(code).toBe(1);
    expect(stderr).toContain('SF_VALUE_TOO_LARGE');
    await clone.exec('sf-guest exit little').catch(() => {});
    expect(await slotOf(clone)).toMatchObject({ status: 'exited', value: 'little' });
  });

  it('that exits twice has handed over its first value', async () => {
    const clone = clones.pop()!;
    await clone.exec('perl /root/exit-twice.pl').catch(() => {});
    expect(await slotOf(clone)).toMatchObject({ status: 'exited', value: 'first' });
  });

  it('whose guest side dies gets a new one: commands fail, then it answers and forks again', async () => {
    const clone = clones.pop()!;
    const running = await clone.spawn('sleep 1000');
    await using screen = await Screen.open(clone);
    await screen.type(`kill -9 ${await guestSidePid(clone)}; echo is-$((5+6))`, 'is-11');
    expect(await rejection(running.exit)).toMatchObject({ code: 'SF_GUEST_NOT_READY' });
    await eventually(async () => expect(await sh(clone, 'echo back')).toBe('back'));
    const own = steady.inherited(clone);
    const [grandchild] = clonesOf(await clone.fork(1));
    const inherited = own.inherited(grandchild!);
    expect(await inherited.hash()).toBe(inherited.expectedHash());
    await grandchild!.kill();
    await clone.kill();
    expect(await slotOf(clone)).toMatchObject({
      status: 'lost',
      reason: 'a caller of the API ended it',
    });
  });

  it('does no harm to its siblings and its parent', async () => {
    expect(clones).toEqual([]);
    const statuses = (await host.join(fork.ticket, { timeoutMs: 0 })).map(({ status }) => status);
    expect(statuses.filter((status) => status === 'running')).toHaveLength(bystanders.length);
    for (const one of [steady, ...bystanders]) {
      expect(await one.hash()).toBe(one.expectedHash());
    }
    const again = await parent.fork(1);
    const inherited = steady.inherited(clonesOf(again)[0]!);
    expect(await inherited.hash()).toBe(inherited.expectedHash());
  });
});
