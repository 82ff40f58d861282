// The world's faults: what is lost, gone, cut off, or never was there. A page that somebody waits
// for comes with the right bytes (`Puller` compares them), or is reported lost with the reason.

import { CHANNEL, DEMANDS_MAX } from '@snowfork/memserver';
import { expect, test } from 'vitest';
import { limitMs, times } from '../support/soak.js';
import type { Weather } from './network.js';
import { LAYER } from './origin.js';
import { withSeeds } from './seeded.js';
import { pagesFrom, World } from './world.js';

test('pages of zeros do not travel', () => {
  const world = new World({ seed: 2, pageCount: 4096, zeroShare: 0.9 });
  const puller = world.addReceiver();
  puller.pull({ pages: pagesFrom(0, 4096), atOnce: 8 });
  world.poke(puller);
  world.runUntilAllHeld(10_000);
  const { pages, zeroPages } = puller.receiver.counts;
  expect(zeroPages).toBeGreaterThan(3500);
  expect(pages.demand).toBe(4096);
  expect(world.server.counts.pagesSent.data).toBe(4096 - zeroPages);
});

test('a memory server that is restarted is asked again, and nothing is lost', () => {
  const world = new World({ seed: 3, pageCount: 1024 });
  const pullers = [0, 1, 2].map(() => world.addReceiver());
  for (const puller of pullers) {
    puller.pull({ pages: pagesFrom(0, 1024), atOnce: 4 });
    world.poke(puller);
  }
  for (const atMs of [10, 20, 30, 90]) world.clockwork.at(atMs, () => world.restartServer());
  world.runUntilAllHeld(10_000);
  expect(world.server.counts.pagesSent.data).toBeLessThan(1024);
  for (const { lost } of pullers) expect(lost.size).toBe(0);
});

test('of a memory server that is another one, datagrams are counted anew', () => {
  const world = new World({ seed: 17, pageCount: 512 });
  const puller = world.addReceiver();
  const pull = (first: number, count: number): number => {
    puller.pull({ pages: pagesFrom(first, count), atOnce: 4 });
    world.poke(puller);
    world.run(() => puller.isDone, 5000);
    return puller.receiver.asking.seen;
  };
  expect(pull(0, 496)).toBeGreaterThan(496);
  world.restartServer();
  // Or the new one took what it sends for what has come.
  expect(pull(496, 16)).toBeLessThan(200);
});

test('when the origin is gone faults stall, and are lost after the set time', () => {
  const world = new World({ seed: 4, pageCount: 64 });
  const puller = world.addReceiver({ lostAfterMs: 5000 });
  world.serverHost.isCutOff = true;
  puller.pull({ pages: pagesFrom(0, 64), atOnce: 64 });
  puller.receiver.prefetch(LAYER, 0, 64);
  world.poke(puller);
  world.runFor(4999);
  expect(puller.lost.size).toBe(0);
  world.run(() => puller.isDone, 7500);
  expect([...puller.lost.values()]).toEqual(Array(64).fill('timeout'));
  // Asked for rarely, in the end once a second.
  expect(puller.receiver.counts.requestsSent.datagrams).toBeLessThan(1000);
});

test('an origin that comes back in time loses nothing', () => {
  const world = new World({ seed: 4, pageCount: 64 });
  const puller = world.addReceiver({ lostAfterMs: 5000 });
  world.serverHost.isCutOff = true;
  puller.pull({ pages: pagesFrom(0, 64), atOnce: 64 });
  world.poke(puller);
  world.clockwork.at(3000, () => {
    world.serverHost.isCutOff = false;
  });
  world.runUntilAllHeld(4500);
  expect(puller.lost.size).toBe(0);
});

test('while the network is in parts, the origin serves its own, and after that all', () => {
  withSeeds(times(3, 1000), (seed) => {
    const world = new World({ seed, pageCount: 512 });
    const pullers = [0, 1, 2, 3].map(() => world.addReceiver());
    const apart = pullers.slice(2);
    for (const puller of pullers) {
      puller.pull({ pages: pagesFrom(0, 512), atOnce: 8 });
      puller.receiver.prefetch(LAYER, 0, 512);
      world.poke(puller);
    }
    // The server is the first host.
    world.clockwork.at(5, () => setParts(world, (index) => (index > 2 ? 1 : 0)));
    world.run(() => pullers.slice(0, 2).every(({ hasAll }) => hasAll), 1500);
    expect(apart.some(({ hasAll }) => hasAll)).toBe(false);
    world.clockwork.at(3000, () => setParts(world, () => 0));
    world.runUntilAllHeld(10_000);
    for (const { lost } of pullers) expect(lost.size).toBe(0);
  });
});

