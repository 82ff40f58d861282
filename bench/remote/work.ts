// Processor time for each page: of the memory server and of receivers, as processes that deliver to 1,
// 3 and 7 hosts, and of the protocol alone in the simulator, up to 10,000 receivers. What the pager
// takes for a page is measured by `latency`.

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import type { CrowdCost } from '../../test/sim/crowd-main.js';
import { type NetHost, NetHosts } from '../support/agent-parts.js';
import { projectFolder } from '../support/bench-host.js';
import type { BenchContext } from '../support/context.js';
import { type Check, number, spread, table } from '../support/report.js';
import { type Summary, summarise } from '../support/statistics.js';
import { FOLDER, writeRandom } from './delivery.js';
import { deliverByMemoryServer } from './delivery-own.js';

const CROWD_MAIN = path.join(projectFolder, 'test/dist/sim/crowd-main.js');
const LINK_BITS_PER_SECOND = 1e9;
const FILE_MIB = 128;
const FILE_MIB_QUICK = 32;
const HOSTS = [1, 3, 7] as const;
const ROUNDS = 3;
const ROUNDS_QUICK = 1;
const CROWDS = [1, 10, 100, 1000, 10_000] as const;
const CROWD_PAGES = 512;
/** The simulator takes a minute for the largest. */
const CROWDS_QUICK = [1, 10, 100, 1000] as const;

interface Delivered {
  readonly receivers: number;
  readonly serverUsPerPage: Summary;
  readonly receiverUsPerPage: Summary;
}

export interface WorkResult {
  readonly delivered: readonly Delivered[];
  readonly crowds: readonly CrowdCost[];
}

export async function benchWork({ options, quiet, say }: BenchContext): Promise<WorkResult> {
  const delivered: Delivered[] = [];
  fs.rmSync(FOLDER, { recursive: true, force: true });
  fs.mkdirSync(FOLDER, { mode: 0o700 });
  try {
    const file = path.join(FOLDER, 'file');
    writeRandom(file, options.quick ? FILE_MIB_QUICK : FILE_MIB);
    for (const receivers of HOSTS) {
      say(`work: pages to ${receivers} hosts`);
      const found: { serverUsPerPage: number; receiverUsPerPage: readonly number[] }[] = [];
      for (let round = 0; round < (options.quick ? ROUNDS_QUICK : ROUNDS); round++) {
        await quiet.wait();
        found.push(await deliver(file, receivers));
      }
      delivered.push({
        receivers,
        serverUsPerPage: summarise(found.map(({ serverUsPerPage }) => serverUsPerPage)),
        receiverUsPerPage: summarise(found.flatMap(({ receiverUsPerPage }) => receiverUsPerPage)),
      });
    }
  } finally {
    fs.rmSync(FOLDER, { recursive: true });
  }
  const crowds: CrowdCost[] = [];
  for (const receivers of options.quick ? CROWDS_QUICK : CROWDS) {
    say(`work: ${receivers} receivers in the simulator`);
    const args = [CROWD_MAIN, String(receivers), String(CROWD_PAGES)];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    crowds.push(JSON.parse(stdout) as CrowdCost);
  }
  return { delivered, crowds };
}

async function deliver(file: string, count: number) {
  const folder = fs.mkdtempSync(path.join(FOLDER, 'delivery-'));
  const linkBitsPerSecond = LINK_BITS_PER_SECOND;
  await using net = await NetHosts.create({ hosts: 1 + count, bitsPerSecond: linkBitsPerSecond });
  const [sender, ...receivers] = net.hosts as [NetHost, ...NetHost[]];
  const fileBytes = fs.statSync(file).size;
  try {
    const of = { sender, receivers, folder, file, fileBytes, linkBitsPerSecond };
    return await (await deliverByMemoryServer(of)).start();
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

/** Nothing is promised of it. */
export function checkWork(): Check[] {
  return [];
}

export function workTable({ delivered, crowds }: WorkResult): string {
  return [
    table(
      'Processor time for a page, µs, with sockets and files: median (min–max)',
      ['to hosts', 'memory server', 'each receiver'],
      delivered.map(({ receivers, serverUsPerPage, receiverUsPerPage }) => [
        ...[String(receivers), spread(serverUsPerPage), spread(receiverUsPerPage)],
      ]),
    ),
    table(
      `The protocol alone, in the simulator, ${CROWD_PAGES} pages that all receivers read`,
      [
        'receivers',
        'server, µs a page',
        'a receiver, µs a page',
        'requests',
        "times the pages' bytes",
      ],
      crowds.map((crowd) => [
        String(crowd.receivers),
        ...[crowd.serverUsPerPage, crowd.receiverUsPerPage, crowd.requests].map(number),
        crowd.bytesShare.toFixed(2),
      ]),
    ),
  ].join('\n');
}
