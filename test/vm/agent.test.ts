// The life of an agent: what it leaves when it is ended, or dies, and who else may run. Each test has
// an agent of its own.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { connect, type Host } from '@snowfork/sdk';
import { AGENT_EXIT_TAKEN } from '@snowfork/sdk/api';
import { afterEach, expect, it } from 'vitest';
import { clonesOf, describeVms, rejection, Steady, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { isRunning, mountsBelow, startedBy } from '../support/processes.js';
import { hostApart } from '../support/test-host.js';

const program = path.resolve(import.meta.dirname, '../../packages/clone-agent/dist/main.js');

describeVms('an agent', () => {
  let apart: Awaited<ReturnType<typeof hostApart>> | undefined;
  let next: Host | undefined;

  afterEach(async () => {
    // Whichever agent runs now.
    await next?.shutDown().catch(() => {});
    await next?.close();
    next = undefined;
    await apart?.dispose();
    apart = undefined;
  });

  /** An agent with a VM and a clone of it, two warm QEMUs and its pager. */
  async function busyAgent() {
    apart = await hostApart({ warmPoolSize: 2 }, 'minimal');
    const { host, state } = apart;
    const vm = await host.launch('minimal');
    const steady = await Steady.start(vm, { mebibytes: 2, who: 'parent' });
    const [clone] = clonesOf(await vm.fork(1));
    await eventually(async () => expect((await host.stats()).pool.ready).toBe(2));
    const { pid } = await host.info();
    const started = startedBy(state);
    expect(started.length).toBe(2 + 2 + 1);
    expect(mountsBelow(state)).toHaveLength(2);
    return { host, state, vm, clone: clone!, steady, pid, started };
  }

  it('that is terminated ends all it started, and leaves nothing mounted', async () => {
    const { host, state, vm, clone, pid, started } = await busyAgent();
    const command = rejection(vm.exec('sleep 1000'));
    const join = host.join(clone.initialInfo.ticket!);
    await sh(vm, 'until ps | grep -q "[s]leep 1000"; do usleep 10000; done');
    process.kill(pid, 'SIGTERM');
    // Whoever waits is told.
    expect(await join).toMatchObject([{ reason: 'the agent was shut down' }]);
    expect((await command).code).toMatch(/^SF_(VM_GONE|ABORTED|AGENT_UNREACHABLE)$/);
    await eventually(() => expect([pid, ...started].filter(isRunning)).toEqual([]));
    expect(mountsBelow(state)).toEqual([]);
    expect(fs.readdirSync(path.join(state, 'run'))).toEqual([]);
    expect(startedBy(state)).toEqual([]);
    for (const file of ['agent.json', 'agent.sock']) {
      expect(fs.existsSync(path.join(state, file))).toBe(false);
    }
  });

  it('that is killed while it builds an image leaves nothing half-made to the next one', async () => {
    apart = await hostApart({ warmPoolSize: 0 }, 'minimal');
    const { host, state } = apart;
    const before = contents(state);
    const file = path.join(state, 'declared.yaml');
    fs.writeFileSync(file, `system: busybox\ncommands: [echo ${state} && sleep 1000]\n`);
    const { pid } = await host.info();
    const steps: string[] = [];
    const onProgress = ({ step }: { step: string }) => {
      steps.push(step);
      if (step === 'commands') process.kill(pid, 'SIGKILL');
    };
    await rejection(host.buildImage({ name: 'declared', file }, { onProgress }));
    expect(steps).toContain('commands');
    expect(contents(state)).not.toEqual(before);
    next = await connect({ stateFolder: state });
    expect(contents(state)).toEqual(before);
    await eventually(() => expect(processesWith(`echo ${state}`)).toEqual([]));
  });

  it('is alone with its state folder: a second one is refused and harms nobody', async () => {
    const { host, state, vm, steady, pid } = await busyAgent();
    const hosts = await Promise.all([1, 2, 3].map(() => connect({ stateFolder: state })));
    for (const other of hosts) expect((await other.info()).pid).toBe(pid);
    await Promise.all(hosts.map((other) => other.close()));
    const second = spawn(process.execPath, [program], {
      env: { ...process.env, SNOWFORK_STATE: state },
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    let words = '';
    second.stdout.on('data', (chunk) => {
      words += chunk;
    });
    expect(await once(second, 'close')).toEqual([AGENT_EXIT_TAKEN, null]);
    expect(words).toContain('an agent runs already for');
    expect(await steady.hash()).toBe(steady.expectedHash());
    expect(clonesOf(await vm.fork(1))).toHaveLength(1);
    expect((await host.info()).pid).toBe(pid);
  });

  it('whose settings are wrong does not start, and names the key', async () => {
    apart = await hostApart({ warmPoolSize: 0 }, 'minimal');
    const { host, state } = apart;
    await host.shutDown();
    const settings = path.join(state, 'settings.json');
    for (const [text, words] of [
      ['{"warmPoolSize":-1}', 'warmPoolSize'],
      ['{"warmPool":3}', 'warmPool'],
      ['{"warmPoolSize":', 'is no JSON'],
      ['[]', 'settings.json'],
    ] as const) {
      fs.writeFileSync(settings, text);
      const error = await rejection(connect({ stateFolder: state }));
      expect(error).toMatchObject({ code: 'SF_AGENT_UNREACHABLE' });
      expect(error.message).toContain(words);
    }
    fs.writeFileSync(settings, '{"warmPoolSize":0}');
    next = await connect({ stateFolder: state });
    expect(await next.vms()).toEqual([]);
  });

  it('whose pager is killed starts another: VMs wait for pages and get the right ones', async () => {
    const { host, clone, steady, started } = await busyAgent();
    const inherited = steady.inherited(clone);
    const { pid } = (await host.stats()).pager;
    expect(started).toContain(pid);
    process.kill(pid, 'SIGKILL');
    for (const one of [inherited, steady]) expect(await one.hash()).toBe(one.expectedHash());
    expect((await host.stats()).pager.pid).not.toBe(pid);
    const [grandchild] = clonesOf(await clone.fork(1));
    const late = inherited.inherited(grandchild!);
    expect(await late.hash()).toBe(late.expectedHash());
  });
});

/** Processes whose arguments hold these words. */
function processesWith(words: string): string[] {
  return fs.readdirSync('/proc').filter((name) => {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) return false;
    try {
      return fs.readFileSync(`/proc/${name}/cmdline`, 'utf8').includes(words);
    } catch {
      return false;
    }
  });
}

/** What an image build may leave. */
function contents(state: string): string[] {
  const folders = ['images', 'snapshots', 'layers'];
  const builds = fs.readdirSync(path.join(state, 'cache')).filter((name) => /^build-/.test(name));
  return [...folders.flatMap((name) => fs.readdirSync(path.join(state, name))), ...builds].sort();
}
