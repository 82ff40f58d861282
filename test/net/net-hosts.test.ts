// Hosts of a network on one machine: what reaches whom, what is lost and limited as asked, and that
// nothing is left of them.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import {
  type NetHost,
  NetHosts,
  whyNoNetHosts,
} from '../../packages/clone-agent/src/system/net-hosts.js';
import { eventually } from '../support/eventually.js';
import { isRunning } from '../support/processes.js';
import type { DatagramsAsked, Heard } from './datagrams-main.js';

const PORT = 7800;
const GROUP = '239.77.0.9';
const DATAGRAMS_MAIN = fileURLToPath(new URL('../dist/net/datagrams-main.js', import.meta.url));
const BUILT = new URL('../../packages/clone-agent/dist/system/net-hosts.js', import.meta.url).href;
/** Programs that leave their parent, and the host's network: they are found all the same. */
const DAEMON =
  'setsid sleep 1000 & one=$!; unshare --net sleep 1000 & echo $$ $one $!; exec sleep 1000';
/** What is under way arrives within this. */
const SETTLE_MS = 200;
const reason = whyNoNetHosts();

class Datagrams {
  readonly #child: ChildProcess;

  static async start(host: NetHost): Promise<Datagrams> {
    const child = host.spawn(process.execPath, [DATAGRAMS_MAIN, String(PORT), GROUP], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    await once(child, 'message');
    return new Datagrams(child);
  }

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  async ask(asked: DatagramsAsked): Promise<Heard> {
    const answered = once(this.#child, 'message');
    this.#child.send(asked);
    return (await answered)[0] as Heard;
  }

  async heard(): Promise<number> {
    return (await this.ask({})).datagrams;
  }
}

async function startAll(net: NetHosts): Promise<Datagrams[]> {
  return await Promise.all(net.hosts.map((host) => Datagrams.start(host)));
}

function one(to: string): DatagramsAsked {
  return { send: { to, count: 1, bytes: 1000 } };
}

test.skipIf(reason)('hosts have names and addresses and reach each other', async () => {
  await using net = await NetHosts.create({ hosts: 3 });
  expect(net.hosts.map(({ name }) => name)).toEqual(['alpha', 'beta', 'gamma']);
  const programs = await startAll(net);
  for (const from of programs) {
    for (const { address } of net.hosts) await from.ask(one(address));
  }
  for (const program of programs)
    await eventually(async () => expect(await program.heard()).toBe(3));
});

test.skipIf(reason)('a datagram to a group reaches all members but its sender', async () => {
  await using net = await NetHosts.create({ hosts: 4 });
  const programs = await startAll(net);
  await programs[2]!.ask(one(GROUP));
  for (const [index, program] of programs.entries()) {
    const heard = index === 2 ? 0 : 1;
    await eventually(async () => expect(await program.heard()).toBe(heard));
  }
});

test.skipIf(reason)('each host has the MTU that was asked for', async () => {
  await using net = await NetHosts.create({ hosts: 2, mtuBytes: [9000, 1400] });
  const mtus = await Promise.all(net.hosts.map((host) => host.run('ip', 'link', 'show', 'eth0')));
  expect(mtus[0]).toContain('mtu 9000');
  expect(mtus[1]).toContain('mtu 1400');
});

test.skipIf(reason).each(['sender', 'receiver'])('a limit at the %s holds', async (at) => {
  const bitsPerSecond = 20e6;
  const seconds = 1.5;
  await using net = await NetHosts.create({ hosts: 2 });
  const [alpha, beta] = net.hosts as [NetHost, NetHost];
  const [sender] = await startAll(net);
  await (at === 'sender' ? alpha : beta).limit(bitsPerSecond);
  const startedAt = performance.now();
  const before = beta.counters().bytesReceived;
  // Twice as much as the link takes in this time.
  const bytes = (bitsPerSecond / 8) * seconds * 2;
  const sending = sender!.ask({ send: { to: beta.address, count: bytes / 1250, bytes: 1250 } });
  await delay(seconds * 1000);
  const came = () => beta.counters().bytesReceived - before;
  const bytesMin = (bitsPerSecond / 8) * seconds * 0.1;
  await eventually(() => expect(came()).toBeGreaterThan(bytesMin));
  const cameThen = came();
  const elapsedS = (performance.now() - startedAt) / 1000;
  const bytesMax = (bitsPerSecond / 8) * elapsedS * 1.2 + 512 * 1024;
  expect(cameThen).toBeLessThan(bytesMax);
  await sending;
});

test.skipIf(reason)('counters tell what a host has sent and received', async () => {
  await using net = await NetHosts.create({ hosts: 2 });
  const [alpha, beta] = net.hosts as [NetHost, NetHost];
  const [sender, receiver] = await startAll(net);
  const [sentBefore, receivedBefore] = [alpha.counters(), beta.counters()];
  await sender!.ask({ send: { to: beta.address, count: 100, bytes: 1000 } });
  await eventually(async () => expect(await receiver!.heard()).toBe(100));
  const frames = 100 * (1000 + 8 + 20 + 14);
  expect(alpha.counters().bytesSent - sentBefore.bytesSent).toBeGreaterThanOrEqual(frames);
  const received = beta.counters().bytesReceived - receivedBefore.bytesReceived;
  expect(received).toBeGreaterThanOrEqual(frames);
  expect(received).toBeLessThan(frames * 1.1);
  expect(beta.counters().packetsReceived - receivedBefore.packetsReceived).toBeLessThan(150);
});

test.skipIf(reason)('of datagrams that are lost by chance, some come and some do not', async () => {
  await using net = await NetHosts.create({ hosts: 3 });
  const [, beta, gamma] = net.hosts as [NetHost, NetHost, NetHost];
  const [sender, lossy, whole] = await startAll(net);
  await beta.loseDatagrams(0.3);
  // No more at a time than a socket has room for, where nobody reads it for a while.
  for (let sent = 100; sent <= 1000; sent += 100) {
    for (const { address } of [beta, gamma]) {
      await sender!.ask({ send: { to: address, count: 100, bytes: 100 } });
    }
    await eventually(async () => expect(await whole!.heard()).toBe(sent));
  }
  // Seven standard deviations on either side.
  await eventually(async () => expect(await lossy!.heard()).toBeGreaterThan(600));
  expect(await lossy!.heard()).toBeLessThan(800);
});

test.skipIf(reason)('what is blocked or cut off stays away until it is healed', async () => {
  await using net = await NetHosts.create({ hosts: 2 });
  const [, beta] = net.hosts as [NetHost, NetHost];
  const [sender, receiver] = await startAll(net);
  await sender!.ask(one(GROUP));
  await eventually(async () => expect(await receiver!.heard()).toBe(1));
  await beta.blockMulticast();
  await sender!.ask(one(GROUP));
  await sender!.ask(one(beta.address));
  await eventually(async () => expect(await receiver!.heard()).toBe(2));
  await beta.cutOff();
  await sender!.ask(one(GROUP));
  await sender!.ask(one(beta.address));
  await delay(SETTLE_MS);
  expect(await receiver!.heard()).toBe(2);
  await beta.heal();
  // The link may take a moment to be up.
  for (const to of [GROUP, beta.address]) {
    const before = await receiver!.heard();
    await eventually(async () => {
      await sender!.ask(one(to));
      expect(await receiver!.heard()).toBeGreaterThan(before);
    });
  }
});

/** The numbers that a process has written in its first line. */
async function numbersOf(child: ChildProcess): Promise<number[]> {
  const [line] = (await once(child.stdout!, 'data')) as [Buffer];
  return String(line).trim().split(' ').map(Number);
}

function holderOf(namespace: string): number {
  return Number(namespace.split('/')[2]);
}

test.skipIf(reason)(
  'nothing is left after close, and the machine has its own network',
  async () => {
    const interfaces = fs.readFileSync('/proc/net/dev', 'utf8').match(/^\s*\S+:/gm);
    const net = await NetHosts.create({ hosts: 2 });
    const programs = net.hosts.map((host) =>
      host.spawn('sh', ['-c', DAEMON], { stdio: ['ignore', 'pipe', 'inherit'] }),
    );
    const pids = [
      ...net.hosts.map(({ namespace }) => holderOf(namespace)),
      ...(await Promise.all(programs.map(numbersOf))).flat(),
    ];
    expect(pids.filter(isRunning)).toHaveLength(8);
    expect(fs.readFileSync('/proc/net/dev', 'utf8').match(/^\s*\S+:/gm)).toEqual(interfaces);
    await net.close();
    expect(pids.filter(isRunning)).toEqual([]);
    expect(isRunning(process.pid)).toBe(true);
  },
);

test.skipIf(reason)('nothing is left when the owner is killed', async () => {
  const script = `
    const { NetHosts } = await import('${BUILT}');
    const net = await NetHosts.create({ hosts: 2 });
    const programs = net.hosts.map((host) => host.spawn('sh', ['-c', '${DAEMON}']));
    const pids = net.hosts.map(({ namespace }) => namespace.split('/')[2]);
    for (const { stdout } of programs) {
      pids.push(String((await stdout.take(1).toArray())[0]).trim());
    }
    console.log(pids.join(' '));
    setInterval(() => {}, 1000);`;
  const owner = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const pids = await numbersOf(owner);
  expect(pids.filter(isRunning)).toHaveLength(8);
  owner.kill('SIGKILL');
  await eventually(() => expect(pids.filter(isRunning)).toEqual([]));
});
