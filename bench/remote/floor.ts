// What a page from another host can't be faster than: a page's bytes there and back by UDP between
// two processes that do nothing else, and a fault that the pager answers from memory of its own host.

import { type ChildProcess, execFile } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { encodePageMap, PAGE_BYTES } from '@snowfork/memserver';
import {
  abortConnection,
  fuseConnection,
  mountFuse,
  type NetHost,
  NetHosts,
  openFuse,
  startPager,
  unmountFuse,
} from '../support/agent-parts.js';
import type { BenchContext } from '../support/context.js';
import { type Check, number, table } from '../support/report.js';
import { type Tail, tailOf } from '../support/statistics.js';

const ECHO_MAIN = fileURLToPath(new URL('./echo-main.js', import.meta.url));
const FAULTS_MAIN = fileURLToPath(new URL('./faults-main.js', import.meta.url));
const ECHO_PORT = 7900;
const COUNT = 20_000;
const COUNT_QUICK = 2000;
/** Larger than what is touched, so that pages are far from each other. */
const FILE_PAGES = 65_536;
const JSON_BYTES_MAX = 16 * 1024 * 1024;

export interface FloorResult {
  readonly echoUs: Tail;
  readonly faultUs: Tail;
}

export async function benchFloor({ options, quiet, say }: BenchContext): Promise<FloorResult> {
  const count = options.quick ? COUNT_QUICK : COUNT;
  say(`floor: ${count} echoes between two hosts`);
  await quiet.wait();
  const echoUs = tailOf(await echoes(count));
  say(`floor: ${count} faults that the pager answers from memory`);
  await quiet.wait();
  return { echoUs, faultUs: tailOf(await faults(count)) };
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

/** Of a snapshot with one layer, a file in memory. */
async function faults(count: number): Promise<number[]> {
  const folder = fs.mkdtempSync('/dev/shm/snowfork-bench-');
  const mountPoint = path.join(folder, 'mount');
  const runFolder = path.join(folder, 'run');
  writeSnapshot(runFolder);
  fs.mkdirSync(mountPoint);
  const fuseFd = openFuse();
  await mountFuse({ fd: fuseFd, mountPoint });
  const connection = await fuseConnection(mountPoint);
  try {
    const pager = await startPager({ fuseFd, runFolder });
    try {
      const args = [FAULTS_MAIN, path.join(mountPoint, 's1', 'ram'), String(count)];
      const options = { maxBuffer: JSON_BYTES_MAX };
      const { stdout } = await promisify(execFile)(process.execPath, args, options);
      return JSON.parse(stdout) as number[];
    } finally {
      await pager.stop();
    }
  } finally {
    await unmountFuse(mountPoint);
    if (connection !== undefined) await abortConnection(connection);
    fs.closeSync(fuseFd);
    fs.rmSync(folder, { recursive: true });
  }
}

function writeSnapshot(runFolder: string): void {
  const snapshot = path.join(runFolder, 'snapshots', 's1');
  fs.mkdirSync(snapshot, { recursive: true });
  fs.mkdirSync(path.join(runFolder, 'layers'));
  const layer = Buffer.alloc(FILE_PAGES * PAGE_BYTES);
  fs.writeFileSync(path.join(runFolder, 'layers', 'l1'), randomFillSync(layer));
  const entries = new Uint16Array(FILE_PAGES).fill(1);
  fs.writeFileSync(path.join(snapshot, 'ram.map'), encodePageMap({ entries, layerCount: 1 }));
  const object = { name: 'ram', sizeBytes: layer.length, map: 'ram.map', layers: ['l1'] };
  const described = { version: 1, number: 1, id: 's1', objects: [object] };
  fs.writeFileSync(path.join(snapshot, 'snapshot.json'), JSON.stringify(described));
}

/** Nothing is promised of it: it is what other figures are compared with. */
export function checkFloor(): Check[] {
  return [];
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
