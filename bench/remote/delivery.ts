// One file from one host to three, over links of 1 Gbit/s: by Snowfork's memory server and by the
// programs that people use for it (`delivery-own.ts`, `delivery-peers.ts`), in turn.

import { createHash, randomFillSync } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { type NetHost, NetHosts } from '../support/agent-parts.js';
import type { BenchContext } from '../support/context.js';
import { atMost, type Check, number, spread, table } from '../support/report.js';
import { inScratch } from '../support/scratch.js';
import { type Summary, summarise } from '../support/statistics.js';
import { deliverByMemoryServer } from './delivery-own.js';
import { deliverByUdpcast, deliverByUftp } from './delivery-peers.js';
import type { Deliver } from './delivery-way.js';

const MIB = 1024 * 1024;
const RECEIVERS = 3;
const LINK_BITS_PER_SECOND = 1e9;
const FILE_MIB = 512;
const FILE_MIB_QUICK = 128;
const ROUNDS = 3;
const ROUNDS_QUICK = 1;
/** A hundred times what the link takes. */
const DELIVERY_MS_MAX = 430_000;
const PIECE_BYTES = 16 * MIB;

const DELIVERIES = {
  snowfork: deliverByMemoryServer,
  udpcast: deliverByUdpcast,
  uftp: deliverByUftp,
} satisfies Readonly<Record<string, Deliver>>;
type Name = keyof typeof DELIVERIES;
const NAMES = Object.keys(DELIVERIES) as Name[];

interface Delivery {
  readonly seconds: number;
  /** On the sender's link. */
  readonly sentMib: number;
  /** What the receivers said, on all of their links. */
  readonly saidMib: number;
}

export interface DeliveryResult {
  readonly fileMib: number;
  readonly receivers: number;
  readonly by: Readonly<Record<Name, { [Field in keyof Delivery]: Summary }>>;
}

export async function benchDelivery(context: BenchContext): Promise<DeliveryResult> {
  const { options, quiet, say } = context;
  const fileMib = options.quick ? FILE_MIB_QUICK : FILE_MIB;
  const rounds = options.quick ? ROUNDS_QUICK : ROUNDS;
  const found: Record<Name, Delivery[]> = { snowfork: [], udpcast: [], uftp: [] };
  await inScratch(async (folder) => {
    const file = path.join(folder, 'file');
    writeRandom(file, fileMib);
    const expected = await hashOf(file);
    for (let round = 0; round < rounds; round++) {
      say(`delivery: ${fileMib} MiB to ${RECEIVERS} hosts, round ${round + 1} of ${rounds}`);
      for (const name of NAMES) {
        await quiet.wait();
        found[name].push(await deliver(DELIVERIES[name], { file, expected }));
      }
    }
  });
  const by = Object.fromEntries(NAMES.map((name) => [name, summariesOf(found[name])]));
  return { fileMib, receivers: RECEIVERS, by: by as DeliveryResult['by'] };
}

async function deliver(
  by: Deliver,
  { file, expected }: { file: string; expected: string },
): Promise<Delivery> {
  const folder = fs.mkdtempSync(path.join(path.dirname(file), 'delivery-'));
  const linkBitsPerSecond = LINK_BITS_PER_SECOND;
  const bitsPerSecond = linkBitsPerSecond;
  await using net = await NetHosts.create({ hosts: 1 + RECEIVERS, bitsPerSecond });
  const [sender, ...receivers] = net.hosts as [NetHost, ...NetHost[]];
  const fileBytes = fs.statSync(file).size;
  try {
    const hosts = { sender, receivers };
    const { files, start } = await by({ ...hosts, folder, file, fileBytes, linkBitsPerSecond });
    const sentBefore = net.hosts.map(sentBytes);
    const startedAt = performance.now();
    await inTime(start());
    const seconds = (performance.now() - startedAt) / 1000;
    const [sent, ...said] = net.hosts.map((host, index) => sentBytes(host) - sentBefore[index]!);
    for (const each of files) {
      if ((await hashOf(each)) !== expected) throw new Error(`${each} is not the file`);
    }
    const saidBytes = said.reduce((sum, bytes) => sum + bytes, 0);
    return { seconds, sentMib: sent! / MIB, saidMib: saidBytes / MIB };
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

async function inTime(delivered: Promise<unknown>): Promise<void> {
  const late = delay(DELIVERY_MS_MAX, true, { ref: false });
  if (await Promise.race([delivered.then(() => false), late])) {
    throw new Error(`not delivered within ${DELIVERY_MS_MAX / 1000} s`);
  }
}

function sentBytes(host: NetHost): number {
  return host.counters().bytesSent;
}

export function writeRandom(file: string, mib: number): void {
  const descriptor = fs.openSync(file, 'w');
  const piece = Buffer.alloc(PIECE_BYTES);
  for (let left = mib * MIB; left > 0; left -= PIECE_BYTES) {
    fs.writeSync(descriptor, randomFillSync(piece));
  }
  fs.closeSync(descriptor);
}

async function hashOf(file: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(fs.createReadStream(file, { highWaterMark: PIECE_BYTES }), hash);
  return hash.digest('hex');
}

function summariesOf(deliveries: readonly Delivery[]): { [Field in keyof Delivery]: Summary } {
  return {
    seconds: summarise(deliveries.map(({ seconds }) => seconds)),
    sentMib: summarise(deliveries.map(({ sentMib }) => sentMib)),
    saidMib: summarise(deliveries.map(({ saidMib }) => saidMib)),
  };
}

export function checkDelivery({ fileMib, receivers, by }: DeliveryResult): Check[] {
  const what = `${fileMib} MiB to ${receivers} hosts take`;
  const own = by.snowfork.seconds.median;
  return (['udpcast', 'uftp'] as const).map((peer) =>
    atMost(`${what}, times as long as by ${peer}`, own / by[peer].seconds.median, 'times', 1),
  );
}

export function deliveryTable({ fileMib, receivers, by }: DeliveryResult): string {
  return table(
    `${fileMib} MiB to ${receivers} hosts over 1 Gbit/s: median (min–max)`,
    ['by', 'seconds', 'MiB sent', 'MiB that receivers said'],
    NAMES.map((name) => {
      const { seconds, sentMib, saidMib } = by[name];
      return [name, spread(seconds), spread(sentMib), number(saidMib.median)];
    }),
  );
}
