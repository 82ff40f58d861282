// Reads from a layer without waiting for a disk: preadv2(2) with RWF_NOWAIT, which Node does not
// offer. What is not in the page cache is left to the main thread, so that no fault in a layer that
// lies in memory stands behind a disk. Called by whoever answers READs or pushes pages.

import fs from 'node:fs';
import { type Layer, type LayerRead, WOULD_BLOCK } from '@snowfork/memserver/pages';
import koffi from 'koffi';

const RWF_NOWAIT = 0x8;
const IOVEC = { base: 0, length: 8, bytes: 16 } as const;
const TMPFS_MAGIC = 0x0102_1994;
const { EAGAIN } = koffi.os.errno;

const preadv2 = koffi
  .load('libc.so.6')
  .func('long preadv2(int descriptor, void *vector, int count, long offset, int flags)');

/** Whether reading the file may wait for a disk. */
export function liesOnDisk(path: string): boolean {
  return fs.statfsSync(path).type !== TMPFS_MAGIC;
}

/** A `LayerRead` into `target` and no other buffer, whose address is asked for once. */
export function readWithoutWaiting(target: Buffer): LayerRead {
  const address = BigInt(koffi.address(target));
  const vector = Buffer.alloc(IOVEC.bytes);
  return (layer: Layer, buffer, offset, lengthBytes, position) => {
    if (!layer.onDisk) return fs.readSync(layer.descriptor, buffer, offset, lengthBytes, position);
    vector.writeBigUInt64LE(address + BigInt(offset), IOVEC.base);
    vector.writeBigUInt64LE(BigInt(lengthBytes), IOVEC.length);
    const taken: number = preadv2(layer.descriptor, vector, 1, position, RWF_NOWAIT);
    if (taken >= 0) return taken;
    if (koffi.errno() === EAGAIN) return WOULD_BLOCK;
    // A file system that knows no RWF_NOWAIT, or an error that the plain call reports better.
    return fs.readSync(layer.descriptor, buffer, offset, lengthBytes, position);
  };
}
