// An agent that is killed, and the next one: VMs go on, waits are answered, and what could not be
// saved is said to be lost. Each test has an agent of its own.

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { connect, type Host, type Vm, type VmInfo } from '@snowfork/sdk';
import { afterEach, expect, it } from 'vitest';
import { clonesOf, describeVms, endAll, leftOvers, Steady, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { isRunning, mountsBelow, startedBy } from '../support/processes.js';
import { hostApart } from '../support/test-host.js';

/** Forks two clones which wait for /tmp/go before they exit, joins them, and writes what came. */
const JOINER = `set -- $(sf-guest fork 2 --ticket)
if [ "$1" -gt 0 ]; then
  until [ -e /tmp/go ]; do usleep 20000; done
  sf-guest exit "value $1"
fi
touch /tmp/joining
sf-guest join "$2" > /tmp/joined.new 2>&1
mv /tmp/joined.new /tmp/joined
`;
/** After a program has asked for a fork; the last time, when its clones are there. */
const KILL_DELAYS_MS = [0, 5, 20, 40, 60, 90, 130, undefined];

describeVms('an agent that is killed', () => {
  let apart: Awaited<ReturnType<typeof hostApart>>;
  let host: Host;

  async function start(warmPoolSize = 1): Promise<void> {
    apart = await hostApart({ warmPoolSize }, 'minimal');
    host = apart.host;
  }

  /** Ends the agent as nothing else does, and returns when it has gone. */
  async function killAgent(): Promise<number> {
    const { pid } = await host.info();
    process.kill(pid, 'SIGKILL');
    await eventually(() => expect(isRunning(pid)).toBe(false));
    return pid;
  }

  async function nextAgent(): Promise<void> {
    await host.close();
    host = await connect({ stateFolder: apart.state });
  }

  afterEach(async () => {
    await nextAgent();
    await host.shutDown();
    await host.close();
    await apart.dispose();
    expect(mountsBelow(apart.state)).toEqual([]);
  });

  it('leaves its VMs to the next one as they are', async () => {
    await start();
    const vm = await host.launch('minimal');
    const steady = await Steady.start(vm, { mebibytes: 2, who: 'parent' });
    const [clone] = clonesOf(await vm.fork(1));
    const inherited = steady.inherited(clone!);
    await inherited.fill({ who: 'clone', first: 7, count: 100 });
    const { snapshot } = await vm.checkpoint();
    await sh(vm, 'echo kept > /tmp/file; setsid sleep 1000 >/dev/null 2>&1 </dev/null &');
    const before = await host.vms();
    await killAgent();
    await nextAgent();
    expect(await host.vms()).toEqual(before);
    for (const one of [steady, inherited]) {
      const vm = await host.vm(one.vm.id);
      const adopted = one.inherited(vm);
      expect(await adopted.hash()).toBe(one.expectedHash());
      expect(await sh(vm, 'hostname')).toBe(vm.id);
    }
    const parent = await host.vm(vm.id);
    expect(await sh(parent, 'cat /tmp/file; ps | grep -c "[s]leep 1000"')).toBe('kept\n1');
    const [later] = clonesOf(await parent.fork(1));
    expect(before.map(({ id }) => id)).not.toContain(later!.id);
    expect(await steady.inherited(later!).hash()).toBe(steady.expectedHash());
    const [restored] = clonesOf(await host.createClones(snapshot.id, 1));
    expect(await steady.inherited(restored!).hash()).toBe(steady.expectedHash());
    await endAll(host, apart.state);
  });

  it('leaves waits to the next one: of programs in guests, and of callers on the host', async () => {
    await start();
    const vm = await host.launch('minimal');
    await vm.writeFile('/root/joiner.sh', JOINER);
    await sh(vm, 'setsid sh /root/joiner.sh </dev/null >/dev/null 2>&1 &');
    await eventually(async () => expect(await sh(vm, 'ls /tmp')).toContain('joining'));
    let clones: VmInfo[] = [];
    await eventually(async () => {
      clones = (await host.vms()).filter(({ parent }) => parent === vm.id);
      // Their processors run sooner, but until then they are not handed out, and not adopted.
      expect(clones.filter(({ times }) => (times?.answeredMs ?? 0) > 0)).toHaveLength(2);
    });
    await using caller = await connect({ stateFolder: apart.state });
    const joined = caller.join(clones[0]!.ticket!);
    const waited = (await caller.vm(clones[0]!.id)).wait();
    const killed = await killAgent();
    // Nobody but the waits starts the next one.
    await eventually(() => {
      const pid = agentOf(apart.state);
      expect(pid).toBeGreaterThan(0);
      expect(pid).not.toBe(killed);
    });
    await nextAgent();
    for (const { id } of clones) await sh(await host.vm(id), 'touch /tmp/go');
    const slots = [1, 2].map((cloneId) => ({
      cloneId,
      status: 'exited',
      value: `value ${cloneId}`,
    }));
    expect(await joined).toMatchObject(slots);
    expect(await waited).toEqual({ how: 'exited', value: `value ${clones[0]!.cloneId}` });
    const parent = await host.vm(vm.id);
    await eventually(async () => {
      expect(await sh(parent, 'cat /tmp/joined')).toBe('1 exited value 1\n2 exited value 2');
    });
    // What was joined once can be joined again, also of yet another agent.
    await killAgent();
    await nextAgent();
    expect(await host.join(clones[0]!.ticket!)).toMatchObject(slots);
  });

  it('leaves VMs of the host’s own tickets, which do not run out', async () => {
    await start();
    const vm = await host.launch('minimal');
    const { snapshot } = await vm.checkpoint();
    const made = await host.createClones(snapshot.id, 1);
    const [clone] = clonesOf(made);
    for (let agent = 0; agent < 2; agent++) {
      await killAgent();
      makeTicketsOld(apart.state);
      await nextAgent();
      for (const { id } of [vm, clone!]) await sh(await host.vm(id), 'true');
      const slots = await host.join(made.ticket.id, { timeoutMs: 0 });
      expect(slots).toMatchObject([{ status: 'running' }]);
    }
  });

  it('does not take a program along that waits for its fork: it is answered, and whole', async () => {
    await start(2);
    const vm = await host.launch('minimal');
    const steady = await Steady.start(vm, { mebibytes: 2, who: 'parent' });
    let forks = 0;
    for (const [round, delayMs] of KILL_DELAYS_MS.entries()) {
      const parent: Vm = await host.vm(vm.id);
      await parent.writeFile(
        '/root/forker.sh',
        `set -- $(sf-guest fork 2 --ticket 2>&1); [ "$1" = 1 ] || [ "$1" = 2 ] && sf-guest exit
echo "$@" > /tmp/new; mv /tmp/new /tmp/answer${round}`,
      );
      await sh(parent, 'setsid sh /root/forker.sh </dev/null >/dev/null 2>&1 &');
      if (delayMs !== undefined) await delay(delayMs);
      else await eventually(async () => expect((await host.vms()).length).toBeGreaterThan(1));
      await killAgent();
      await nextAgent();
      const adopted = await host.vm(vm.id);
      let answer = '';
      await eventually(async () => {
        answer = await sh(adopted, `cat /tmp/answer${round}`);
      });
      if (answer.startsWith('0 ')) {
        forks += 1;
        const [, ticket] = answer.split(' ');
        for (const slot of await host.join(ticket!)) expect(slot.status).not.toBe('running');
      } else expect(answer).toContain('agent');
      expect(await steady.inherited(adopted).hash()).toBe(steady.expectedHash());
    }
    expect(forks).toBeGreaterThan(0);
    await endAll(host, apart.state);
  });

  it('leaves no VM that has ended meanwhile as if it ran, nor one that it was starting', async () => {
    await start();
    const vm = await host.launch('minimal');
    const fork = await vm.fork(2);
    const [one, two] = clonesOf(fork);
    const { pid } = (await host.vms()).find(({ id }) => id === one!.id)!;
    await killAgent();
    process.kill(pid!, 'SIGKILL');
    await eventually(() => expect(isRunning(pid!)).toBe(false));
    await nextAgent();
    expect((await host.vms()).map(({ id }) => id)).toEqual([vm.id, two!.id]);
    expect(await host.join(fork.ticket, { timeoutMs: 0 })).toMatchObject([
      { cloneId: 1, status: 'lost', reason: 'it ended while no agent ran' },
      { cloneId: 2, status: 'running' },
    ]);
    expect(await (await host.vm(one!.id)).wait()).toMatchObject({ how: 'lost' });
    await endAll(host, apart.state);
    expect(leftOvers(apart.state)).toEqual([]);
  });

  it('leaves a process alone that has by chance the number of one of its own', async () => {
    await start(0);
    const vm = await host.launch('minimal');
    const pid = (await host.vms())[0]!.pid!;
    await killAgent();
    // The same number, started at another time.
    const record = path.join(apart.state, 'journal', `vm-${vm.id}.json`);
    const process_ = path.join(apart.state, 'processes', String(pid));
    const startTime = fs.readFileSync(process_, 'utf8');
    const other = startTime.replace(/\d+$/, (ticks) => String(Number(ticks) + 1));
    fs.writeFileSync(process_, other);
    fs.writeFileSync(record, fs.readFileSync(record, 'utf8').replace(startTime, other));
    await nextAgent();
    expect(await host.vms()).toEqual([]);
    expect(isRunning(pid)).toBe(true);
    process.kill(pid, 'SIGKILL');
  });

  it('together with its pager loses its VMs, which get no page, and no zeros in place of one', async () => {
    await start(0);
    const vm = await host.launch('minimal');
    const [{ pid }] = (await host.vms()) as [VmInfo];
    const pager = (await host.stats()).pager.pid;
    const agent = (await host.info()).pid;
    process.kill(agent, 'SIGKILL');
    process.kill(pager, 'SIGKILL');
    await eventually(() => expect([agent, pager].filter(isRunning)).toEqual([]));
    await nextAgent();
    expect((await host.info()).previous).toMatchObject({ adopted: [], lost: [vm.id] });
    expect(isRunning(pid!)).toBe(false);
    expect(await host.vms()).toEqual([]);
    expect(await sh(await host.launch('minimal'), 'echo here')).toBe('here');
  });

  it('with all that it has started is cleaned up after, and what was lost is said', async () => {
    await start(2);
    const vm = await host.launch('minimal');
    const fork = await vm.fork(2);
    await vm.checkpoint();
    await eventually(async () => expect((await host.stats()).pool.ready).toBe(2));
    const { pid } = await host.info();
    const started = startedBy(apart.state);
    expect(started).toHaveLength(3 + 2 + 1);
    for (const one of [pid, ...started]) process.kill(one, 'SIGKILL');
    await eventually(() => expect([pid, ...started].filter(isRunning)).toEqual([]));
    await nextAgent();
    const { previous } = await host.info();
    expect(previous).toMatchObject({
      adopted: [],
      lost: [vm.id, ...clonesOf(fork).map(({ id }) => id)],
      tickets: [fork.ticket.id],
    });
    expect(await host.vms({ all: true })).toEqual([]);
    expect(mountsBelow(apart.state)).toHaveLength(2);
    expect(leftOvers(apart.state)).toEqual([]);
    expect(fs.readdirSync(path.join(apart.state, 'journal'))).toEqual(['numbers.json']);
    const again = await host.launch('minimal');
    expect(await sh(again, 'echo here')).toBe('here');
    expect(again.id).not.toBe(vm.id);
  });
});

/** The agent that has the folder, by its file. */
function agentOf(state: string): number {
  try {
    const { pid } = JSON.parse(fs.readFileSync(path.join(state, 'agent.json'), 'utf8'));
    return pid as number;
  } catch {
    return 0;
  }
}

/** As if they had been asked for an hour ago. */
function makeTicketsOld(state: string): void {
  const folder = path.join(state, 'journal');
  const tickets = fs.readdirSync(folder).filter((name) => name.startsWith('ticket-'));
  expect(tickets.length).toBeGreaterThan(0);
  for (const name of tickets) {
    const file = path.join(folder, name);
    const record = JSON.parse(fs.readFileSync(file, 'utf8')) as { createdAt: number };
    record.createdAt -= 3_600_000;
    fs.writeFileSync(file, `${JSON.stringify(record)}\n`);
  }
}
