// A run folder with one snapshot, as the agent writes it for the pager: RAM of one layer, which is here
// or on another host.

import { randomFillSync } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { encodePageMap, HeldPages, PAGE_BYTES } from '@snowfork/memserver';
import type { Served } from './memory-server.js';

/** 1 GiB: what is touched is so far apart that nothing is pushed or fetched beside it. */
const LAYER_PAGES = 262_144;
const LAYER_BYTES = LAYER_PAGES * PAGE_BYTES;
const ORIGIN_TIMEOUT_MS = 30_000;

/** Random pages. @returns where */
export function writeLayer(folder: string): string {
  const file = path.join(folder, 'layer');
  fs.writeFileSync(file, randomFillSync(Buffer.alloc(LAYER_BYTES)));
  return file;
}

/** `layer`: of this host; `origin`: all pages are there, and none here, at `address`. */
export function writeSnapshot(
  runFolder: string,
  of: { readonly layer: string } | { readonly origin: Served; readonly address: string },
): void {
  const snapshot = path.join(runFolder, 'snapshots', 's1');
  const layer = path.join(runFolder, 'layers', 'l1');
  fs.mkdirSync(snapshot, { recursive: true });
  fs.mkdirSync(path.dirname(layer));
  const entries = new Uint16Array(LAYER_PAGES).fill(1);
  fs.writeFileSync(path.join(snapshot, 'ram.map'), encodePageMap({ entries, layerCount: 1 }));
  const object = { name: 'ram', sizeBytes: LAYER_BYTES, map: 'ram.map', layers: ['l1'] };
  const described = { version: 1, number: 1, id: 's1', objects: [object] };
  const file = path.join(snapshot, 'snapshot.json');
  if ('layer' in of) {
    fs.linkSync(of.layer, layer);
    fs.writeFileSync(file, JSON.stringify(described));
    return;
  }
  fs.writeFileSync(layer, '');
  fs.truncateSync(layer, LAYER_BYTES);
  HeldPages.create(`${layer}.held`, LAYER_PAGES);
  const origin = { host: 'alpha', snapshot: 's1', ...of.origin, layers: ['l1'] };
  fs.writeFileSync(file, JSON.stringify({ ...described, origins: [origin] }));
  const bounds = { originTimeoutMs: ORIGIN_TIMEOUT_MS, replicaBytesMax: LAYER_BYTES };
  const network = { address: of.address, ...bounds };
  fs.writeFileSync(path.join(runFolder, 'network.json'), JSON.stringify(network));
}
