// How large datagrams get: as large as the server's link carries when all who want them get them
// so, of the usual size otherwise. Nobody says what a path carries: it is found out, again and again.

import { expect, test } from 'vitest';
import { LAYER } from './origin.js';
import type { Puller } from './puller.js';
import { pagesFrom, World } from './world.js';

const JUMBO = 9000;
const ETHERNET = 1500;
const LARGE_BODY = 8930;
const USUAL_BODY = 1430;
/** 64 MiB at 1 Gbit/s: half a second. */
const PAGES = 16_384;

function prefetchAll(world: World, puller: Puller): void {
  puller.receiver.prefetch(LAYER, 0, world.origin.pageCount);
  world.poke(puller);
}

test('where all carry large datagrams, pages soon go whole', () => {
  const world = new World({ seed: 20, pageCount: PAGES, mtuBytes: JUMBO });
  const pullers = [0, 1, 2].map(() => world.addReceiver());
  for (const puller of pullers) prefetchAll(world, puller);
  world.runUntilAllHeld(10_000);
  const { counts } = world.server;
  expect(counts.now.groupBodyBytes).toBe(LARGE_BODY);
  // Two pages in most datagrams; three datagrams a page would be 49,152.
  expect(counts.sent.group.datagrams).toBeLessThan(PAGES * 0.65);
  expect(counts.sent.probes.bytes).toBeLessThan(counts.sent.group.bytes / 1000);
});

test('one host behind a path of the usual size gets all it wants, and so do the others', () => {
  const world = new World({ seed: 21, pageCount: 4096, mtuBytes: JUMBO });
  const pullers = [{}, { mtuBytes: ETHERNET }, {}].map((weather) => world.addReceiver({ weather }));
  for (const puller of pullers) prefetchAll(world, puller);
  world.runUntilAllHeld(10_000);
  expect(world.server.counts.now.groupBodyBytes).toBe(USUAL_BODY);
  // Nothing was lost for its size, but probes.
  expect(pullers[1]!.receiver.counts.pagesRetried).toBeLessThan(100);
});

test('by unicast, each gets the size that its path carries', () => {
  const world = new World({ seed: 22, pageCount: 8192, mtuBytes: JUMBO });
  const large = world.addReceiver({ hasGroup: false });
  const usual = world.addReceiver({ hasGroup: false, weather: { mtuBytes: ETHERNET } });
  for (const puller of [large, usual]) {
    prefetchAll(world, puller);
  }
  world.runUntilAllHeld(10_000);
  expect(large.receiver.counts.received.unicast.datagrams).toBeLessThan(8192);
  expect(usual.receiver.counts.received.unicast.datagrams).toBeGreaterThanOrEqual(8192 * 3);
});

test('a path that carries less from now on holds pages up for a while, and loses none', () => {
  const world = new World({ seed: 23, pageCount: PAGES, mtuBytes: JUMBO });
  const [puller] = [world.addReceiver(), world.addReceiver()];
  for (const each of world.pullers) prefetchAll(world, each);
  world.runFor(200);
  expect(world.server.counts.now.groupBodyBytes).toBe(LARGE_BODY);
  puller.host.weather = { ...puller.host.weather, mtuBytes: ETHERNET };
  world.runUntilAllHeld(20_000);
  expect(puller.receiver.counts.pagesLost).toEqual({ timeout: 0, absent: 0 });
  expect(puller.host.isMember || puller.receiver.delivery === 1).toBe(true);
});

test('a host that comes to a group of large datagrams from a smaller path gets its pages', () => {
  const world = new World({ seed: 24, pageCount: PAGES, mtuBytes: JUMBO });
  const first = world.addReceiver();
  prefetchAll(world, first);
  world.runFor(300);
  expect(world.server.counts.now.groupBodyBytes).toBe(LARGE_BODY);
  const late = world.addReceiver({ weather: { mtuBytes: ETHERNET } });
  late.pull({ pages: [100, 200, 300, 400, 500], atOnce: 1 });
  world.poke(late);
  world.run(() => late.isDone, 2000);
  expect(Math.max(...late.latenciesMs)).toBeLessThan(10);
  expect(first.lost.size + late.lost.size).toBe(0);
});

test('a host that hangs has its say in the size for two seconds', () => {
  const world = new World({ seed: 27, pageCount: 300, mtuBytes: JUMBO });
  const [puller, hung] = [world.addReceiver(), world.addReceiver()];
  world.poke(hung);
  for (const page of pagesFrom(0, 300)) {
    world.clockwork.at(page * 10, () => {
      puller.pull({ pages: [page], atOnce: 1 });
      world.poke(puller);
    });
  }
  const { now } = world.server.counts;
  world.runFor(500);
  expect(now).toMatchObject({ groupReceivers: 2, groupBodyBytes: LARGE_BODY });
  hung.isHung = true;
  world.runFor(1800);
  expect(now).toMatchObject({ groupReceivers: 2, groupBodyBytes: USUAL_BODY });
  world.runFor(600);
  expect(now).toMatchObject({ groupReceivers: 1, groupBodyBytes: LARGE_BODY });
});

test('a server whose link carries no more than usual never tries', () => {
  const world = new World({ seed: 25, pageCount: 512, mtuBytes: ETHERNET });
  prefetchAll(world, world.addReceiver());
  world.runUntilAllHeld(10_000);
  expect(world.server.counts.sent.probes.datagrams).toBe(0);
});

test.each([ETHERNET, JUMBO])('at an MTU of %i, pages that pack share datagrams', (mtuBytes) => {
  // A quarter of them does not pack at all, a quarter not to what fits one datagram of Ethernet.
  const noiseBytes = (page: number): number => [4096, 2000, 900, 300][page % 4]!;
  for (const loss of [0, 0.1]) {
    const options = { seed: 26, pageCount: 4096, mtuBytes, zeroShare: 0.2 };
    const bytes = [options, { ...options, noiseBytes }].map((of) => {
      const world = new World(of);
      for (const atOnce of [8, 0]) {
        const puller = world.addReceiver({ weather: { loss } });
        puller.pull({ pages: pagesFrom(0, 4096), atOnce });
        prefetchAll(world, puller);
      }
      world.runUntilAllHeld(60_000);
      for (const { lost } of world.pullers) expect(lost.size).toBe(0);
      return world.serverHost.bytesSent;
    });
    expect(bytes[1]).toBeLessThan(bytes[0]! * 0.75);
  }
});
