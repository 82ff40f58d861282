// More groups than the system lets one socket join: a host with clones of many snapshots hears them all.

import { randomBytes } from 'node:crypto';
import { createSocket } from 'node:dgram';
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { whyNoNetHosts } from '../../packages/clone-agent/src/system/net-hosts.js';
import { GroupSockets } from '../../packages/memserver/src/net/group-sockets.js';
import { eventually } from '../support/eventually.js';
import { BY_GROUP, PageHosts, SERVER, SERVER_PORT } from '../support/page-hosts.js';

const GROUPS = 50;
const LOOPBACK = '127.0.0.1';
const PORT = 7702;
/** What is sent on the loopback has been heard after it, or is looked for again. */
const ARRIVE_MS = 50;
const reason = whyNoNetHosts();

function group(number: number): { address: string; port: number } {
  return { address: `239.77.1.${number}`, port: PORT };
}

function groups(from: number, to: number): { address: string; port: number }[] {
  return Array.from({ length: to - from }, (_, index) => group(from + index));
}

test.skipIf(reason)('the pages of fifty snapshots come to one host by their groups', async () => {
  await using hosts = await PageHosts.start({ pullers: 1, pageCount: 8, isConnected: false });
  const layers = [{ path: path.join(hosts.folder, 'layer') }];
  for (const [number, group] of groups(0, GROUPS).entries()) {
    const key = randomBytes(32).toString('base64');
    await hosts.server.execute('serve', { snapshot: `many${number}`, key, group, layers });
    const { address } = hosts.net.hosts[SERVER]!;
    const origin = { address, port: SERVER_PORT, key, group, lostAfterMs: 60_000 };
    // It stays a member of those before.
    await hosts.pullers[0]!.execute('connect', origin);
    expect(await hosts.pull({ atOnce: 4 })).toEqual([hosts.right()]);
    await eventually(async () => {
      const { delivery, complaints } = await hosts.pullerStats(0);
      const expected = { number, delivery: BY_GROUP, complaints: [] };
      expect({ number, delivery, complaints }).toEqual(expected);
    });
  }
  const joined = await hosts.net.hosts[1]!.run('ip', 'maddress', 'show', 'dev', 'eth0');
  expect(joined.match(/239\.77\.1\./g)).toHaveLength(GROUPS);
});

test('of groups that are joined and left, those that are joined are heard, and no other', async () => {
  const heard = new Set<string>();
  const sockets = new GroupSockets({
    localAddress: LOOPBACK,
    take: (datagram) => void heard.add(datagram.toString()),
    taken: () => undefined,
    complain: (message) => expect.unreachable(message),
  });
  const sender = createSocket('udp4');
  await new Promise<void>((resolve) => sender.bind(0, LOOPBACK, resolve));
  sender.setMulticastInterface(LOOPBACK);
  const hear = async (expected: readonly { address: string }[]): Promise<void> => {
    await eventually(async () => {
      heard.clear();
      for (const { address, port } of groups(0, GROUPS * 2)) sender.send(address, port, address);
      await delay(ARRIVE_MS);
      expect([...heard].toSorted()).toEqual(expected.map(({ address }) => address).toSorted());
    });
  };
  try {
    await Promise.all(groups(0, GROUPS).map((each) => sockets.join(each)));
    await hear(groups(0, GROUPS));
    // Whoever joins what is being left is a member.
    const left = groups(10, GROUPS);
    await Promise.all([
      ...left.map((each) => sockets.leave(each)),
      ...left.slice(20).map((each) => sockets.join(each)),
      ...groups(GROUPS, GROUPS * 2).map((each) => sockets.join(each)),
      sockets.join(group(0)),
    ]);
    await sockets.leave(group(0));
    await hear([...groups(0, 10), ...left.slice(20), ...groups(GROUPS, GROUPS * 2)]);
    const most = groups(0, GROUPS * 2);
    await Promise.all(most.slice(0, 5).map((each) => sockets.leave(each)));
    await hear([...groups(5, 10), ...left.slice(20), ...groups(GROUPS, GROUPS * 2)]);
  } finally {
    sender.close();
    await sockets.close();
  }
  expect(socketsOn(PORT)).toBe(0);
});

/** Of this network. */
function socketsOn(port: number): number {
  const hex = `:${port.toString(16).toUpperCase().padStart(4, '0')} `;
  const lines = fs.readFileSync('/proc/self/net/udp', 'utf8').split('\n');
  return lines.filter((line) => line.includes(hex)).length;
}
