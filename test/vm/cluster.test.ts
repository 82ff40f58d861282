// Clones on several hosts: real agents and real VMs, each host a network namespace. Where clones are,
// that each has its parent's memory, whatever happens to datagrams and hosts, and who is refused.

import { setTimeout as delay } from 'node:timers/promises';
import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { clonesOf, describeVms, endVms, rejection, sh } from '../fixtures/guests.js';
import {
  agentLog,
  type ClusterHost,
  type ClusterHosts,
  joinHosts,
  metricsOf,
  openHosts,
  processOf,
  selfOf,
} from '../support/cluster-hosts.js';
import { eventually, patiently } from '../support/eventually.js';

/** So long that a busy machine is not late, and shorter than a guest may take. */
const ORIGIN_TIMEOUT_MS = 15_000;
/** So long that no agent is lost for being slow, or for being started again. */
const HOST_TIMEOUT_MS = 30_000;
/** Within that time. */
const ANSWERS_MIN = 10;
const DATA_MIB = 12;
/** Touches of so much are more than all others of a clone. */
const MUCH_MIB = 96;
const makeData = (mib: number) =>
  `dd if=/dev/urandom of=/dev/shm/data bs=1M count=${mib} 2>/dev/null`;
const MAKE_DATA = makeData(DATA_MIB);
const HASH = 'md5sum < /dev/shm/data';
/** Many more pages than what others of its family have touched, and a clone may not touch. */
const MAKE_MUCH = makeData(MUCH_MIB);
/** A page here and one there of that, so that none is pushed for its neighbours' sake. */
const TOUCHES = (MUCH_MIB * 256) / 8;
const TOUCH = `perl -e 'open F, "<:unix", "/dev/shm/data"; for (1..${TOUCHES}) {
  sysseek F, ($_ * 61 % ${TOUCHES}) * 8 * 4096, 0; $n += sysread F, $b, 1 } print $n'`;
const DATA_PAGES = DATA_MIB * 256;
const MEMORY_SERVER = 'memserver/dist/main.js';
const PAGER = 'pager/main.js';
/** Linux's own. */
const GSO_SEGMENTS = 65_535;
/** As in `/proc/PID/cmdline`. */
const ETCD = 'etcd\0--name';
/** So long nothing comes when all has come, on a busy machine too. */
const QUIET_MS = 500;
const CLONES_EVER = 4;

