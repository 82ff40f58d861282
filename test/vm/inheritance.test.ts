// What a fork hands down, and what it keeps apart: one VM with a running program of known memory is
// forked once; the tests look at it and its clones, in the order in which they stand here.

import type { ForkOutcome, Host, Vm } from '@snowfork/sdk';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { clonesOf, describeVms, endAll, isGapless, Steady, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { testHost } from '../support/test-host.js';

const CLONES = 4;
const MEBIBYTES = 16;

describeVms('a fork', () => {
  let host: Host;
  let parent: Vm;
  let fork: ForkOutcome;
  let clones: Vm[];
  let steady: Steady;
  /** The same program in the clones. */
  let inherited: Steady[];
  /** The steps that the parent's program had counted before the fork. */
  let stepsBefore: number;

  beforeAll(async () => {
    host = await testHost('minimal');
    parent = await host.launch('minimal');
    await sh(parent, 'head -c 1048576 /dev/urandom >/root/random && sync');
    await sh(parent, 'mkdir -p /run/deep/er && echo words >/run/deep/er/file');
    // A process that waits, with an environment, a folder and an open file of no name.
    await sh(
      parent,
      `echo gone >/tmp/gone && cd /run/deep/er && exec 5</tmp/gone && rm /tmp/gone &&
       HEIRLOOM=clock setsid sleep 100000 </dev/null >/dev/null 2>&1 & echo $! >/tmp/waiting`,
    );
    steady = await Steady.start(parent, { mebibytes: MEBIBYTES, who: 'parent' });
    await eventually(async () => {
      stepsBefore = (await steady.steps()).length;
      expect(stepsBefore).toBeGreaterThan(0);
    });
    fork = await parent.fork(CLONES);
    clones = clonesOf(fork);
    inherited = clones.map((clone) => steady.inherited(clone));
  });

  afterAll(async () => {
    if (host === undefined) return;
    await endAll(host);
    await host.close();
  });

  it('gives clones the ids 1 to m and VM ids of their own', async () => {
    expect(fork.ticket).toMatchObject({ vm: parent.id, asked: CLONES, clones: CLONES, used: true });
    expect(fork.clones.map(({ cloneId }) => cloneId)).toEqual([1, 2, 3, 4]);
    expect(new Set([parent.id, ...clones.map(({ id }) => id)]).size).toBe(CLONES + 1);
    const infos = await Promise.all(clones.map((clone) => clone.info()));
    for (const info of infos) {
      expect(info).toMatchObject({ parent: parent.id, family: parent.id, image: 'minimal' });
      expect(info).toMatchObject({ ticket: fork.ticket.id, snapshot: fork.snapshot.id });
    }
    const told = await Promise.all(clones.map((clone) => sh(clone, 'sf-guest info')));
    expect(told).toEqual(
      infos.map(
        ({ id, cloneId, family }) => `vm=${id}\nid=${cloneId}\nfamily=${family}\nparent=${family}`,
      ),
    );
  });

  it('hands down the memory of a running program, untouched by what the parent writes later', async () => {
    // Before any clone has read any of it.
    await steady.fill({ who: 'later' });
    for (const one of [steady, ...inherited]) expect(await one.hash()).toBe(one.expectedHash());
    expect(steady.expectedHash()).not.toBe(inherited[0]!.expectedHash());
  });

  it('hands down files, also those in RAM', async () => {
    const look = 'sha256sum /root/random && cat /run/deep/er/file && ls -la /root /run/deep';
    const known = await sh(parent, look);
    expect(known).toContain('words');
    for (const clone of clones) expect(await sh(clone, look)).toBe(known);
  });

  it('hands down environment, folder and open files of a running program', async () => {
    const look = `cd /proc/$(cat /tmp/waiting) && tr '\\0' '\\n' <environ && readlink cwd &&
      cat fd/5 && cat stat | cut -d' ' -f1-5,22`;
    const known = await sh(parent, look);
    expect(known).toMatch(/^HEIRLOOM=clock$/m);
    expect(known).toMatch(/^\/run\/deep\/er$/m);
    expect(known).toMatch(/^gone$/m);
    for (const clone of clones) expect(await sh(clone, look)).toBe(known);
  });

  it('lets the parent go on: its program counts without a gap', async () => {
    await eventually(async () => {
      const now = await steady.steps();
      expect(isGapless(now)).toBe(true);
      expect(now.length).toBeGreaterThan(stepsBefore);
    });
  });

  it('lets the clones go on from the same step, each by itself', async () => {
    for (const one of inherited) {
      const first = await one.steps();
      expect(isGapless(first)).toBe(true);
      expect(first.length).toBeGreaterThanOrEqual(stepsBefore);
      await eventually(async () => {
        const second = await one.steps();
        expect(isGapless(second)).toBe(true);
        expect(second.length).toBeGreaterThan(first.length);
      });
    }
  });

  it('keeps what each writes to itself: files', async () => {
    await Promise.all(
      clones.map((clone, at) => sh(clone, `echo ${at + 1} >/root/mine && rm /root/random`)),
    );
    await sh(parent, '! [ -e /root/mine ] && [ -e /root/random ] && echo 0 >/root/mine');
    for (const [at, clone] of clones.entries()) {
      expect(await sh(clone, 'cat /root/mine; ls /root')).toBe(`${at + 1}\nmine\nsteady.pl`);
    }
    expect(await sh(parent, 'cat /root/mine')).toBe('0');
  });

  it('keeps what each writes to itself: every page of memory, by hash', async () => {
    // The last clone writes nothing.
    await Promise.all(inherited.slice(0, 3).map((one, at) => one.fill({ who: at + 1 })));
    const everybody = [steady, ...inherited];
    const hashes = await Promise.all(everybody.map((one) => one.hash()));
    expect(hashes).toEqual(everybody.map((one) => one.expectedHash()));
    expect(new Set(hashes).size).toBe(everybody.length);
  });

  it('gives each a host name, a machine id and randomness of its own', async () => {
    const everybody = [parent, ...clones];
    const look = 'hostname && cat /etc/machine-id && head -c 32 /dev/urandom | sha256sum';
    const told = await Promise.all(everybody.map((vm) => sh(vm, look)));
    const [names, machines, random] = [0, 1, 2].map((line) =>
      told.map((text) => text.split('\n')[line]),
    );
    expect(names!.slice(1)).toEqual(clones.map(({ id }) => id));
    expect(new Set(machines).size).toBe(everybody.length);
    expect(new Set(random).size).toBe(everybody.length);
  });

  it('shares the pages that nobody wrote', async () => {
    for (const clone of clones) {
      const stats = await clone.stats();
      expect(stats.sharedPages).toBeGreaterThan(0);
      expect(stats.privatePages).toBeGreaterThan(0);
      expect(stats.touchedPages).toBe(stats.sharedPages + stats.privatePages);
      expect(stats.touchedPages).toBeLessThan(fork.snapshot.pages.totalPages / 2);
    }
  });

  it('tells which of them got what, and from where', async () => {
    const { id } = fork.snapshot;
    const { vms, pager } = await host.stats();
    const all = pager.objects.find((of) => of.object === 'ram' && of.snapshot === id)!;
    const clonesOfIt = vms.filter(({ snapshot }) => snapshot === id);
    const sum = (source: 'zero' | 'local') =>
      clonesOfIt.reduce((pages, vm) => pages + vm.pages[source], 0);
    expect(clonesOfIt.map(({ vm }) => vm).sort()).toEqual(clones.map((vm) => vm.id).sort());
    expect([sum('zero'), sum('local')]).toEqual([all.zeroPages, all.localPages]);
    expect(Math.min(all.zeroPages, all.localPages)).toBeGreaterThan(0);
    for (const clone of clones) expect((await clone.stats()).pages!.cache).toBeGreaterThan(0);
  });
});
