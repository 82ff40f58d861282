// How receivers stand in each other's way, or do not: prefetch and demand, fast hosts and slow
// ones, members and strangers.

import { CHANNEL, DATAGRAM, encodeRequest, Sealer, URGENCY } from '@snowfork/memserver';
import { expect, test } from 'vitest';
import { FORGOTTEN_MS } from '../../packages/memserver/src/server/known-receivers.js';
import { LAYER } from './origin.js';
import type { Puller } from './puller.js';
import { GIGABIT, pagesFrom, quantile, World } from './world.js';

/** Faults here and there, as a program does that goes on in a clone. */
function scatter(world: World, puller: Puller, count: number): void {
  const { pageCount } = world.origin;
  const pages = Array.from({ length: count }, () => world.seeded.whole(0, pageCount));
  puller.pull({ pages, atOnce: 2 });
  world.poke(puller);
}

function prefetchAll(world: World, puller: Puller): void {
  puller.receiver.prefetch(LAYER, 0, world.origin.pageCount);
  world.poke(puller);
}

test('prefetch of one host does not hurt the demand of another', () => {
  const latencies = (prefetches: boolean): { median: number; worst: number } => {
    const world = new World({ seed: 5, pageCount: 32_768 });
    const faulting = world.addReceiver();
    const other = world.addReceiver();
    scatter(world, faulting, 300);
    if (prefetches) prefetchAll(world, other);
    world.run(() => faulting.isDone, 10_000);
    const { latenciesMs } = faulting;
    return { median: quantile(latenciesMs, 0.5), worst: quantile(latenciesMs, 0.99) };
  };
  const alone = latencies(false);
  const beside = latencies(true);
  expect(beside.median).toBeLessThan(alone.median * 2);
  expect(beside.worst).toBeLessThan(alone.worst + 1);
});

/** How long three quick hosts take for 64 MiB, with another beside them. */
function quickHostsTook(spoil?: (world: World) => Puller): { ms: number; spoiler?: Puller } {
  const world = new World({ seed: 6, pageCount: 16_384, mtuBytes: 9000 });
  const quick = [0, 1, 2].map(() => world.addReceiver());
  const spoiler = spoil?.(world);
  if (spoiler === undefined) quick.push(world.addReceiver());
  for (const puller of world.pullers) prefetchAll(world, puller);
  world.run(() => quick.every((puller) => puller.hasAll), 60_000);
  const ms = Math.max(...quick.map((puller) => puller.lastMs));
  if (spoiler === undefined) return { ms };
  world.run(() => spoiler.hasAll || spoiler.isHung, 600_000);
  return { ms, spoiler };
}

test('one of four hosts that is slow costs the others its share, and gets all it wants', () => {
  const { ms } = quickHostsTook();
  const beside = quickHostsTook((world) => world.addReceiver({ bytesPerSecond: GIGABIT / 50 }));
  expect(beside.ms).toBeLessThan(ms * 1.5);
  expect(beside.spoiler!.receiver.counts.timesLeftGroup).toBeGreaterThan(0);
  expect(beside.spoiler!.hasAll).toBe(true);
});

test('one of four hosts that hangs costs the others its share', () => {
  const { ms } = quickHostsTook();
  const beside = quickHostsTook((world) => {
    const puller = world.addReceiver();
    // After it has shown that large datagrams reach it; before, they would be cut for all.
    world.clockwork.at(60, () => {
      puller.isHung = true;
    });
    return puller;
  });
  expect(beside.ms).toBeLessThan(ms * 1.34);
});

/** Where a datagram says whose it is (docs/internals/formats.md). */
const SENDER_BYTES = { from: 10, to: 16 } as const;

/**
 * Sends what it overheard, again and spoilt, to everybody, 50,000 times a second, until it is
 * stopped.
 */
