// Files in the memory of the process, shared with whoever maps them too: what outlives the process, and
// what its threads share. Keeps no account of what is mapped.

import fs from 'node:fs';
import koffi from 'koffi';

const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MAP_POPULATE = 0x8000;
const MAP_FAILED = 2n ** 64n - 1n;
const libc = koffi.load('libc.so.6');
const mmap = libc.func(
  'void *mmap(void *address, size_t bytes, int protection, int flags, int file, long offset)',
);
const munmap = libc.func('int munmap(void *address, size_t bytes)');

/** Where a file lies in the memory of the process: for its other threads. */
export interface MappedFile {
  readonly address: bigint;
  readonly bytes: number;
}

/**
 * Maps all of a file until `unmapFile`. `isPopulated`: no page of it has to be made later on. What is
 * not allocated in it may be refused later on, by a signal: write files before they are mapped.
 * @throws Error of the system.
 */
export function mapFile(path: string, { isPopulated = false } = {}): MappedFile {
  const file = fs.openSync(path, 'r+');
  try {
    const bytes = fs.fstatSync(file).size;
    const flags = isPopulated ? MAP_SHARED | MAP_POPULATE : MAP_SHARED;
    const address = koffi.address(mmap(null, bytes, PROT_READ_WRITE, flags, file, 0));
    if (address === MAP_FAILED) throw new Error(`${path} can't be mapped`);
    return { address, bytes };
  } finally {
    fs.closeSync(file);
  }
}

/** The file's bytes, in any thread. */
export function mappedBytes({ address, bytes }: MappedFile): ArrayBuffer {
  return koffi.view(address, bytes);
}

/** Nobody uses it any more, in no thread. */
export function unmapFile({ address, bytes }: MappedFile): void {
  munmap(address, bytes);
}
