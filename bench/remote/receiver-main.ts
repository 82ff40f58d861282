// A host that wants all pages of a layer, as a process: `node receiver-main.js JSON` says that it
// is ready, connects to the memory server when a line comes, and says what that cost when all pages
// are in its file. Used by `delivery-own.ts`.

import { once } from 'node:events';
import fs from 'node:fs';
import { type OriginSink, PAGE_BYTES, PageNetwork } from '@snowfork/memserver';
import type { Received, Wanted } from './delivery-own.js';

const ZEROS = Buffer.alloc(PAGE_BYTES);
const LOST_AFTER_MS = 60_000;

const wanted = JSON.parse(process.argv[2]!) as Wanted;
const descriptor = fs.openSync(wanted.file, 'w');
const network = await PageNetwork.open({
  localAddress: wanted.localAddress,
  complain: (message) => void process.stderr.write(`${message}\n`),
});
process.stdout.write('ready\n');
await once(process.stdin, 'data');

const held = new Uint8Array(wanted.pageCount);
let left = wanted.pageCount;
let isAllHere: () => void;
const allHere = new Promise<void>((resolve) => {
  isAllHere = resolve;
});

function keep(page: number, bytes: Buffer, offset: number): void {
  if (held[page] === 1) return;
  held[page] = 1;
  fs.writeSync(descriptor, bytes, offset, PAGE_BYTES, page * PAGE_BYTES);
  left--;
  if (left === 0) isAllHere();
}

const sink: OriginSink = {
  onPage: (_, page, bytes, offset) => keep(page, bytes, offset),
  onZeroPage: (_, page) => keep(page, ZEROS, 0),
  onLost: (_, page, reason) => {
    throw new Error(`page ${page} is lost: ${reason}`);
  },
  isHeld: (_, page) => held[page] === 1,
};
const origin = { ...wanted.origin, key: Buffer.from(wanted.origin.key, 'base64') };
const client = await network.connect(origin, { sink, lostAfterMs: LOST_AFTER_MS });
const before = process.cpuUsage();
client.prefetch(0, 0, wanted.pageCount);
await allHere;
const { user, system } = process.cpuUsage(before);
const received: Received = { processorUs: user + system, systemUs: system };
process.stdout.write(JSON.stringify(received), () => process.exit(0));