describeVms('a cluster of three hosts', () => {
  let cluster: ClusterHosts;
  let alpha: ClusterHost;
  let beta: ClusterHost;
  let gamma: ClusterHost;
  let vm: Vm;
  let hash: string;

  beforeAll(async () => {
    cluster = await joinHosts(3, {
      originTimeoutMs: ORIGIN_TIMEOUT_MS,
      hostTimeoutMs: HOST_TIMEOUT_MS,
    });
    [alpha, beta, gamma] = cluster.hosts as [ClusterHost, ClusterHost, ClusterHost];
    vm = await alpha.sf.launch('minimal');
    hash = await sh(vm, `${MAKE_DATA}; ${HASH}`);
  });

  afterEach(async () => {
    for (const { net } of cluster?.hosts ?? []) await net.heal();
    if (vm !== undefined) await endVms(alpha.sf, [vm]);
  });

  afterAll(async () => {
    await cluster?.close();
  });

  async function hashes(clones: readonly Vm[]): Promise<string[]> {
    return await Promise.all(clones.map((clone) => sh(clone, HASH)));
  }

  const hostsOf = (clones: readonly Vm[]) => clones.map(({ initialInfo }) => initialInfo.host);

  it('has them all, as every host sees it', async () => {
    for (const { sf } of cluster.hosts) {
      const hosts = await sf.hosts();
      expect(hosts.map(({ name, state }) => [name, state])).toEqual([
        ['alpha', 'up'],
        ['beta', 'up'],
        ['gamma', 'up'],
      ]);
    }
  });

  it('runs the clones of a fork on every host, each with the memory of its parent', async () => {
    const clones = clonesOf(await vm.fork(6));
    expect(hostsOf(clones).sort()).toEqual(['alpha', 'alpha', 'beta', 'beta', 'gamma', 'gamma']);
    for (const { id, initialInfo } of clones)
      expect(id.endsWith(`-${initialInfo.host}`)).toBe(true);
    expect(await hashes(clones)).toEqual(clones.map(() => hash));
    expect(await Promise.all(clones.map((clone) => sh(clone, 'hostname')))).toEqual(
      clones.map(({ id }) => id),
    );
    const listed = (await beta.sf.vms()).map(({ id }) => id);
    expect(listed.sort()).toEqual([vm.id, ...clones.map(({ id }) => id)].sort());
    const { status, text } = await metricsOf(beta);
    expect([status, status === 200 || text]).toEqual([200, true]);
    const demanded = [
      ...text.matchAll(/^snowfork_vm_pages_total{vm="(.*?)".*source="demand"} [1-9]/gm),
    ];
    const onBeta = clones.filter(({ initialInfo }) => initialInfo.host === 'beta');
    expect(demanded.map(([, id]) => id).sort()).toEqual(onBeta.map(({ id }) => id).sort());
  });

  it('places clones as it is asked to', async () => {
    expect(hostsOf(clonesOf(await vm.fork(2, { place: 'pack' })))).toEqual(['alpha', 'alpha']);
    expect(hostsOf(clonesOf(await vm.fork(2, { hosts: ['beta'] })))).toEqual(['beta', 'beta']);
    const spread = hostsOf(clonesOf(await vm.fork(2, { hosts: ['gamma', 'beta'] })));
    expect(spread.sort()).toEqual(['beta', 'gamma']);
    const unknown = await rejection(vm.fork(2, { hosts: ['delta'] }));
    expect(unknown).toMatchObject({ code: 'SF_HOST_NOT_FOUND' });
    expect(unknown.message).toContain('alpha, beta, gamma');
  });

  it('answers for a VM wherever it is, from any host', async () => {
    const [clone] = clonesOf(await vm.fork(1, { hosts: ['beta'] }));
    const far = await gamma.sf.vm(clone!.id);
    expect(await sh(far, 'echo $((6 * 7)); hostname')).toBe(`42\n${clone!.id}`);
    expect(await far.stats()).toMatchObject({ vm: clone!.id });
    const ended = far.wait();
    await far.kill();
    expect(await ended).toMatchObject({ how: 'killed' });
    await expect(gamma.sf.vm('vm999-beta')).rejects.toMatchObject({ code: 'SF_VM_NOT_FOUND' });
  });

  it('hands over what clones elsewhere have to say, and ends them with their ticket', async () => {
    const fork = 'id=$(sf-guest fork 3 --hosts beta,gamma --ticket-file /tmp/t)';
    const exit = `[ $id -gt 0 ] && sf-guest exit "$id $(${HASH})"`;
    const answers = await sh(vm, `${fork}; ${exit}; sf-guest join $(cat /tmp/t)`);
    const expected = [1, 2, 3].map((id) => expect.stringContaining(`${id} ${hash}`));
    expect(answers.split('\n').sort()).toEqual(expected);

    const { ticket, ...forked } = await vm.fork(2, { hosts: ['gamma'] });
    await alpha.sf.killTicket(ticket.id);
    const slots = await alpha.sf.join(ticket.id);
    expect(slots.map(({ status }) => status)).toEqual(['lost', 'lost']);
    for (const clone of clonesOf({ ...forked, ticket })) {
      expect(await clone.wait()).toMatchObject({ how: 'killed' });
    }
  });

  it('forks a clone on to a third host, with the memory of both its ancestors', async () => {
    const [clone] = clonesOf(await vm.fork(1, { hosts: ['beta'] }));
    const own = await sh(
      clone!,
      'dd if=/dev/urandom of=/dev/shm/own bs=1M count=4 2>/dev/null; md5sum < /dev/shm/own',
    );
    const grandchildren = clonesOf(await clone!.fork(2, { hosts: ['gamma', 'alpha'] }));
    expect(hostsOf(grandchildren).sort()).toEqual(['alpha', 'gamma']);
    expect(await hashes(grandchildren)).toEqual([hash, hash]);
    for (const grandchild of grandchildren) {
      expect(await sh(grandchild, 'md5sum < /dev/shm/own')).toBe(own);
    }
  });

  it('finds the free pages of a clone whose memory lies on another host', async () => {
    const [clone] = clonesOf(await vm.fork(1, { hosts: ['beta'] }));
    const { snapshot } = await clone!.checkpoint();
    expect(snapshot.pages.freePages).toBeGreaterThan(snapshot.pages.totalPages / 4);
    await beta.sf.removeSnapshot(snapshot.id);
  });

  it('answers others while it freezes a clone whose origin does not answer', async () => {
    const [clone] = clonesOf(await vm.fork(1, { hosts: ['beta'] }));
    const here = await beta.sf.vm(clone!.id);
    const server = processOf(alpha, MEMORY_SERVER);
    process.kill(server, 'SIGSTOP');
    try {
      let isOver = false;
      const freezing = here.checkpoint().catch(() => undefined);
      void freezing.finally(() => {
        isOver = true;
      });
      const lost = async () => {
        const { received } = (await beta.sf.stats()).network!;
        return received.reduce((sum, { pagesLost }) => sum + pagesLost.timeout, 0);
      };
      const before = await lost();
      const began = performance.now();
      let answers = 0;
      for (; !isOver && (await lost()) === before; answers++);
      // One that waits for a page itself answers next when that is lost; some freezes want none.
      const hasWaited = performance.now() - began > ORIGIN_TIMEOUT_MS / 2;
      if (hasWaited) expect(answers).toBeGreaterThan(ANSWERS_MIN);
      await freezing;
    } finally {
      process.kill(server, 'SIGCONT');
    }
  });

  it('runs commands in a clone in which some of its ancestor go on', async () => {
    await using running = await vm.spawn('sleep 1000');
    const [clone] = clonesOf(await vm.fork(1, { hosts: ['beta'] }));
    // Numbers that hosts count by themselves would have met by then.
    for (let index = 0; index < 30; index++)
      expect(await sh(clone!, `echo ${index}`)).toBe(`${index}`);
    expect(await sh(clone!, 'pidof sleep')).toBe(`${running.pid}`);
  });

  it('clones a checkpoint on another host again, when all that came of it there has gone', async () => {
    const { snapshot } = await vm.checkpoint();
    for (let round = 0; round < 3; round++) {
      const made = await alpha.sf.createClones(snapshot, 1, { hosts: ['beta'] });
      const [clone] = clonesOf(made);
      expect(await sh(clone!, HASH)).toBe(hash);
      await clone!.kill();
      await eventually(async () => {
        const there = await beta.sf.snapshots();
        expect(there.map(({ id }) => id)).not.toContain(snapshot.id);
      });
    }
    await eventually(() => alpha.sf.removeSnapshot(snapshot.id));
  });

  it('launches an image that only another host has', async () => {
    const far = await gamma.sf.launch('minimal');
    expect(far.initialInfo.host).toBe('gamma');
    expect(await sh(far, 'ls /usr/bin | wc -l')).toBe(await sh(vm, 'ls /usr/bin | wc -l'));
    await expect(gamma.sf.launch('nobody')).rejects.toMatchObject({ code: 'SF_IMAGE_NOT_FOUND' });
  });

  it('loses a tenth of all datagrams, and no page', async () => {
    // A packet of several datagrams would be lost as one.
    const together = async (segments: number): Promise<void> => {
      const set = ['link', 'set', 'eth0', 'gso_max_segs', String(segments)];
      for (const { net } of cluster.hosts) await net.run('ip', ...set);
    };
    await together(1);
    for (const { net } of cluster.hosts) await net.loseDatagrams(0.1);
    const clones = clonesOf(await vm.fork(2, { hosts: ['beta', 'gamma'] }));
    expect(await hashes(clones)).toEqual([hash, hash]);
    await together(GSO_SEGMENTS);
  });

  it('gets pages by unicast where multicast does not reach', async () => {
    await gamma.net.blockMulticast();
    const [clone] = clonesOf(await vm.fork(1, { hosts: ['gamma'] }));
    expect(await sh(clone!, HASH)).toBe(hash);
    const { network } = await gamma.sf.stats();
    const unicast = network!.received.map(({ received }) => received.unicast.datagrams);
    expect(Math.max(...unicast)).toBeGreaterThan(0);
  });

  it('goes on when the memory server is killed while clones fetch', async () => {
    const clones = clonesOf(await vm.fork(2, { hosts: ['beta', 'gamma'] }));
    const reading = hashes(clones);
    for (let kills = 0; kills < 3; kills++) {
      const killed = processOf(alpha, MEMORY_SERVER);
      process.kill(killed, 'SIGKILL');
      await eventually(() => expect(processOf(alpha, MEMORY_SERVER)).not.toBe(killed));
    }
    expect(await reading).toEqual([hash, hash]);
  });

  async function memoryOn({ sf }: ClusterHost, { id }: { id: string }) {
    const { objects } = (await sf.stats()).pager;
    return objects.find((of) => of.object === 'ram' && of.snapshot === id)!;
  }

  it('fetches first what clones on another host have touched first', async () => {
    // Nothing of it is on other hosts yet.
    const untouched = await alpha.sf.launch('minimal', { hosts: ['alpha'] });
    await sh(untouched, MAKE_MUCH);
    const { snapshot } = await untouched.checkpoint();
    // Of earlier snapshots of the family, of which none has read the data.
    const { firstTouches: inherited } = await memoryOn(alpha, snapshot);
    const prefetchedOn = async ({ sf }: ClusterHost) => {
      const received = (await sf.stats()).network?.received;
      return received?.find((of) => of.snapshot === snapshot.id)?.pages.prefetch ?? 0;
    };
    const touchOn = async (host: ClusterHost, { prefetched }: { prefetched: number }) => {
      const result = await alpha.sf.createClones(snapshot, 1, { hosts: [host.name] });
      const [clone] = clonesOf(result) as [Vm];
      // All that is known has come when no more comes.
      let last = -1;
      await eventually(async () => {
        const before = last;
        last = await prefetchedOn(host);
        expect(last).toBeGreaterThanOrEqual(prefetched);
        await delay(QUIET_MS);
        expect([before, await prefetchedOn(host)]).toEqual([last, last]);
      });
      const { demandedPages } = await memoryOn(host, snapshot);
      expect(await sh(clone, TOUCH)).toBe(`${TOUCHES}`);
      return { clone, waitedFor: (await memoryOn(host, snapshot)).demandedPages - demandedPages };
    };
    const first = await touchOn(beta, { prefetched: 0 });
    await first.clone.kill();
    await eventually(async () => {
      expect((await memoryOn(alpha, snapshot)).firstTouches).toBeGreaterThan(inherited);
    });
    const second = await touchOn(gamma, { prefetched: TOUCHES / 2 });
    expect(second.waitedFor).toBeLessThan(first.waitedFor / 2);
  });

  it('tells what clones touched first also when their agent dies before it has', async () => {
    const parent = await alpha.sf.launch('minimal', { hosts: ['alpha'] });
    await sh(parent, MAKE_MUCH);
    const fork = await parent.fork(1, { hosts: ['beta'] });
    const [clone] = clonesOf(fork);
    const known = async () => (await memoryOn(alpha, fork.snapshot)).firstTouches;
    const before = await known();
    expect(await sh(clone!, TOUCH)).toBe(`${TOUCHES}`);
    beta.agent.kill('SIGKILL');
    await cluster.startAgain(beta);
    await eventually(async () => expect(await beta.sf.hosts()).toHaveLength(3));
    await (await beta.sf.vm(clone!.id)).kill();
    await eventually(async () => expect(await known()).toBeGreaterThan(before + TOUCHES / 4));
  });

  it('forgets what older clones touched when a clone does without', async () => {
    const parent = await alpha.sf.launch('minimal', { hosts: ['alpha'] });
    await sh(parent, MAKE_MUCH);
    const [near] = clonesOf(await parent.fork(1, { hosts: ['alpha'] }));
    expect(await sh(near!, TOUCH)).toBe(`${TOUCHES}`);
    const fork = await parent.fork(1, { hosts: ['beta'] });
    const [far] = clonesOf(fork);
    const known = async () => (await memoryOn(alpha, fork.snapshot)).firstTouches;
    const inherited = await known();
    expect(await sh(far!, 'echo here')).toBe('here');
    await far!.kill();
    await eventually(async () => expect(await known()).toBeLessThan(inherited - TOUCHES / 4));
  });

  it('has in the memory of its clones what came for those of another host', async () => {
    const parent = await alpha.sf.launch('minimal', { hosts: ['alpha'] });
    const made = await sh(parent, `${MAKE_DATA}; ${HASH}`);
    const fork = await parent.fork(2, { hosts: ['beta', 'gamma'] });
    const [onBeta, onGamma] = byHost(clonesOf(fork), ['beta', 'gamma']);
    const memory = () => memoryOn(gamma, fork.snapshot);
    const before = await memory();
    expect(await sh(onBeta!, HASH)).toBe(made);
    // Nobody has asked for them here, neither over the network nor by a fault.
    await eventually(async () => {
      expect((await memory()).aheadPages - before.aheadPages).toBeGreaterThan(DATA_PAGES / 2);
    });
    const { reads } = await memory();
    expect(await sh(onGamma!, HASH)).toBe(made);
    expect((await memory()).reads - reads).toBeLessThan(DATA_PAGES / 2);
    const [waited, found] = await Promise.all([onBeta!.stats(), onGamma!.stats()]);
    expect(waited.pages!.demand).toBeGreaterThan(0);
    expect(found.pages!.cache).toBeGreaterThan(DATA_PAGES / 2);
  });

  it('brings all to a clone that is to need nobody', async () => {
    const [clone] = clonesOf(await vm.fork(1, { hosts: ['beta'] }));
    expect((await clone!.detach()).pages).toBeGreaterThan(0);
    const { objects } = (await beta.sf.stats()).pager;
    const { snapshot } = clone!.initialInfo;
    const needs = objects.filter((of) => of.snapshot === snapshot).map((of) => of.dependsOn);
    expect(needs.length).toBeGreaterThan(0);
    expect(needs.every((hosts) => Object.keys(hosts).length === 0)).toBe(true);
    process.kill(processOf(alpha, MEMORY_SERVER), 'SIGSTOP');
    try {
      expect(await sh(clone!, HASH)).toBe(hash);
      // Nor do clones of it elsewhere need that host.
      const [onGamma] = clonesOf(await clone!.fork(1, { hosts: ['gamma'] }));
      expect(await sh(onGamma!, HASH)).toBe(hash);
    } finally {
      process.kill(processOf(alpha, MEMORY_SERVER), 'SIGCONT');
    }
  });

  it('has clones elsewhere go on when an agent is killed, and joins them after that', async () => {
    const script = 'id=$(sf-guest fork 2 --hosts beta,gamma --ticket-file /tmp/t)';
    const wait =
      '[ $id -gt 0 ] && { while [ ! -e /tmp/go ]; do sleep 0.1; done; sf-guest exit $id; }';
    await sh(vm, `rm -f /tmp/t; (${script}; ${wait}) > /dev/null 2>&1 &`);
    const ticket = await eventually(() => sh(vm, 'grep . /tmp/t'));
    // What does not answer yet would be lost with the agent at home.
    const running = async () => {
      const others = (await alpha.sf.vms()).filter(({ id }) => id !== vm.id);
      expect(others.map(({ times }) => (times?.answeredMs ?? 0) > 0)).toEqual([true, true]);
      return others;
    };
    await eventually(running);
    for (const host of [alpha, beta]) {
      host.agent.kill('SIGKILL');
      await cluster.startAgain(host);
    }
    const clones = await eventually(running);
    for (const { id } of clones) await sh(await alpha.sf.vm(id), 'touch /tmp/go');
    const slots = await alpha.sf.join(ticket);
    expect(slots).toMatchObject([{ status: 'exited' }, { status: 'exited' }]);
  });

  it('settles what was on its way to other hosts when the agent at home is killed', async () => {
    const { ticket: first } = await vm.fork(1, { hosts: ['alpha'] });
    const next = `t${Number.parseInt(first.id.slice(1), 10) + 1}-alpha`;
    // So that no clone has what it needs to answer before the agent is killed.
    const server = processOf(alpha, MEMORY_SERVER);
    process.kill(server, 'SIGSTOP');
    try {
      const forking = vm.fork(4, { hosts: ['beta', 'gamma'] }).catch(() => undefined);
      // The ticket is there before the freeze, and the freeze before any clone.
      await eventually(() => alpha.sf.join(next, { timeoutMs: 1 }));
      alpha.agent.kill('SIGKILL');
      await forking;
    } finally {
      process.kill(server, 'SIGCONT');
    }
    await cluster.startAgain(alpha);
    const slots = await alpha.sf.join(next);
    expect(slots.map(({ status }) => status)).toEqual(['lost', 'lost', 'lost', 'lost']);
    // The others have to be found again first.
    const [clone] = clonesOf(await eventually(() => vm.fork(1, { hosts: ['beta'] })));
    expect(await sh(clone!, HASH)).toBe(hash);
  });

  it('serves clones of one host while agent, pager and QEMUs of another stand still', async () => {
    const parent = await alpha.sf.launch('minimal', { hosts: ['alpha'] });
    const made = await sh(parent, `${MAKE_DATA}; ${HASH}`);
    const clones = clonesOf(await parent.fork(2, { hosts: ['beta', 'gamma'] }));
    const [onBeta] = byHost(clones, ['beta']);
    const still = [
      gamma.agent.pid!,
      ...[PAGER, MEMORY_SERVER].map((program) => processOf(gamma, program)),
      ...(await gamma.sf.vms()).flatMap(({ host, pid }) => (host === 'gamma' ? [pid!] : [])),
    ];
    expect(still).toHaveLength(4);
    const came = async () => {
      const { received } = (await beta.sf.stats()).network!;
      return received.reduce((sum, { pages }) => sum + pages.demand + pages.prefetch, 0);
    };
    const sent = async () => {
      const { snapshots } = (await alpha.sf.stats()).network!.served;
      return Object.values(snapshots).reduce((sum, of) => sum + of.pagesSent.data, 0);
    };
    const [cameBefore, sentBefore] = await Promise.all([came(), sent()]);
    for (const pid of still) process.kill(pid, 'SIGSTOP');
    try {
      expect(await sh(onBeta!, HASH)).toBe(made);
      const asked = (await came()) - cameBefore;
      expect(asked).toBeGreaterThan(DATA_PAGES / 2);
      // Nothing again and again for the one that does not answer.
      expect((await sent()) - sentBefore).toBeLessThan(asked * 2);
    } finally {
      for (const pid of still) process.kill(pid, 'SIGCONT');
    }
    // It may have been taken for lost.
    await eventually(async () => {
      expect((await alpha.sf.hosts()).map(({ name, state }) => [name, state])).toContainEqual([
        'gamma',
        'up',
      ]);
    });
  });

  it('is joined once by a host, and gives tokens where it was made', async () => {
    const { token, address: at } = await alpha.sf.newToken();
    const again = beta.sf.joinCluster({ at, token, ...selfOf(beta) });
    await expect(again).rejects.toMatchObject({ code: 'SF_BAD_REQUEST' });
    await expect(beta.sf.newToken()).rejects.toMatchObject({ code: 'SF_BAD_REQUEST' });
    expect(agentLog(alpha)).not.toContain(token.split('.')[0]);
  });

  it('says of clones that their origin is gone, and lets those go on that need nobody', async () => {
    const origin = await beta.sf.launch('minimal');
    const made = await sh(origin, `${MAKE_DATA}; ${HASH}`);
    // Or it would get, and keep, what the other one asks for.
    await gamma.net.blockMulticast();
    const [whole, poor] = clonesOf(await origin.fork(2, { hosts: ['alpha', 'gamma'] })) as [Vm, Vm];
    await whole.detach();
    await beta.net.cutOff();
    const near = (clone: Vm): Promise<Vm> => hostOf(cluster, clone).vm(clone.id);
    const poorVm = await near(poor);
    void poorVm.exec(HASH).catch(() => {});
    expect(await poorVm.wait()).toMatchObject({
      how: 'lost',
      reason: expect.stringContaining('beta'),
    });
    expect(await sh(await near(whole), HASH)).toBe(made);
    // Its lease has to run out first.
    await patiently(async () => {
      expect((await alpha.sf.hosts()).map(({ name }) => name)).toEqual(['alpha', 'gamma']);
    });
  });
});

