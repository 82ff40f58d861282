// Touches pages of a file that the pager serves, as a process, since whoever serves a mount must
// never touch it: `node faults-main.js FILE COUNT`. Prints how many microseconds each page took, as
// JSON; only of pages that were not in the page cache before.

import fs from 'node:fs';
import { PAGE_BYTES } from '@snowfork/memserver';
import koffi from 'koffi';

const PROT_READ = 1;
const MAP_PRIVATE = 2;
/** The kernel reads nothing ahead. */
const MADV_RANDOM = 1;
/** The first ones find code that has not been compiled. */
const WARM_UP = 1000;

const [file, count] = [process.argv[2]!, Number(process.argv[3])];
const libc = koffi.load('libc.so.6');
const mmap = libc.func('void *mmap(void *, size_t, int, int, int, long)');
const madvise = libc.func('int madvise(void *, size_t, int)');
const mincore = libc.func('int mincore(void *, size_t, _Out_ uint8_t *)');

const descriptor = fs.openSync(file, 'r');
const { size } = fs.fstatSync(descriptor);
const mapped = mmap(null, size, PROT_READ, MAP_PRIVATE, descriptor, 0) as bigint;
madvise(mapped, size, MADV_RANDOM);
const bytes = Buffer.from(koffi.view(mapped, size));
const inCache = Buffer.alloc(1);

const latencyUs: number[] = [];
let warmUp = 0;
let sum = 0;
for (const page of shuffled(size / PAGE_BYTES)) {
  mincore(mapped + BigInt(page * PAGE_BYTES), PAGE_BYTES, inCache);
  if ((inCache[0]! & 1) === 1) continue;
  const startedAt = performance.now();
  sum += bytes[page * PAGE_BYTES]!;
  if (++warmUp > WARM_UP) latencyUs.push((performance.now() - startedAt) * 1000);
  if (latencyUs.length === count) break;
}
if (sum === 0) throw new Error('the pages are empty');
process.stdout.write(JSON.stringify(latencyUs));

function shuffled(pages: number): number[] {
  const order = Array.from({ length: pages }, (_, page) => page);
  for (let index = pages - 1; index > 0; index--) {
    const other = Math.floor(Math.random() * (index + 1));
    [order[index], order[other]] = [order[other]!, order[index]!];
  }
  return order;
}
