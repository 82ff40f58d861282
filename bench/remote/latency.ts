// How long a touch of a page on another host takes, beside what it can't be faster than (`floor.ts`):
// the pager of one host, the memory server of another, nothing held back by a link's rate.

import path from 'node:path';
import { text } from 'node:stream/consumers';
import { type NetHost, NetHosts } from '../support/agent-parts.js';
import type { BenchContext } from '../support/context.js';
import { below, type Check, number, table } from '../support/report.js';
import { inScratch } from '../support/scratch.js';
import { type Tail, tailOf } from '../support/statistics.js';
import { benchFloor, type FloorResult, faultCount, floorTable, PAGED_MAIN } from './floor.js';
import { serveFile } from './memory-server.js';
import type { PagedFaults } from './paged-main.js';
import { writeLayer, writeSnapshot } from './snapshot.js';

const LINK_BYTES_PER_SECOND = 1.25e9;
const TIMES_FLOOR_MAX = 1.3;

export interface LatencyResult extends FloorResult {
  readonly remoteUs: Tail;
  /** Processor time of the pager for each page. */
  readonly pagerUsPerPage: number;
}

export async function benchLatency(context: BenchContext): Promise<LatencyResult> {
  const { options, quiet, say } = context;
  const floor = await benchFloor(context);
  const count = faultCount(options);
  say(`latency: ${count} faults on pages of another host`);
  await quiet.wait();
  const { latencyUs, pagerUsPerPage } = await remoteFaults(count);
  return { ...floor, remoteUs: tailOf(latencyUs), pagerUsPerPage };
}

async function remoteFaults(count: number): Promise<PagedFaults> {
  return await inScratch(async (folder) => {
    await using net = await NetHosts.create({ hosts: 2 });
    const [alpha, beta] = net.hosts as [NetHost, NetHost];
    const file = writeLayer(folder);
    const linkBytesPerSecond = LINK_BYTES_PER_SECOND;
    const { served: origin } = await serveFile(alpha, { folder, file, linkBytesPerSecond });
    const runFolder = path.join(folder, 'run');
    writeSnapshot(runFolder, { origin, address: beta.address });
    const child = beta.spawn(process.execPath, [PAGED_MAIN, runFolder, String(count)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    return JSON.parse(await text(child.stdout!)) as PagedFaults;
  });
}

export function checkLatency({ echoUs, faultUs, remoteUs }: LatencyResult): Check[] {
  const times = remoteUs.p50 / (echoUs.p50 + faultUs.p50);
  const name = 'a touch of a page on another host, p50, beside a fault and an echo';
  return [below(name, times, 'times their sum', TIMES_FLOOR_MAX)];
}

export function latencyTable(result: LatencyResult): string {
  const { count, p50, p99, max } = result.remoteUs;
  const row = ['a page of another host', ...[count, p50, p99, max].map(number)];
  return [
    floorTable(result),
    table('A touch, microseconds', ['', 'times', 'p50', 'p99', 'max'], [row]),
  ].join('\n');
}
