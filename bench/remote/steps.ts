// What single steps take that a page goes through on its way to another host, in this process and with
// everything in the processor's caches: the part of `work` that is computing. The rest of it are system
// calls and the protocol's own bookkeeping.

import { randomFillSync } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {
  DATAGRAM,
  LayerFiles,
  Opener,
  PACKED_BYTES_MAX,
  PAGE_BYTES,
  packPage,
  Sealer,
  snapshotKey,
  unpackPage,
} from '@snowfork/memserver';
import { Bench } from 'tinybench';

/** A timer's own cost is shared by so many. */
const AT_ONCE = 200;
const TIME_MS = 300;
const PIECES = 3;
const BODY_BYTES = 1430;
/** Of each eight bytes so many are random: packs to about half. */
const RANDOM_BYTES_OF_8 = 3;

export interface Step {
  readonly name: string;
  /** Microseconds. */
  readonly p50Us: number;
  readonly p99Us: number;
}

export async function measureSteps(): Promise<Step[]> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-bench-'));
  try {
    const bench = new Bench({ time: TIME_MS });
    for (const [name, step] of Object.entries(stepsIn(folder))) {
      bench.add(name, () => {
        for (let count = 0; count < AT_ONCE; count++) step();
      });
    }
    await bench.run();
    return bench.tasks.map(({ name, result }) => {
      if (!('latency' in result)) throw new Error(`${name} was not measured: ${result.state}`);
      const usOf = (ms: number) => (ms * 1000) / AT_ONCE;
      return { name, p50Us: usOf(result.latency.p50), p99Us: usOf(result.latency.p99) };
    });
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

function stepsIn(folder: string): Record<string, () => void> {
  const noise = randomFillSync(Buffer.alloc(PAGE_BYTES));
  const packable = Buffer.from(noise);
  for (let at = 0; at < PAGE_BYTES; at++) if (at % 8 >= RANDOM_BYTES_OF_8) packable[at] = 0;
  const file = path.join(folder, 'layer');
  fs.writeFileSync(file, noise);
  const layers = new LayerFiles();
  layers.set([{ path: file }]);
  const page = Buffer.alloc(PAGE_BYTES);
  const packed = Buffer.alloc(PACKED_BYTES_MAX);
  const packedBytes = packPage(packable, packed, PACKED_BYTES_MAX);
  const key = snapshotKey(Buffer.alloc(32, 1));
  const sealer = new Sealer(key, 1);
  const body = noise.subarray(0, BODY_BYTES);
  const datagram = Buffer.alloc(PAGE_BYTES);
  const seal = () => sealer.sealInto(datagram, DATAGRAM.piece, body);
  const opener = new Opener({ key, ownId: 2, sendersMax: 1 });
  return {
    'read a page from a layer': () => void layers.readPage(0, 0, page, 0),
    'pack a page that packs': () => void packPage(packable, packed, PACKED_BYTES_MAX),
    'try to pack one that does not': () => void packPage(noise, packed, BODY_BYTES),
    'unpack a page': () => void unpackPage(packed.subarray(0, packedBytes), page),
    [`seal the ${PIECES} pieces of a page`]: () => {
      for (let piece = 0; piece < PIECES; piece++) seal();
    },
    // No datagram is opened twice.
    [`seal and open ${PIECES} pieces`]: () => {
      for (let piece = 0; piece < PIECES; piece++) {
        const length = seal();
        const opened = opener.open(datagram.subarray(0, length));
        if (typeof opened === 'string') throw new Error(`a datagram was dropped: ${opened}`);
      }
    },
  };
}
