// What a clone must have of its own: random values of every source, clock, names; and hooks, by
// which others renew theirs. A program of the guest draws before and after a fork, in all copies; no
// value may come twice. What Python draws is tested with its module.

import fs from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline';
import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { clonesOf, describeVms, endAll, endVms, guestSidePid, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { testHost } from '../support/test-host.js';

const CLONES = 32;
/** Of a QEMU that loses its processor as it resumes; without repair it would be the start's length. */
const CLOCK_ERROR_MS_MAX = 100;
const HOOKS = '/etc/snowfork/fork.d';
const fixtures = path.resolve(import.meta.dirname, '../fixtures');

type Drawn = Record<string, string[]>;

/** Values of one source that came more than once. */
function repeated(values: readonly string[]): string[] {
  return values.filter((value, index) => values.indexOf(value) !== index);
}

describeVms('identity', () => {
  let host: Host;

  beforeAll(async () => {
    host = await testHost('minimal', 'node');
  });

  afterEach(async () => {
    if (host !== undefined) await endVms(host);
  });

  afterAll(async () => {
    if (host === undefined) return;
    await endAll(host);
    await host.close();
  });

  it(`no two of a Node program and its ${CLONES} clones draw the same`, async () => {
    const vm = await host.launch('node');
    await vm.writeFile('/root/draw.mjs', fs.readFileSync(path.join(fixtures, 'draw.mjs')));
    const { stdout, stderr } = await vm.exec(['node', '/root/draw.mjs', String(CLONES)]);
    expect(stderr).toBe('');
    const { before, copies } = JSON.parse(stdout) as { before: Drawn; copies: Drawn[] };
    expect(copies.filter((copy) => typeof copy === 'string')).toEqual([]);
    expect(copies.length).toBe(CLONES + 1);
    const sources = Object.keys(before);
    expect(sources.length).toBe(11);
    for (const source of sources) {
      const values = [before, ...copies].flatMap((copy) => copy[source]!);
      // Of TLS two values each, of the others five.
      expect(values.length, source).toBe((CLONES + 2) * before[source]!.length);
      expect(repeated(values), source).toEqual([]);
    }
  });

  it(`the kernel of ${CLONES} clones, their names and their clocks are their own`, async () => {
    const vm = await host.launch('minimal');
    const look = `hostname && cat /etc/hostname /etc/machine-id &&
      head -c 32 /dev/urandom | od -A n -t x1 -w32`;
    const seen = async (copy: Vm) => (await sh(copy, look)).split('\n');
    const [name, , machineId] = await seen(vm);
    const clones = clonesOf(await vm.fork(CLONES));
    for (const copy of [vm, ...clones]) {
      expect(await clockErrorMs(copy), copy.id).toBeLessThan(CLOCK_ERROR_MS_MAX);
    }
    const all: string[][] = [];
    for (const copy of [vm, ...clones]) all.push(await seen(copy));
    expect(all[0]!.slice(0, 3)).toEqual([name, name, machineId]);
    for (const [index, clone] of clones.entries()) {
      expect(all[index + 1]!.slice(0, 2)).toEqual([clone.id, clone.id]);
    }
    for (const own of [2, 3]) expect(repeated(all.map((values) => values[own]!))).toEqual([]);
  });

  it('the clock is right in a clone of a checkpoint that is long past', async () => {
    const vm = await host.launch('minimal');
    const { snapshot } = await vm.checkpoint();
    await vm.kill();
    await new Promise((resolve) => setTimeout(resolve, 3000));
    for (const clone of clonesOf(await host.createClones(snapshot.id, 2))) {
      expect(await clockErrorMs(clone)).toBeLessThan(CLOCK_ERROR_MS_MAX);
    }
  });

  it('no program of a clone runs before the clone has its own name', async () => {
    const vm = await host.launch('minimal');
    // Writes the time and the host's name, all the time.
    const write = `use POSIX (); $| = 1; for (;;) {
      my $timespec = pack "q2", 0, 0;
      syscall 228, 1, $timespec;
      my (undef, $name) = POSIX::uname();
      printf "%d%09d $name\\n", unpack "q2", $timespec;
      select undef, undef, undef, 0.0005;
    }`;
    await sh(vm, `perl -e '${write}' >/run/record 2>&1 & until [ -s /run/record ]; do :; done`);
    const clones = clonesOf(await vm.fork(3));
    const parent = new Set((await sh(vm, 'cat /run/record')).split('\n'));
    for (const clone of clones) {
      await sh(clone, 'until grep -q " $(hostname)$" /run/record; do usleep 10000; done');
      const record = (await sh(clone, 'cat /run/record')).split('\n');
      const first = record.findIndex((line) => !parent.has(line));
      expect(first).toBeGreaterThan(0);
      expect(record[first]!.split(' ')[1]).toBe(clone.id);
    }
  });

  it('a clone whose repair fails is never handed out', async () => {
    const vm = await host.launch('minimal');
    await sh(vm, 'umount -l /etc/machine-id && rm /etc/machine-id && mkdir /etc/machine-id');
    // The guest side has the file open: another one has to find that there is none.
    const guestSide = await guestSidePid(vm);
    await vm.exec(`kill -9 ${guestSide}`).catch(() => {});
    await eventually(async () => expect(await guestSidePid(vm)).not.toBe(guestSide));
    const { clones, ticket } = await vm.fork(2);
    const reason = expect.stringContaining('identity repair failed: /etc/machine-id: Is a dir');
    const failed = { status: 'rejected', reason: { code: 'SF_CLONE_FAILED', message: reason } };
    expect(clones).toMatchObject([failed, failed]);
    expect((await host.vms()).map(({ id }) => id)).toEqual([vm.id]);
    expect(await host.join(ticket.id)).toMatchObject([
      { status: 'lost', reason },
      { status: 'lost', reason },
    ]);
    // A program that asks gets no answer in the clone: what is behind it never runs.
    const forked = await sh(vm, 'id=$(sf-guest fork 2); echo "$id" >>/run/ids; cat /run/ids');
    expect(forked).toBe('0');
    await sh(vm, 'rmdir /etc/machine-id');
    expect(clonesOf(await vm.fork(1))).toHaveLength(1);
  });

  it('hooks of the guest run in parent and clones, before programs go on', async () => {
    const vm = await host.launch('minimal');
    await writeHook(vm, 'note', 'echo "$SNOWFORK_ROLE $SNOWFORK_ID $(hostname)" >>/run/forks');
    // A program that runs all the time, and never without the note of the last fork.
    await sh(vm, '(while :; do :; done) >/dev/null 2>&1 &');
    const clones = clonesOf(await vm.fork(3));
    expect(await sh(vm, 'cat /run/forks')).toBe(`parent 0 ${await sh(vm, 'hostname')}`);
    for (const [index, clone] of clones.entries()) {
      expect(await sh(clone, 'cat /run/forks')).toBe(`clone ${index + 1} ${clone.id}`);
    }
  });

  it('a clone whose hook fails is lost, with the reason, and nobody else is', async () => {
    const vm = await host.launch('minimal');
    await writeHook(vm, 'picky', '[ "$SNOWFORK_ID" != 2 ]');
    const { clones, ticket } = await vm.fork(3);
    expect(clones.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
    const reason = expect.stringContaining(`${HOOKS}/picky ended with code 1`);
    expect(clones[1]).toMatchObject({ reason: { code: 'SF_CLONE_FAILED', message: reason } });
    for (const clone of [clones[0]!, clones[2]!]) {
      if (clone.status === 'fulfilled') expect(await sh(clone.value, 'echo here')).toBe('here');
    }
    expect(await sh(vm, 'echo here')).toBe('here');
    await endVms(host, [vm]);
    const slots = await host.join(ticket.id);
    expect(slots[1]).toMatchObject({ status: 'lost', reason });
  });

  it('a parent whose hook fails goes on, and its clones too', async () => {
    const vm = await host.launch('minimal');
    await writeHook(vm, 'picky', '[ "$SNOWFORK_ROLE" = clone ]');
    const clones = clonesOf(await vm.fork(2));
    for (const copy of [vm, ...clones]) expect(await sh(copy, 'echo here')).toBe('here');
    expect(clonesOf(await vm.fork(1)).length).toBe(1);
  });

  it('hooks of sf.onFork run in a program that did not fork itself', async () => {
    const vm = await host.launch('node');
    await vm.writeFile(
      '/root/service.mjs',
      `import fs from 'node:fs';
       import { sf } from '@snowfork/sdk/guest';
       sf.onFork(({ role, id }) => fs.appendFileSync('/run/told', role + id + ' ' + Math.random() + '\\n'));
       fs.writeFileSync('/run/ready', '');
       setInterval(() => {}, 1000);`,
    );
    await sh(
      vm,
      'node /root/service.mjs >/run/service.log 2>&1 & while [ ! -e /run/ready ]; do sleep 0.05; done',
    );
    const clones = clonesOf(await vm.fork(2));
    const told: string[] = [];
    for (const copy of [vm, ...clones]) {
      told.push(await sh(copy, 'while [ ! -e /run/told ]; do sleep 0.05; done; cat /run/told'));
    }
    expect(told.map((line) => line.split(' ')[0])).toEqual(['parent0', 'clone1', 'clone2']);
    expect(repeated(told.map((line) => line.split(' ')[1]!))).toEqual([]);
  });
});

async function writeHook(vm: Vm, name: string, script: string): Promise<void> {
  await sh(vm, `mkdir -p ${HOOKS}`);
  await vm.writeFile(`${HOOKS}/${name}`, `#!/bin/sh\n${script}\n`);
  await sh(vm, `chmod 755 ${HOOKS}/${name}`);
}

/**
 * By how much the guest's clock differs from the host's at least. Each reading is taken between two of
 * the host's; the truth lies in all of these spans.
 */
async function clockErrorMs(vm: Vm): Promise<number> {
  const readClock = `$| = 1; while (<>) {
    my $timespec = pack "q2", 0, 0;
    syscall 228, 0, $timespec;
    printf "%d%09d\\n", unpack "q2", $timespec;
  }`;
  const reader = await vm.spawn(['perl', '-e', readClock]);
  const lines = createInterface({ input: reader.stdout })[Symbol.asyncIterator]();
  let lowMs = Number.NEGATIVE_INFINITY;
  let highMs = Number.POSITIVE_INFINITY;
  for (let reading = 0; reading < 10; reading++) {
    // The host's clock itself, a millisecond coarse: a process's own count does not follow its steps.
    const before = Date.now();
    reader.stdin.write('\n');
    const guest = Number(BigInt((await lines.next()).value) / 1000n) / 1000;
    lowMs = Math.max(lowMs, guest - (Date.now() + 1));
    highMs = Math.min(highMs, guest - before);
  }
  reader.stdin.end();
  await reader.exit;
  return Math.max(lowMs, -highMs, 0);
}