describeVms('a family on two hosts', () => {
  let cluster: ClusterHosts;

  beforeAll(async () => {
    const limits = { familyVmsMax: 4, familyClonesMax: CLONES_EVER };
    cluster = await joinHosts(2, { ...limits, warmPoolSize: 1, hostTimeoutMs: HOST_TIMEOUT_MS });
  });

  afterAll(async () => {
    await cluster?.close();
  });

  it('has as many VMs as it may, wherever its guests ask for more', async () => {
    const [alpha] = cluster.hosts as [ClusterHost];
    const vm = await alpha.sf.launch('minimal');
    const [clone] = clonesOf(await vm.fork(2, { hosts: ['beta'] }));
    // One is left for three that a guest of the other host asks for, and none after that.
    const fork = 'id=$(sf-guest fork 3 --ticket-file /tmp/t)';
    const wait = '[ $id -gt 0 ] && { sleep 1000; }';
    await sh(clone!, `(${fork}; ${wait}) > /dev/null 2>&1 &`);
    await eventually(async () => {
      const vms = await alpha.sf.vms();
      expect(vms).toHaveLength(4);
      expect(vms.every(({ state }) => state === 'running')).toBe(true);
    });
    for (const each of [vm, clone!]) {
      const refused = await each.exec('sf-guest fork 1');
      expect(refused.code).not.toBe(0);
      expect(refused.stderr).toContain('familyVmsMax');
    }
    await endVms(alpha.sf);
  });

  it('makes as many clones as it may, though its guests ask on both hosts at once', async () => {
    const [alpha, beta] = cluster.hosts as [ClusterHost, ClusterHost];
    const vm = await alpha.sf.launch('minimal');
    await sh(
      vm,
      '(id=$(sf-guest fork 1 --hosts beta); [ $id = 0 ] || sleep 1000) > /dev/null 2>&1 &',
    );
    // What the ticket has on the other host, both see.
    const slots = { beta: { open: 0, running: 1 } };
    for (const { sf } of [alpha, beta]) {
      await eventually(async () => {
        const { tickets } = await sf.stats();
        expect(tickets).toMatchObject([{ home: 'alpha', vm: vm.id, family: vm.id, slots }]);
      });
    }
    const members = async () => {
      return (await alpha.sf.vms({ all: true })).filter(({ family }) => family === vm.id);
    };
    const clone = await alpha.sf.vm((await members()).find(({ id }) => id !== vm.id)!.id);
    const exit = 'case $id in 0 | "") ;; *) sf-guest exit ;; esac';
    const forkForEver = `while :; do id=$(sf-guest fork 1 2>>/tmp/errors); ${exit}; sleep 0.1; done`;
    for (const each of [vm, clone]) await sh(each, `(${forkForEver}) > /dev/null 2>&1 &`);
    for (const each of [vm, clone]) {
      await eventually(async () =>
        expect(await sh(each, 'cat /tmp/errors')).toContain('familyClonesMax'),
      );
    }
    await eventually(async () => expect(await members()).toHaveLength(1 + CLONES_EVER));
    await sh(vm, 'sleep 1');
    expect(await members()).toHaveLength(1 + CLONES_EVER);
    await endVms(alpha.sf);
    await eventually(async () => expect((await beta.sf.stats()).tickets).toEqual([]));
  });
});