function attack(world: World): { stop: () => void } {
  const { network, seeded, serverHost, clockwork } = world;
  const victims = [...network.hosts];
  const overheard: Buffer[] = [];
  const stranger = network.addHost({
    name: 'stranger',
    bytesPerSecond: GIGABIT,
    weather: serverHost.weather,
    receive: (datagram) => overheard.push(datagram),
  });
  stranger.isMember = true;
  let attacks = 0;
  let isOver = false;
  const again = (): void => {
    if (isOver) return;
    const heard = overheard[seeded.whole(0, overheard.length)] ?? Buffer.alloc(64);
    const forged = Buffer.from(heard);
    forged[seeded.whole(0, forged.length)]! ^= 1;
    const strange = Buffer.from(heard);
    strange.fill(seeded.whole(0, 256), SENDER_BYTES.from, SENDER_BYTES.to);
    const cut = heard.subarray(0, seeded.whole(0, heard.length));
    for (const bad of [heard, forged, strange, cut, seeded.bytes(64)]) {
      network.send(stranger, victims[attacks++ % victims.length], bad);
    }
    clockwork.at(clockwork.nowMs + 0.1, again);
  };
  again();
  return {
    stop: () => {
      isOver = true;
    },
  };
}

test('garbage, forged and replayed datagrams at full rate change nothing', () => {
  const run = (isAttacked: boolean): { world: World; worstMs: number } => {
    const world = new World({ seed: 7, pageCount: 2048 });
    const pullers = [world.addReceiver(), world.addReceiver()];
    const attacker = isAttacked ? attack(world) : undefined;
    for (const puller of pullers) {
      puller.pull({ pages: pagesFrom(0, 2048), atOnce: 4 });
      world.poke(puller);
    }
    world.runUntilAllHeld(10_000);
    attacker?.stop();
    return { world, worstMs: quantile(pullers[0]!.latenciesMs, 0.99) };
  };
  const { world, worstMs } = run(true);
  const { dropped } = world.pullers[0]!.receiver.counts;
  for (const reason of ['short', 'version', 'replayed', 'forged'] as const) {
    expect(dropped[reason], reason).toBeGreaterThan(0);
  }
  expect(world.server.counts.dropped.forged).toBeGreaterThan(0);
  expect(world.server.knownReceivers).toBe(2);
  expect(worstMs).toBeLessThan(run(false).worstMs + 1);
});

test('a member that asks for everything at once gets its share, and others are served', () => {
  const world = new World({ seed: 8, pageCount: 30_000 });
  const { network, key, serverHost } = world;
  const faulting = world.addReceiver();
  const greedy = network.addHost({
    name: 'receiver 1',
    bytesPerSecond: GIGABIT,
    weather: serverHost.weather,
    receive: () => undefined,
  });
  const sealer = new Sealer(key, 4711);
  const { demand: urgency } = URGENCY;
  for (let page = 0; page < 20 * 30_000; page += 1000) {
    const run = { layer: LAYER, page: page % 30_000, count: 1000, pieces: 0, pieceCount: 0 };
    const delivery = CHANNEL.group;
    const body = encodeRequest({ urgency, delivery, seen: 0, roundTripUs: 0, runs: [run] });
    network.send(greedy, serverHost, sealer.seal(DATAGRAM.request, body));
  }
  scatter(world, faulting, 100);
  world.run(() => faulting.isDone, 10_000);
  expect(world.server.counts.pagesRefused).toBeGreaterThan(25_000);
  expect(faulting.lost.size).toBe(0);
});

const LIMIT_MS = 120_000;

test('a host that was silent for so long that the server forgot it is served as well as before', () => {
  const world = new World({ seed: 9, pageCount: 8192 });
  const half = world.origin.pageCount / 2;
  const puller = world.addReceiver({ hasGroup: false, bytesPerSecond: GIGABIT / 50 });
  const sent: number[] = [];
  const fetchHalf = (first: number): void => {
    const before = world.server.counts.pagesSent.data;
    puller.receiver.prefetch(LAYER, first, half);
    world.poke(puller);
    world.run(() => puller.heldPages >= first + half, world.clockwork.nowMs + LIMIT_MS);
    sent.push(world.server.counts.pagesSent.data - before);
  };
  fetchHalf(0);
  world.runFor(FORGOTTEN_MS + 1000);
  expect(world.server.knownReceivers).toBe(0);
  fetchHalf(half);
  expect(sent[1]! / sent[0]!).toBeLessThan(1.2);
});
