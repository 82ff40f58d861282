// What a page from another host can't be faster than: a page's bytes there and back by UDP between
// two processes that do nothing else, and a fault that the pager answers from memory of its own host.

import { type ChildProcess, execFile } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { PAGE_BYTES } from '@snowfork/memserver';
import { type NetHost, NetHosts } from '../support/agent-parts.js';
import type { BenchContext } from '../support/context.js';
import type { BenchOptions } from '../support/options.js';
import { number, table } from '../support/report.js';
import { inScratch } from '../support/scratch.js';
import { type Tail, tailOf } from '../support/statistics.js';
import type { PagedFaults } from './paged-main.js';
import { writeLayer, writeSnapshot } from './snapshot.js';

const ECHO_MAIN = fileURLToPath(new URL('./echo-main.js', import.meta.url));
export const PAGED_MAIN = fileURLToPath(new URL('./paged-main.js', import.meta.url));
const ECHO_PORT = 7900;
const COUNT = 10_000;
const COUNT_QUICK = 5000;
const JSON_BYTES_MAX = 16 * 1024 * 1024;

export interface FloorResult {
  readonly echoUs: Tail;
  readonly faultUs: Tail;
}

export async function benchFloor({ options, quiet, say }: BenchContext): Promise<FloorResult> {
  const count = faultCount(options);
  say(`floor: ${count} echoes between two hosts`);
  await quiet.wait();
  const echoUs = tailOf(await echoes(count));
  say(`floor: ${count} faults that the pager answers from memory`);
  await quiet.wait();
  return { echoUs, faultUs: tailOf(await faults(count)) };
}

export function faultCount({ quick }: BenchOptions): number {
  return quick ? COUNT_QUICK : COUNT;
}

async function echoes(count: number): Promise<number[]> {
  await using net = await NetHosts.create({ hosts: 2 });
  const [alpha, beta] = net.hosts as [NetHost, NetHost];
  const stdio = ['ignore', 'pipe', 'inherit'] as const;
  const port = String(ECHO_PORT);
  const server = beta.spawn(process.execPath, [ECHO_MAIN, 'serve', port], { stdio: [...stdio] });
  await once(server.stdout!, 'data');
  const asked = [ECHO_MAIN, 'ask', port, beta.address, String(count), String(PAGE_BYTES)];
  return await numbersOf(alpha.spawn(process.execPath, asked, { stdio: [...stdio] }));
}

async function numbersOf(child: ChildProcess): Promise<number[]> {
  return JSON.parse(await text(child.stdout!)) as number[];
}

/** Of a layer in the memory of this host. */
async function faults(count: number): Promise<readonly number[]> {
  return await inScratch(async (folder) => {
    const runFolder = path.join(folder, 'run');
    writeSnapshot(runFolder, { layer: writeLayer(folder) });
    const args = [PAGED_MAIN, runFolder, String(count)];
    const options = { maxBuffer: JSON_BYTES_MAX };
    const { stdout } = await promisify(execFile)(process.execPath, args, options);
    return (JSON.parse(stdout) as PagedFaults).latencyUs;
  });
}

export function floorTable({ echoUs, faultUs }: FloorResult): string {
  const row = (name: string, { count, p50, p99, max }: Tail): string[] => [
    name,
    ...[count, p50, p99, max].map(number),
  ];
  return table(
    'What a page from another host is compared with, microseconds',
    ['', 'times', 'p50', 'p99', 'max'],
    [
      row('4 KiB there and back by UDP', echoUs),
      row("a fault, answered from this host's memory", faultUs),
    ],
  );
}
