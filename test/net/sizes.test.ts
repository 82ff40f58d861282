// What size of datagram is used between real sockets: the largest that comes whole to all who want
// it, and no packet is ever cut on the way.

import { expect, test } from 'vitest';
import { whyNoNetHosts } from '../../packages/clone-agent/src/system/net-hosts.js';
import { eventually } from '../support/eventually.js';
import { PageHosts } from '../support/page-hosts.js';

const PAGES = 8192;
const LARGE_BODY = 8930;
const USUAL_BODY = 1430;
const reason = whyNoNetHosts();

/** Packets that a host had to put together from fragments. */
async function fragments(hosts: PageHosts, host: number): Promise<number> {
  const [names, values] = (await hosts.net.hosts[host]!.run('grep', '^Ip:', '/proc/net/snmp'))
    .split('\n')
    .map((line) => line.split(' '));
  return Number(values![names!.indexOf('ReasmReqds')]);
}

test.skipIf(reason)('pages go whole where all hosts get large packets, uncut', async () => {
  await using hosts = await PageHosts.start({
    pullers: 2,
    pageCount: PAGES,
    mtuBytes: [9000, 9000, 9000],
  });
  await hosts.pull({ atOnce: 8, count: 1000 });
  await eventually(async () => {
    expect((await hosts.serverStats()).now.groupBodyBytes).toBe(LARGE_BODY);
  });
  const before = await hosts.serverStats();
  expect(await hosts.pull({ atOnce: 0 })).toEqual([hosts.right(), hosts.right()]);
  const { sent, pagesSent } = await hosts.serverStats();
  const datagrams = sent.group.datagrams - before.sent.group.datagrams;
  expect(datagrams).toBeLessThan(pagesSent.data - before.pagesSent.data);
  for (const host of [1, 2]) expect(await fragments(hosts, host)).toBe(0);
});

test.skipIf(reason)('one host with small packets among others: all get all, uncut', async () => {
  await using hosts = await PageHosts.start({
    pullers: 2,
    pageCount: PAGES,
    mtuBytes: [9000, 9000, 1500],
  });
  expect(await hosts.pull({ atOnce: 0 })).toEqual([hosts.right(), hosts.right()]);
  expect((await hosts.serverStats()).now.groupBodyBytes).toBe(USUAL_BODY);
  for (const host of [1, 2]) expect(await fragments(hosts, host)).toBe(0);
});

test.skipIf(reason)('a path that takes less from now on costs time, and no page', async () => {
  await using hosts = await PageHosts.start({
    pullers: 1,
    pageCount: PAGES,
    mtuBytes: [9000, 9000],
  });
  await hosts.pull({ atOnce: 8, count: 1000 });
  await eventually(async () => {
    expect((await hosts.serverStats()).now.groupBodyBytes).toBe(LARGE_BODY);
  });
  await hosts.net.hosts[1]!.run('ip', 'link', 'set', 'eth0', 'mtu', '1500');
  expect(await hosts.pull({ atOnce: 8 })).toEqual([hosts.right()]);
  // By unicast it may have come before the group was given up.
  await eventually(async () => {
    expect((await hosts.serverStats()).now.groupBodyBytes).toBe(USUAL_BODY);
  });
  expect(await fragments(hosts, 1)).toBe(0);
});

test.skipIf(reason)('a tunnel of 1,450 bytes needs no more pieces than Ethernet', async () => {
  await using hosts = await PageHosts.start({ pullers: 1, pageCount: 512, mtuBytes: [1450, 1450] });
  expect(await hosts.pull({ atOnce: 8 })).toEqual([hosts.right()]);
  const { sent } = await hosts.serverStats();
  expect(sent.group.datagrams + sent.unicast.datagrams).toBeLessThan(512 * 3.1);
  expect(await fragments(hosts, 1)).toBe(0);
});