/** The clones on these hosts, in this order. */
function byHost(clones: readonly Vm[], names: readonly string[]): (Vm | undefined)[] {
  return names.map((name) => clones.find(({ initialInfo }) => initialInfo.host === name));
}

describeVms('three hosts with a member of the store each', () => {
  let cluster: ClusterHosts;
  let alpha: ClusterHost;
  let first: ClusterHost;
  let gamma: ClusterHost;

  beforeAll(async () => {
    cluster = await openHosts(3, {
      storeMember: true,
      warmPoolSize: 1,
      hostTimeoutMs: HOST_TIMEOUT_MS,
    });
    // The first one is not the one that has the images.
    [alpha, first, gamma] = cluster.hosts as [ClusterHost, ClusterHost, ClusterHost];
    await first.sf.initCluster({ name: 'three', ...selfOf(first) });
    const { token, address } = await first.sf.newToken();
    for (const host of [alpha, gamma]) {
      await host.sf.joinCluster({ at: address, token, ...selfOf(host) });
    }
    await patiently(async () => {
      for (const { sf } of cluster.hosts) {
        const hosts = await sf.hosts();
        expect(hosts.map(({ storeMember }) => storeMember)).toEqual([true, true, true]);
      }
    });
  });

  afterAll(async () => {
    await cluster?.close();
  });

  it('fork on without the first one, and not without two, until one is back', async () => {
    const vm = await alpha.sf.launch('minimal');
    const hash = await sh(vm, `${MAKE_DATA}; ${HASH}`);
    first.agent.kill('SIGKILL');
    process.kill(processOf(first, ETCD), 'SIGKILL');
    await first.net.cutOff();
    // The store chooses another leader first.
    const forked = await patiently(() => vm.fork(4, { hosts: ['alpha', 'gamma'] }));
    const clones = clonesOf(forked);
    expect(clones).toHaveLength(4);
    for (const clone of clones) expect(await sh(clone, HASH)).toBe(hash);
    const onGamma = clones.find(({ initialInfo }) => initialInfo.host === gamma.name)!;
    const [grandchild] = clonesOf(await onGamma.fork(1, { hosts: ['alpha'] }));
    expect(await sh(grandchild!, HASH)).toBe(hash);

    await gamma.net.cutOff();
    // As soon as it is known; until then a fork that needs no other host goes through.
    await patiently(async () => {
      const refused = await rejection(vm.fork(1, { hosts: ['alpha'] }));
      expect(refused).toMatchObject({ code: 'SF_CLUSTER_UNAVAILABLE' });
    });
    await gamma.net.heal();
    const again = await patiently(() => vm.fork(2, { hosts: ['alpha', 'gamma'] }));
    for (const clone of clonesOf(again)) expect(await sh(clone, HASH)).toBe(hash);
    await endVms(alpha.sf);
  });
});

function hostOf({ hosts }: ClusterHosts, { initialInfo }: Vm): Host {
  return hosts.find(({ name }) => name === initialInfo.host)!.sf;
}