test('a page that the server does not hold is lost at once, and no other', () => {
  const world = new World({ seed: 9, pageCount: 64, mtuBytes: 9000 });
  world.origin.absent[17] = 1;
  const puller = world.addReceiver();
  puller.pull({ pages: pagesFrom(0, 64), atOnce: 64 });
  world.poke(puller);
  world.run(() => puller.isDone, 100);
  expect([...puller.lost]).toEqual([[17, 'absent']]);
  expect(puller.heldPages).toBe(63);
});

test('more faults than a receiver takes are refused', () => {
  const world = new World({ seed: 11, pageCount: 8192 });
  const { receiver } = world.addReceiver();
  const taken = pagesFrom(0, DEMANDS_MAX + 1).filter((page) => receiver.demand(LAYER, page));
  expect(taken.length).toBe(DEMANDS_MAX);
  expect(receiver.demand(LAYER, 0)).toBe(true); // is waited for already
  expect(receiver.counts.demandsRefused).toBe(1);
});

/** A receiver that asks for the first page, and gets no whole answer before its weather clears up. */
function askInStorm(world: World, storm: Partial<Weather>) {
  const puller = world.addReceiver();
  world.poke(puller);
  world.runFor(50);
  const { weather } = puller.host;
  const fair = { ...weather };
  Object.assign(weather, storm);
  puller.pull({ pages: [0], atOnce: 1 });
  world.poke(puller);
  world.runFor(5);
  Object.assign(weather, fair);
  return puller;
}

test('a page is asked for again as soon as one has come that was asked for later', () => {
  const world = new World({ seed: 16, pageCount: 64 });
  const puller = askInStorm(world, { loss: 1 });
  puller.pull({ pages: [1], atOnce: 2 });
  world.poke(puller);
  world.run(() => puller.isDone, 1000);
  // Not 50 ms, as nothing was measured before.
  expect(Math.max(...puller.latenciesMs)).toBeLessThan(10);
});

test('pieces that lack soon after others of their page are asked for again', () => {
  const world = new World({ seed: 18, pageCount: 64 });
  // The last piece is the smallest: only that one comes.
  const puller = askInStorm(world, { mtuBytes: 1449 });
  expect(puller.receiver.outstanding.assemblies).toBe(1);
  world.run(() => puller.isDone, 1000);
  // Not 50 ms, as nothing was measured before.
  expect(Math.max(...puller.latenciesMs)).toBeLessThan(40);
});

test('a page that another thread has asked for is asked for again when it does not come', () => {
  const world = new World({ seed: 13, pageCount: 64 });
  const puller = world.addReceiver();
  puller.pull({ pages: pagesFrom(0, 64), atOnce: 64, isAsked: true });
  world.poke(puller);
  world.runUntilAllHeld(1000);
  expect(puller.receiver.counts.pagesRetried).toBe(64);
});

test('prefetch that is stopped ends with what was asked for', () => {
  const world = new World({ seed: 12, pageCount: 8192 });
  const other = world.addReceiver();
  other.receiver.prefetch(LAYER, 0, 8192);
  world.poke(other);
  world.runFor(10);
  other.receiver.stopPrefetch();
  world.runFor(1000);
  expect(other.heldPages).toBeGreaterThan(0);
  expect(other.hasAll).toBe(false);
  expect(other.receiver.outstanding.prefetch).toBe(0);
});

test('where multicast does not reach, pages come by unicast, until it does', () => {
  const world = new World({ seed: 10, pageCount: 1024 });
  const pullers = [world.addReceiver(), world.addReceiver()];
  const [cut, other] = pullers as [(typeof pullers)[0], (typeof pullers)[0]];
  cut.host.isMember = false;
  for (const puller of pullers) {
    puller.pull({ pages: pagesFrom(0, 512), atOnce: 4 });
    world.poke(puller);
  }
  world.run(() => cut.isDone && other.isDone, 10_000);
  expect(cut.receiver.delivery).toBe(CHANNEL.unicast);
  expect(other.receiver.delivery).toBe(CHANNEL.group);
  expect(cut.receiver.counts.received.group.datagrams).toBe(0);
  cut.host.isMember = true;
  world.runFor(1000);
  expect(cut.receiver.delivery).toBe(CHANNEL.group);
});

test('a host that loses too much of the group leaves it, and comes back when it does not', () => {
  const world = new World({ seed: 14, pageCount: 12_288 });
  const unlucky = world.addReceiver({ weather: { loss: 0.6 } });
  for (const puller of [unlucky, world.addReceiver()]) {
    puller.receiver.prefetch(LAYER, 0, 12_288);
    world.poke(puller);
  }
  world.run(() => !unlucky.host.isMember, 10_000);
  expect(unlucky.receiver.delivery).toBe(CHANNEL.unicast);
  unlucky.host.weather.loss = 0;
  world.run(() => unlucky.receiver.delivery === CHANNEL.group, 10_000);
  expect(unlucky.host.isMember).toBe(true);
  expect(unlucky.receiver.counts.timesLeftGroup).toBe(1);
});

