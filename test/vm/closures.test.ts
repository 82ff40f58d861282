// The rows of docs/internals/closures.md that no other test stands for: who ends with whom. Each test
// has an agent of its own.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { connect, type Host } from '@snowfork/sdk';
import { afterEach, expect, it } from 'vitest';
import { clonesOf, describeVms, rejection, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { startedBy } from '../support/processes.js';
import { hostApart } from '../support/test-host.js';

const program = path.resolve(import.meta.dirname, '../../packages/clone-agent/dist/main.js');

describeVms('who ends with whom', () => {
  let apart: Awaited<ReturnType<typeof hostApart>> | undefined;
  let host: Host;

  async function start(warmPoolSize: number): Promise<string> {
    apart = await hostApart({ warmPoolSize }, 'minimal');
    host = apart.host;
    return apart.state;
  }

  afterEach(async () => {
    await apart?.dispose();
    apart = undefined;
  });

  it('a clone with the program that called fork, if that did not say exit', async () => {
    await start(1);
    const vm = await host.launch('minimal');
    const [ticket] = (await sh(vm, 'sf-guest ticket 2')).split(' ');
    // A program with a connection of its own, which is killed in one clone and stays in the other.
    await vm.writeFile('/root/fork.pl', FORK_AND_STAY);
    await sh(vm, `setsid perl /root/fork.pl ${ticket} </dev/null >/tmp/log 2>&1 &`);
    await eventually(async () => {
      const clones = (await host.vms()).filter(({ parent }) => parent === vm.id);
      expect(clones.map(({ state }) => state)).toEqual(['running', 'running']);
    });
    const [one, two] = (await host.vms()).filter(({ parent }) => parent === vm.id);
    // The command goes with its VM.
    await (await host.vm(one!.id)).exec(KILL_IT).catch(() => {});
    expect(await (await host.vm(one!.id)).wait()).toEqual({
      how: 'lost',
      reason: 'its program ended without sf.exit',
    });
    // Not the parent with its own copy of that program, nor the other clone.
    await sh(vm, KILL_IT);
    expect(await sh(vm, 'echo here')).toBe('here');
    expect(await sh(await host.vm(two!.id), 'echo here')).toBe('here');
  });

  it('nobody with a QEMU of the warm pool: another one is started', async () => {
    const state = await start(1);
    const vm = await host.launch('minimal');
    await eventually(async () => expect((await host.stats()).pool.ready).toBe(1));
    const others = new Set([(await host.vms())[0]!.pid!, (await host.stats()).pager.pid]);
    const warm = startedBy(state).find((pid) => !others.has(pid))!;
    process.kill(warm, 'SIGKILL');
    await eventually(async () => {
      expect(startedBy(state)).not.toContain(warm);
      expect((await host.stats()).pool.ready).toBe(1);
    });
    expect(clonesOf(await vm.fork(1))).toHaveLength(1);
  });

  it('clones that are still starting with the caller that asked for them', async () => {
    await start(0);
    const vm = await host.launch('minimal');
    const caller = new AbortController();
    const forked = rejection(vm.fork(4, { signal: caller.signal }));
    await eventually(async () => expect((await host.vms()).length).toBeGreaterThan(1));
    caller.abort();
    expect(await forked).toMatchObject({ code: 'SF_ABORTED' });
    await eventually(async () => {
      expect((await host.vms()).filter(({ state }) => state === 'starting')).toEqual([]);
    });
    expect(await sh(vm, 'echo here')).toBe('here');
    expect(clonesOf(await vm.fork(1))).toHaveLength(1);
  });

  it('an agent with its owner, in order', async () => {
    const state = await start(1);
    await host.shutDown();
    const owner = spawn('sleep', ['1000']);
    const agent = spawn(process.execPath, [program], {
      env: { ...process.env, SNOWFORK_STATE: state, SNOWFORK_OWNER: String(owner.pid) },
      stdio: 'ignore',
    });
    const ended = once(agent, 'exit');
    await using owned = await eventuallyConnected(state);
    await owned.launch('minimal');
    const started = startedBy(state);
    expect(started.length).toBeGreaterThan(1);
    owner.kill('SIGKILL');
    expect(await ended).toEqual([0, null]);
    expect(startedBy(state)).toEqual([]);
    expect(started.filter((pid) => fs.existsSync(`/proc/${pid}`))).toEqual([]);
    expect(fs.existsSync(path.join(state, 'agent.json'))).toBe(false);
  });
});

const KILL_IT = 'kill -9 $(ps | grep "[f]ork.pl" | awk \'{print $1}\')';

/** Forks by a ticket on a connection that it keeps, and waits for its end. */
const FORK_AND_STAY = `
use v5.36; use IO::Socket::UNIX;
my $socket = IO::Socket::UNIX->new(Peer => $ENV{SNOWFORK_GUEST_SOCKET}) or die "connect: $!";
my $ticket = $ARGV[0];
sub text ($text) { return pack('C', 0xa0 + length $text) . $text }
my $request = "\\x83" . text('id') . "\\x01" . text('method') . text('clone')
    . text('params') . "\\x81" . text('ticket') . text($ticket);
syswrite $socket, pack('V C C v V', length $request, 0x10, 0, 0, 0) . $request;
sysread $socket, my $answer, 65536;
sleep 1000;
`;

async function eventuallyConnected(state: string): Promise<Host> {
  let host: Host | undefined;
  await eventually(async () => {
    host = await connect({ stateFolder: state, start: false });
  });
  return host!;
}
