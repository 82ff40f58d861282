// Pages over a network with the world's faults, between real processes: multicast that does not
// reach, loss, a server that is killed, a host that hangs, strangers that send as fast as they can.
// Every page comes, and is right.

import type { StdioOptions } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { whyNoNetHosts } from '../../packages/clone-agent/src/system/net-hosts.js';
import { eventually } from '../support/eventually.js';
import {
  BY_GROUP,
  BY_UNICAST,
  GROUP,
  PageHosts,
  SERVER,
  SERVER_PORT,
} from '../support/page-hosts.js';

const PAGES = 4096;
const KILLS = 4;
/** Pages that are fetched while the server is killed once. */
const PART = PAGES / KILLS;
const ATTACKER_MAIN = fileURLToPath(new URL('../dist/net/attacker-main.js', import.meta.url));
const reason = whyNoNetHosts();

test.skipIf(reason)(
  'where multicast does not reach, pages come by unicast, until it does',
  async () => {
    await using hosts = await PageHosts.start({ pullers: 2, pageCount: PAGES, isConnected: false });
    await hosts.net.hosts[1]!.blockMulticast();
    await hosts.connect();
    expect(await hosts.pull({ atOnce: 8 })).toEqual([hosts.right(), hosts.right()]);
    const cut = await hosts.pullerStats(0);
    expect(cut.delivery).toBe(BY_UNICAST);
    expect(cut.counts.received.group.datagrams).toBe(0);
    await eventually(async () => expect((await hosts.pullerStats(1)).delivery).toBe(BY_GROUP));
    await hosts.net.hosts[1]!.heal();
    await eventually(async () => expect((await hosts.pullerStats(0)).delivery).toBe(BY_GROUP));
  },
);

test.skipIf(reason)('multicast that ends while pages come costs none of them', async () => {
  await using hosts = await PageHosts.start({ pullers: 1, pageCount: PAGES });
  expect(await hosts.pull({ atOnce: 8, count: 1000 })).toEqual([hosts.right(0, 1000)]);
  await eventually(async () => expect((await hosts.pullerStats(0)).delivery).toBe(BY_GROUP));
  await hosts.net.hosts[1]!.blockMulticast();
  expect(await hosts.pull({ atOnce: 8 })).toEqual([hosts.right()]);
  // Asked for so, or sent so as one that nobody else lacks.
  const { counts } = await hosts.pullerStats(0);
  expect(counts.received.unicast.datagrams).toBeGreaterThan(0);
});

test.skipIf(reason)('with a tenth of all datagrams lost, every page comes right', async () => {
  await using hosts = await PageHosts.start({ pullers: 3, pageCount: PAGES });
  // A packet of several datagrams would be lost as one.
  await hosts.net.hosts[SERVER]!.run('ip', 'link', 'set', 'eth0', 'gso_max_segs', '1');
  for (const host of hosts.net.hosts) await host.loseDatagrams(0.1);
  const right = hosts.right(0, PAGES / 2);
  const half = { firstPage: 0, count: PAGES / 2 };
  expect(await hosts.pull({ atOnce: 16, ...half })).toEqual([right, right, right]);
  expect(await hosts.pull({ atOnce: 0 })).toEqual([hosts.right(), hosts.right(), hosts.right()]);
  for (const index of [0, 1, 2]) {
    const { counts } = await hosts.pullerStats(index);
    expect(counts.pagesRetried).toBeGreaterThan(PAGES / 100);
    expect(counts.pagesLost).toEqual({ timeout: 0, absent: 0 });
  }
});

test.skipIf(reason)('a server that is killed and started again is asked on', async () => {
  await using hosts = await PageHosts.start({ pullers: 2, pageCount: PAGES });
  for (let kills = 0; kills < KILLS; kills++) {
    const part = { firstPage: kills * PART, count: PART };
    const pulled = hosts.pull({ atOnce: 4, ...part });
    await eventually(async () => {
      const { requests } = await hosts.serverStats();
      expect(requests).toBeGreaterThan(10);
    });
    await hosts.server.kill();
    await hosts.startServer();
    const right = hosts.right(part.firstPage, part.count);
    expect(await pulled).toEqual([right, right]);
  }
});

test.skipIf(reason)(
  'a host that hangs keeps no other from its pages, and goes on after',
  async () => {
    await using hosts = await PageHosts.start({ pullers: 3, pageCount: PAGES });
    await hosts.untilByGroup();
    const hanging = hosts.pullers[0]!.child;
    const pulledLate = hosts.pull({ pullers: [0], atOnce: 0 });
    await eventually(async () => {
      expect((await hosts.serverStats()).pagesSent.data).toBeGreaterThan(100);
    });
    hanging.kill('SIGSTOP');
    const before = await hosts.serverStats();
    try {
      expect(await hosts.pull({ pullers: [1, 2], atOnce: 8 })).toEqual([
        hosts.right(),
        hosts.right(),
      ]);
      // Each page crosses about once for both, and nothing again for the one that hangs.
      const { pagesSent } = await hosts.serverStats();
      expect(pagesSent.data - before.pagesSent.data).toBeLessThan(PAGES * 1.5);
    } finally {
      hanging.kill('SIGCONT');
    }
    expect(await pulledLate).toEqual([hosts.right()]);
  },
);

test.skipIf(reason)('strangers that send as fast as they can change nothing', async () => {
  await using hosts = await PageHosts.start({ pullers: 2, pageCount: PAGES, strangers: 1 });
  const [server, ...others] = hosts.net.hosts.map((host) => host.address);
  const stranger = others.at(-1)!;
  await hosts.pull({ atOnce: 8, count: 100 }); // so that there is something to overhear
  const args = [
    ...[ATTACKER_MAIN, stranger, GROUP.address, String(GROUP.port)],
    ...[`${server}:${SERVER_PORT}`, `${GROUP.address}:${GROUP.port}`],
    ...others.map((host) => `${host}:${GROUP.port}`),
  ];
  const stdio: StdioOptions = ['pipe', 'pipe', 'inherit'];
  const attacker = hosts.net.hosts.at(-1)!.spawn(process.execPath, args, { stdio });
  const ended = once(attacker, 'exit');
  await once(attacker.stdout!, 'data');
  expect(await hosts.pull({ atOnce: 8 })).toEqual([hosts.right(), hosts.right()]);
  attacker.kill('SIGTERM');
  expect(await ended).toEqual([0, null]);
  const { dropped, now } = await hosts.serverStats();
  expect(dropped.forged + dropped.short).toBeGreaterThan(0);
  expect(now.receivers).toBeLessThanOrEqual(2);
  for (const index of [0, 1]) {
    const { counts, network } = await hosts.pullerStats(index);
    for (const kind of ['short', 'version', 'forged', 'replayed'] as const) {
      expect(counts.dropped[kind] + network.datagramsUnknown, kind).toBeGreaterThan(0);
    }
    expect(counts.dropped.replayed + counts.dropped.old).toBeGreaterThan(0);
    expect(counts.pagesLost).toEqual({ timeout: 0, absent: 0 });
  }
});
