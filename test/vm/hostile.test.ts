// Guests that mean harm: they take the port from the guest side and misuse it, lie about their memory,
// break their devices. Whatever one does, the agent lives and its memory stays bounded, its neighbour
// is whole, and it harms itself at most: it is lost, and it is said why.

import fs from 'node:fs';
import path from 'node:path';
import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import {
  clonesOf,
  describeVms,
  endVms,
  guestSidePid,
  MiB,
  rejection,
  Screen,
  Steady,
  sh,
} from '../fixtures/guests.js';
import { patiently } from '../support/eventually.js';
import { hostApart } from '../support/test-host.js';

const fixtures = path.join(import.meta.dirname, '../fixtures/hostile');
/** What a guest may leave unread, what is held for it, and what garbage is not collected yet. */
const AGENT_GROWTH_BYTES_MAX = 320 * MiB;
const LOST = 'the guest broke the protocol: ';

describeVms('a hostile guest', () => {
  let apart: Awaited<ReturnType<typeof hostApart>>;
  let host: Host;
  let agentPid: number;
  let agentBytes: number;
  let neighbour: Steady;
  let armed: string;
  let vm: Vm;
  let screen: Screen;

  beforeAll(async () => {
    apart = await hostApart({ warmPoolSize: 2, guestTimeoutMs: 15_000 }, 'minimal');
    host = apart.host;
    agentPid = (await host.info()).pid;
    neighbour = await Steady.start(await host.launch('minimal'), { mebibytes: 4, who: 'near' });
    // A first fork makes the agent as large as it is in use.
    await neighbour.vm.fork(1);
    await endVms(host, [neighbour.vm]);
    agentBytes = memoryOf(agentPid).VmRSS!;
    armed = await arm();
  });

  /** The state in which all of them begin. */
  async function arm(): Promise<string> {
    const first = await host.launch('minimal');
    for (const file of fs.readdirSync(fixtures)) {
      await first.writeFile(`/root/${file}`, fs.readFileSync(path.join(fixtures, file)));
    }
    const { snapshot } = await first.checkpoint();
    await first.kill();
    return snapshot.id;
  }

  afterAll(async () => {
    await apart?.dispose();
  });

  beforeEach(async () => {
    [vm] = clonesOf(await host.createClones(armed, 1)) as [Vm];
    screen = await Screen.open(vm);
    // The peak is counted from now on.
    fs.writeFileSync(`/proc/${agentPid}/clear_refs`, '5');
  });

  afterEach(async () => {
    expect((await host.info()).pid).toBe(agentPid);
    expect(await neighbour.hash()).toBe(neighbour.expectedHash());
    expect(await sh(neighbour.vm, 'echo here')).toBe('here');
    expect(memoryOf(agentPid).VmHWM! - agentBytes).toBeLessThan(AGENT_GROWTH_BYTES_MAX);
    await screen[Symbol.asyncDispose]();
    await endVms(host, [neighbour.vm]);
  });

  /** Begins to misuse its port. Not by exec: sf-guestd ends before it could answer. */
  async function misuse(...deed: string[]): Promise<void> {
    const command = `perl /root/port.pl ${deed.join(' ')}`;
    await screen.type(`setsid ${command} </dev/null >/dev/ttyS0 2>&1 &`, `${deed[0]}: begins`);
  }

  async function expectLost(words: string | RegExp): Promise<void> {
    const end = await vm.wait();
    const reason =
      typeof words === 'string' ? expect.stringContaining(words) : expect.stringMatching(words);
    expect(end).toMatchObject({ how: 'lost', reason });
    expect(await rejection(vm.exec('true'))).toMatchObject({ code: 'SF_VM_GONE' });
  }

  /** The guest side has the port again, and the VM can do all that it could. */
  async function expectRecovered(deed: string): Promise<void> {
    await screen.shows(`${deed}: ends`);
    await patiently(async () => expect(await sh(vm, 'echo back')).toBe('back'));
    const { clones } = await vm.fork(1);
    expect(clones[0]).toMatchObject({ status: 'fulfilled' });
  }

  describe('that sends what is no message', () => {
    it.each([
      ['garbage', LOST],
      ['too-long', `${LOST}frame of 4294967295 bytes`],
      ['unknown-type', `${LOST}unknown frame type 127`],
      ['agents-frame', `${LOST}frame type 4 is not for the agent`],
      ['no-request', `${LOST}a request is not of the form agreed`],
      ['deep-request', `${LOST}a request is not of the form agreed`],
      ['wide-request', `${LOST}a request is not of the form agreed`],
      ['too-large-exit', `${LOST}messages under way are too large`],
      ['endless-message', `${LOST}messages under way are too large`],
    ])('%s is lost', async (deed, words) => {
      await misuse(deed);
      await expectLost(words);
    });
  });

  describe('that asks for what is not its own', () => {
    it('is told that there is no such thing, and others’ clones go on', async () => {
      const { ticket } = await neighbour.vm.fork(2);
      const kept = await neighbour.vm.checkpoint();
      await misuse('strangers');
      await expectRecovered('strangers');
      const answers = await sh(vm, 'sort /tmp/answers | uniq -c');
      expect(answers).not.toContain('ok');
      expect(answers).toContain('SF_TICKET_NOT_FOUND');
      expect(answers).toContain('SF_SNAPSHOT_NOT_FOUND');
      const slots = await host.join(ticket, { timeoutMs: 0 });
      expect(slots.map(({ status }) => status)).toEqual(['running', 'running']);
      expect((await host.snapshots()).some(({ id }) => id === kept.snapshot.id)).toBe(true);
      await host.removeSnapshot(kept.snapshot.id);
    });

    it.each(['wrong-params', 'much-to-repeat'])('with %s is refused', async (deed) => {
      await misuse(deed);
      await expectRecovered(deed);
      const answers = (await sh(vm, 'cat /tmp/answers')).split('\n');
      expect(new Set(answers)).toEqual(new Set(['SF_BAD_REQUEST']));
    });

    it('or says what nobody asked for is not heard', async () => {
      await misuse('unasked');
      await expectRecovered('unasked');
    });
  });

  describe('that floods', () => {
    it.each(['hellos', 'pings', 'requests', 'closes'])('its port with %s goes on', async (deed) => {
      await misuse(deed);
      // The neighbour is served in the midst of it.
      expect(await sh(neighbour.vm, 'echo served')).toBe('served');
      await expectRecovered(deed);
    });

    it('its port with the output of a command loses it', async () => {
      await misuse('output');
      const exec = rejection(vm.exec('true'));
      await expectLost(`${LOST}output beyond its window`);
      expect(await exec).toMatchObject({ code: 'SF_VM_GONE' });
    });

    it.each(['results', 'waits-for-ever'])('the agent by a ticket of its own: %s', async (deed) => {
      const fork = 'set -- $(sf-guest fork 1 --ticket)';
      const child =
        deed === 'results'
          ? 'head -c 8000000 /dev/zero | sf-guest exit --stdin'
          : 'while :; do sleep 10; done';
      const ticket = await sh(vm, `${fork}; if [ $1 -gt 0 ]; then ${child}; fi; echo $2`);
      if (deed === 'results') await host.join(ticket);
      await misuse(deed, ticket);
      await expectRecovered(deed);
    });

    it('its console goes on', async () => {
      await sh(vm, 'setsid sh -c "yes | head -c 200000 >/dev/ttyS0; echo all-told >/dev/ttyS0" &');
      expect(await sh(neighbour.vm, 'echo served')).toBe('served');
      await screen.shows('all-told');
      expect(await sh(vm, 'echo back')).toBe('back');
    });
  });

  describe('that is silent', () => {
    it.each(['half-a-frame', 'no-prepared'])('%s is not forked', async (deed) => {
      await misuse(deed);
      expect(await rejection(vm.fork(1))).toMatchObject({ code: 'SF_GUEST_NOT_READY' });
    });

    it.each([
      ['no-resumed', 'did not come back'],
      ['repair-fails', 'identity repair failed'],
    ])('%s has no clone', async (deed, words) => {
      await misuse(deed);
      const { clones } = await vm.fork(1);
      expect(clones).toMatchObject([
        { status: 'rejected', reason: { message: expect.stringContaining(words) } },
      ]);
      const { reason } = clones[0] as { reason: Error };
      expect(reason.message.length).toBeLessThan(1000);
      expect(await rejection(vm.fork(1))).toMatchObject({ code: 'SF_GUEST_NOT_READY' });
    });

    it('is forked again when it answers, and all is as it was', async () => {
      const pid = await guestSidePid(vm);
      const own = await Steady.start(vm, { mebibytes: 2, who: 'own' });
      // Not by exec, which needs sf-guestd itself.
      await screen.type(`kill -STOP ${pid}; echo is-$((1+1))`, 'is-2');
      expect(await rejection(vm.fork(1))).toMatchObject({ code: 'SF_GUEST_NOT_READY' });
      await screen.type(`kill -CONT ${pid}; echo is-$((2+2))`, 'is-4');
      const [clone] = clonesOf(await vm.fork(1));
      for (const one of [own, own.inherited(clone!)]) {
        expect(await one.hash()).toBe(one.expectedHash());
      }
    });

    it('as it goes down in the midst of a fork is lost, and so are its clones', async () => {
      await misuse('dies-when-prepared');
      const outcome = await vm.fork(2).then(
        ({ clones }) => clones.map(({ status }) => status),
        (error: { code?: string }) => error.code,
      );
      expect([['rejected', 'rejected'], 'SF_VM_GONE', 'SF_QEMU_FAILED']).toContainEqual(outcome);
      const powersOff = 'the guest powered off, rebooted or panicked';
      const { version } = (await host.info()).qemu;
      // QEMU 10 may crash when its guest goes in the midst of a save.
      const crashes = new RegExp(`${powersOff}|QEMU was killed by SIGSEGV`);
      await expectLost(version.startsWith('10.') ? crashes : powersOff);
    });
  });

  describe('that lies about its memory', () => {
    async function lie(name: string): Promise<void> {
      await sh(
        vm,
        `perl /root/memory.pl ${name} >/tmp/told 2>/tmp/error </dev/null &
         until [ -s /tmp/told ]; do kill -0 $! || { cat /tmp/error >&2; exit 1; }; usleep 50000; done`,
      );
    }

    it.each([
      'beyond-the-ram',
      'at-its-end',
      'no-note',
      'absurd-numbers',
      'tables-loop',
      'tables-outside',
      'list-loops',
      'list-to-itself',
      'list-astray',
      'huge-block',
      'many-nodes',
    ])('by %s has no free pages, and whole clones', async (name) => {
      expect(await freePagesOf(name)).toBe(0);
    });

    it.each(['far-away', 'endless'])('by %s is not asked for it', async (name) => {
      // Its older note, in which there is nothing wrong, still holds.
      expect(await freePagesOf(name)).toBeGreaterThan(10_000);
    });

    it('has as many free pages as it says, so that the other lies are read at all', async () => {
      expect(await freePagesOf('one-block')).toBe(1);
    });

    /** In a fork whose clone is whole. */
    async function freePagesOf(name: string): Promise<number> {
      const steady = await Steady.start(vm, { mebibytes: 2, who: 'liar' });
      await lie(name);
      const { snapshot, clones } = await vm.fork(1);
      expect(clones).toMatchObject([{ status: 'fulfilled' }]);
      const inherited = steady.inherited((clones[0] as { value: Vm }).value);
      for (const one of [steady, inherited]) expect(await one.hash()).toBe(one.expectedHash());
      return snapshot.pages.freePages;
    }

    it('as if all of it were free breaks its own clones and nothing else', async () => {
      const steady = await Steady.start(vm, { mebibytes: 2, who: 'liar' });
      await lie('all-is-free');
      const { snapshot, clones, ticket } = await vm.fork(1);
      expect(snapshot.pages.freePages).toBeGreaterThan(50_000);
      expect(clones).toMatchObject([{ status: 'rejected' }]);
      expect(await host.join(ticket)).toMatchObject([{ status: 'lost' }]);
      expect(await steady.hash()).toBe(steady.expectedHash());
    });

    it('and turns the rings of its disk astray harms itself', async () => {
      const steady = await Steady.start(vm, { mebibytes: 2, who: 'liar' });
      await lie('rings-astray');
      const { clones } = await vm.fork(1);
      // QEMU may refuse to load such a state, or load it with a broken disk.
      expect(['fulfilled', 'rejected']).toContain(clones[0]?.status);
      expect(await steady.hash()).toBe(steady.expectedHash());
    });
  });

  it('that fills its memory and its processes harms itself', async () => {
    await sh(vm, 'setsid sh -c "bomb() { bomb | bomb & }; bomb" >/dev/null 2>&1 &').catch(() => {});
    await sh(vm, 'setsid perl -e \'my @a; push @a, "x" x 1e6 while 1\' >/dev/null 2>&1 &').catch(
      () => {},
    );
    expect(await sh(neighbour.vm, 'echo served')).toBe('served');
  });
});

/** In bytes, by the names of /proc/PID/status. */
function memoryOf(pid: number): Record<string, number> {
  const text = fs.readFileSync(`/proc/${pid}/status`, 'utf8');
  const fields = [...text.matchAll(/^(Vm\w+):\s+(\d+) kB$/gm)];
  return Object.fromEntries(fields.map(([, name, kib]) => [name, Number(kib) * 1024]));
}
