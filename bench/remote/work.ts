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
import { inScratch } from '../support/scratch.js';
import { type Summary, summarise } from '../support/statistics.js';
import { writeRandom } from './delivery.js';
import { deliverByMemoryServer } from './delivery-own.js';
import { measureSteps, type Step } from './steps.js';

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
  /** Of the memory server's: the part in system calls. */
  readonly serverSystemPart: Summary;
  readonly receiverSystemPart: Summary;
}

export interface WorkResult {
  readonly delivered: readonly Delivered[];
  readonly crowds: readonly CrowdCost[];
  readonly steps: readonly Step[];
}

export async function benchWork({ options, quiet, say }: BenchContext): Promise<WorkResult> {
  const delivered: Delivered[] = [];
  await inScratch(async (folder) => {
    const file = path.join(folder, 'file');
    writeRandom(file, options.quick ? FILE_MIB_QUICK : FILE_MIB);
    for (const receivers of HOSTS) {
      say(`work: pages to ${receivers} hosts`);
      const found: Awaited<ReturnType<typeof deliver>>[] = [];
      for (let round = 0; round < (options.quick ? ROUNDS_QUICK : ROUNDS); round++) {
        await quiet.wait();
        found.push(await deliver(file, receivers));
      }
      delivered.push({
        receivers,
        serverUsPerPage: summarise(found.map(({ serverUsPerPage }) => serverUsPerPage)),
        receiverUsPerPage: summarise(found.flatMap(({ receiverUsPerPage }) => receiverUsPerPage)),
        serverSystemPart: summarise(found.map(({ serverSystemPart }) => serverSystemPart)),
        receiverSystemPart: summarise(
          found.flatMap(({ receiverSystemPart }) => receiverSystemPart),
        ),
      });
    }
  });
  const crowds: CrowdCost[] = [];
  for (const receivers of options.quick ? CROWDS_QUICK : CROWDS) {
    say(`work: ${receivers} receivers in the simulator`);
    const args = [CROWD_MAIN, String(receivers), String(CROWD_PAGES)];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    crowds.push(JSON.parse(stdout) as CrowdCost);
  }
  say('work: single steps');
  await quiet.wait();
  return { delivered, crowds, steps: await measureSteps() };
}

async function deliver(file: string, count: number) {
  const folder = fs.mkdtempSync(path.join(path.dirname(file), 'delivery-'));
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

export function workTable({ delivered, crowds, steps }: WorkResult): string {
  return [
    table(
      'Processor time for a page, µs, with sockets and files: median (min–max)',
      ['to hosts', 'memory server', 'of it in the kernel', 'each receiver', 'of it in the kernel'],
      delivered.map((of) => [
        ...[String(of.receivers), spread(of.serverUsPerPage), spread(of.serverSystemPart)],
        ...[spread(of.receiverUsPerPage), spread(of.receiverSystemPart)],
      ]),
    ),
    table(
      'Single steps, with warm caches, µs',
      ['step', 'p50', 'p99'],
      steps.map(({ name, p50Us, p99Us }) => [name, ...[p50Us, p99Us].map(number)]),
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
