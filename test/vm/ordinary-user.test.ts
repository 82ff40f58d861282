// An ordinary user, who is not root and may not mount, gets the same on one host: by the command, by
// the SDK, with images of the user's own. And where the system forbids it, the error says the mend.

import fs from 'node:fs';
import path from 'node:path';
import type { DoctorCheck } from '@snowfork/sdk';
import { afterEach, beforeEach, expect, it } from 'vitest';
import {
  type NetHost,
  NetHosts,
  whyNoNetHosts,
} from '../../packages/clone-agent/src/system/net-hosts.js';
import { describeVms } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { OrdinaryUser, type Ran } from '../support/ordinary-user.js';
import { testHost, testState } from '../support/test-host.js';

const IMAGE_FOLDERS = ['images', 'snapshots', 'layers'];

/** All that a program of the user does with VMs; it prints what it saw. */
const PROGRAM = `
import { connect, defaultStateFolder } from '@snowfork/sdk';
const host = await connect({ start: false });
const vm = await host.launch('minimal');
await vm.exec('echo of the parent > /tmp/note');
const say = async (one) => (await one.exec('hostname; cat /tmp/note')).stdout;
const { clones } = await vm.fork(2);
const first = clones[0].value;
await first.exec('echo of the clone > /tmp/note');
const nested = (await first.fork(1)).clones[0].value;
const { snapshot } = await vm.checkpoint();
const kept = (await host.createClones(snapshot.id, 1)).clones[0].value;
const script = 'set -- $(sf-guest fork 2 --ticket); [ "$1" = 0 ] || sf-guest exit "$1"; sf-guest join "$2"';
const joined = await vm.exec(script);
const vms = { vm, first, second: clones[1].value, nested, kept };
const said = {};
for (const [name, one] of Object.entries(vms)) said[name] = { id: one.id, says: await say(one) };
process.stdout.write(JSON.stringify({ folder: defaultStateFolder(), user: process.getuid(), said, joined }));
await host.close();
`;