test('multicast that ends is noticed by the pages that do not come', () => {
  const world = new World({ seed: 15, pageCount: 1024 });
  const puller = world.addReceiver();
  puller.pull({ pages: pagesFrom(0, 512), atOnce: 4 });
  world.poke(puller);
  world.run(() => puller.isDone, 1000);
  expect(puller.receiver.delivery).toBe(CHANNEL.group);
  puller.host.isMember = false;
  puller.pull({ pages: pagesFrom(512, 512), atOnce: 4 });
  world.poke(puller);
  world.run(() => puller.isDone, 10_000);
  expect(puller.receiver.delivery).toBe(CHANNEL.unicast);
});

test('a host that multicast does not reach knows it before its first fault', () => {
  const world = new World({ seed: 12, pageCount: 64 });
  const puller = world.addReceiver();
  puller.host.isMember = false;
  world.poke(puller); // it connects
  world.runFor(40);
  expect(puller.receiver.delivery).toBe(CHANNEL.unicast);
  puller.pull({ pages: pagesFrom(0, 64), atOnce: 1 });
  world.poke(puller);
  world.run(() => puller.isDone, 1000);
  expect(Math.max(...puller.latenciesMs)).toBeLessThan(2);
  expect(puller.receiver.counts.pagesRetried).toBe(0);
});

test('a host that faults before it knows whether multicast reaches it waits 30 ms at most', () => {
  const world = new World({ seed: 13, pageCount: 64 });
  const puller = world.addReceiver();
  puller.host.isMember = false;
  puller.pull({ pages: pagesFrom(0, 64), atOnce: 1 });
  world.poke(puller);
  world.run(() => puller.isDone, 1000);
  expect(puller.latenciesMs.filter((ms) => ms > 2)).toHaveLength(1);
  expect(Math.max(...puller.latenciesMs)).toBeLessThan(32);
});

test(
  'whatever the network does, pages come right or are reported lost',
  () => {
    withSeeds(times(15, 100_000), (seed) => {
      const world = new World({
        seed,
        pageCount: 512,
        zeroShare: 0.1,
        mtuBytes: seed % 2 ? 1500 : 9000,
      });
      const { seeded, clockwork } = world;
      for (let page = 0; page < 5; page++) world.origin.absent[seeded.whole(0, 512)] = 1;
      world.serverHost.weather.loss = seeded.between(0, 0.2);
      const count = seeded.whole(1, 9);
      for (let index = 0; index < count; index++) {
        const puller = world.addReceiver({
          bytesPerSecond: seeded.between(500_000, 125_000_000),
          hasGroup: seeded.chance(0.8),
          lostAfterMs: seeded.between(500, 30_000),
          weather: {
            loss: seeded.between(0, 0.3),
            duplicates: seeded.between(0, 0.2),
            delayMs: seeded.between(0, 20),
            jitterMs: seeded.between(0, 10),
          },
        });
        clockwork.at(seeded.between(0, 300), () => {
          puller.pull({ pages: pagesFrom(0, 512), atOnce: seeded.whole(1, 64) });
          if (seeded.chance(0.5)) puller.receiver.prefetch(LAYER, 0, 512);
          world.poke(puller);
        });
        if (seeded.chance(0.1)) clockwork.at(seeded.between(0, 500), () => (puller.isHung = true));
      }
      trouble(world);
      world.run(() => world.pullers.every((puller) => puller.isHung || isSettled(puller)), 120_000);
    });
  },
  limitMs(120_000),
);

/** Cuts hosts off for a while, parts the network, and restarts the server. */
function trouble(world: World): void {
  const { seeded, clockwork, network } = world;
  for (let times = seeded.whole(0, 5); times > 0; times--) {
    const host = network.hosts[seeded.whole(0, network.hosts.length)]!;
    const fromMs = seeded.between(0, 1000);
    clockwork.at(fromMs, () => (host.isCutOff = true));
    clockwork.at(fromMs + seeded.between(0, 1000), () => (host.isCutOff = false));
  }
  if (seeded.chance(0.3)) {
    const parts = network.hosts.map(() => seeded.whole(0, 2));
    const fromMs = seeded.between(0, 1000);
    clockwork.at(fromMs, () => setParts(world, (index) => parts[index]!));
    clockwork.at(fromMs + seeded.between(0, 1000), () => setParts(world, () => 0));
  }
  if (seeded.chance(0.3)) clockwork.at(seeded.between(0, 500), () => world.restartServer());
}

function setParts({ network }: World, partOf: (index: number) => number): void {
  for (const [index, host] of network.hosts.entries()) host.part = partOf(index);
}

function isSettled(puller: World['pullers'][number]): boolean {
  return puller.hasStarted && puller.isDone;
}