describeVms('an ordinary user', () => {
  let user: OrdinaryUser;

  beforeEach(() => {
    user = new OrdinaryUser();
  });

  afterEach(async () => {
    await user[Symbol.asyncDispose]();
  });

  /** With an image as root has built it. */
  async function withImage(): Promise<void> {
    const host = await testHost('minimal');
    await host.close();
    await user.giveState(testState, [...IMAGE_FOLDERS, 'cache']);
  }

  async function agentPid(): Promise<number> {
    const file = path.join(user.state, 'agent.json');
    return (JSON.parse(fs.readFileSync(file, 'utf8')) as { pid: number }).pid;
  }

  /** After `sf down`: no process, no socket, nothing that was mounted. */
  async function expectNothingLeft(): Promise<void> {
    await eventually(() => expect(user.processes()).toEqual([]));
    expect(fs.existsSync(path.join(user.state, 'agent.sock'))).toBe(false);
    for (const name of ['run', 'mnt', 'processes']) {
      expect(fs.readdirSync(path.join(user.state, name))).toEqual([]);
    }
  }

  it('launches, forks, joins and keeps checkpoints; the doctor finds nothing wrong', async () => {
    await withImage();
    expect(words(await user.sf(['up']))).toContain(`state in ${fs.realpathSync(user.state)}`);
    const { folder, user: id, said, joined } = JSON.parse(words(await user.program(PROGRAM)));
    expect({ folder, id }).toEqual({ folder: user.state, id: user.id });
    for (const name of ['vm', 'second', 'kept'] as const) {
      expect(said[name].says).toBe(`${said[name].id}\nof the parent\n`);
    }
    for (const name of ['first', 'nested'] as const) {
      expect(said[name].says).toBe(`${said[name].id}\nof the clone\n`);
    }
    expect(joined).toMatchObject({ code: 0, stdout: expect.stringMatching(/\b1\b.*\n.*\b2\b/) });
    // The mounts are the agent's alone.
    expect(fs.readdirSync(path.join(user.state, 'run'))).toEqual([]);

    const { ok, checks } = JSON.parse(words(await user.sf(['doctor', '--json'])));
    const named = (name: string) => checks.find((check: DoctorCheck) => check.name === name);
    expect(ok).toBe(true);
    expect(named('fork')).toMatchObject({ status: 'ok' });
    expect(named('user')).toMatchObject({
      status: 'warn',
      message: expect.stringMatching(new RegExp(`^${user.id}, .*user namespace.*missing`)),
    });
    expect(words(await user.sf(['down']))).toContain('has ended');
    await expectNothingLeft();
  });

  it("goes on with the VMs of an agent that was killed, in that one's namespace", async () => {
    await withImage();
    const vm = words(await user.sf(['launch', 'minimal'])).trim();
    words(await user.sf(['exec', vm, '--', 'sh', '-c', 'echo kept > /tmp/note']));
    const killed = await agentPid();
    process.kill(killed, 'SIGKILL');
    await eventually(() => expect(user.processes()).not.toContain(killed));
    expect(words(await user.sf(['exec', vm, '--', 'cat', '/tmp/note']))).toBe('kept\n');
    const { pages } = JSON.parse(words(await user.sf(['stats', vm, '--json'])));
    expect(pages.local).toBeGreaterThan(0);
    words(await user.sf(['fork', vm]));
    expect(await agentPid()).not.toBe(killed);
    words(await user.sf(['down']));
    await expectNothingLeft();
  });

  it('builds an image of Debian packages, whose scripts give files to others', async () => {
    const host = await testHost('minimal');
    await host.close();
    await user.giveState(testState, ['cache']);
    const file = path.join(user.home, 'own.yaml');
    const commands = [
      'chown 5:5 /etc/issue',
      'head -c 8 /dev/urandom > /etc/drawn',
      'date > /dev/null',
    ];
    fs.writeFileSync(
      file,
      JSON.stringify({ packages: ['iproute2'], memory: '128M', commands: commands }),
    );
    words(await user.sf(['image', 'build', 'own', '--file', file]));
    const vm = words(await user.sf(['launch', 'own'])).trim();
    const look =
      'stat -c %u:%g /etc/issue; stat -c %s /etc/drawn; ip -V; dpkg -s iproute2 | grep Status';
    const seen = words(await user.sf(['exec', vm, '--', 'sh', '-c', look]));
    expect(seen).toMatch(/^0:0\n8\nip utility.*\nStatus: install ok installed\n$/);
    words(await user.sf(['down']));
    await expectNothingLeft();
    expect(fs.readdirSync(path.join(user.state, 'cache')).join()).not.toContain('build-');
  }, 600_000);

  it.skipIf(whyNoNetHosts())(
    'makes a cluster with others, and forks over their hosts',
    async () => {
      await using net = await NetHosts.create({ hosts: 2 });
      const [alpha, beta] = net.hosts as [NetHost, NetHost];
      await using other = new OrdinaryUser(1);
      await withImage();
      await other.giveState(testState, ['cache']);
      const here = async (...command: string[]) => words(await user.sf(command, { net: alpha }));
      const there = async (...command: string[]) => words(await other.sf(command, { net: beta }));
      const self = ['--host', 'alpha', '--address', alpha.address];
      const made = await here('cluster', 'init', ...self);
      const [, at, token] = /host join (\S+) --token (\S+)/.exec(made)!;
      await there(
        'host',
        'join',
        at!,
        '--token',
        token!,
        '--host',
        'beta',
        '--address',
        beta.address,
      );
      const vm = (await here('launch', 'minimal', '--hosts', 'alpha')).trim();
      await here('exec', vm, '--', 'sh', '-c', 'echo of the parent > /tmp/note');
      const fork = JSON.parse(await here('--json', 'fork', vm, '-n', '2'));
      const clones: string[] = fork.clones.map((clone: { vm: { id: string } }) => clone.vm.id);
      expect(clones.map((clone) => clone.split('-')[1]).sort()).toEqual(['alpha', 'beta']);
      for (const clone of clones) {
        expect(await there('exec', clone, '--', 'cat', '/tmp/note')).toBe('of the parent\n');
      }
      await there('down');
      await eventually(() => expect(other.processes()).toEqual([]));
      await here('down');
      // The store goes on, as other hosts may need it, and the next agent finds it.
      await eventually(async () => expect(await here('host', 'ls')).toContain('alpha'));
      await here('down');
      for (const pid of user.processes()) process.kill(pid, 'SIGKILL');
      await eventually(() => expect(user.processes()).toEqual([]));
    },
  );

  it('is told the mend where user namespaces are forbidden', async () => {
    const ran = await user.sf(['--json', 'up'], { namespaces: 'forbidden' });
    expect(errorOf(ran)).toMatchObject({
      code: 'SF_PERMISSION',
      message: expect.stringContaining('sysctl -w user.max_user_namespaces'),
    });
    const { checks } = JSON.parse(
      (await user.sf(['--json', 'doctor', '--quick'], { namespaces: 'forbidden' })).stdout,
    );
    expect(checks.find(({ name }: DoctorCheck) => name === 'user')).toMatchObject({
      status: 'fail',
      mend: expect.stringContaining('user.max_user_namespaces'),
    });
    expect(user.processes()).toEqual([]);
  });

  it('is told the mend where /dev/fuse is closed', async () => {
    const ran = await user.sf(['--json', 'up'], { fuse: 'closed' });
    expect(errorOf(ran)).toMatchObject({
      code: 'SF_PERMISSION',
      message: expect.stringContaining('chmod 0666 /dev/fuse'),
    });
    expect(user.processes()).toEqual([]);
  });
});

/** What a command printed; it must have succeeded. */
function words({ code, stdout, stderr }: Ran): string {
  if (code !== 0) throw new Error(`ended with ${code}: ${stderr}`);
  return stdout;
}

function errorOf({ code, stderr }: Ran): unknown {
  expect(code).not.toBe(0);
  return JSON.parse(stderr).error;
}
