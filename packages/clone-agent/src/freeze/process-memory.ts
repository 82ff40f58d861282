// Reads the RAM of a running or stopped QEMU from outside: where it is mapped, which of its pages the
// process has for its own (written, so no longer the file's), which of those it wrote lately, and their bytes. It
// never writes there and knows nothing of guests. Called by the freeze; Linux only, for the owner of the process or
// root.

import fs from 'node:fs';
import { SnowforkError } from '@snowfork/sdk/api';
import koffi from 'koffi';

export const PAGE_BYTES = 4096;

/** Most pieces that one `readPages` gathers: IOV_MAX of the kernel. */
export const GATHER_PAGES_MAX = 1024;

/** Runs of pages, in order and not touching: run i is pages starts[i] … starts[i] + counts[i] − 1. */
export interface PageRuns {
  readonly starts: Int32Array;
  readonly counts: Int32Array;
  /** Runs in use of the arrays, which are larger. */
  readonly length: number;
  /** Sum of the counts. */
  readonly pages: number;
}

/** Where QEMU has the RAM: `pages` pages from `startAddress` on, without a gap. */
export interface RamMapping {
  readonly startAddress: number;
  readonly pages: number;
}

/** Memory that the kernel may write into; its address is asked for once, as that is slow. */
export interface TransferBuffer {
  readonly bytes: Buffer;
  /** The same memory. */
  readonly words: Int32Array;
  readonly address: number;
}

export function createTransferBuffer(pages: number): TransferBuffer {
  const bytes = Buffer.allocUnsafeSlow(pages * PAGE_BYTES);
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  return { bytes, words, address: Number(koffi.address(bytes)) };
}

export class ProcessMemory {
  readonly pid: number;
  readonly mapping: RamMapping;
  readonly #pagemap: number;
  readonly #mem: number;
  #canScan: boolean;
  #canReadVectors: boolean;

  /** @throws SnowforkError SF_VM_GONE when there is no such process, SF_QEMU_FAILED without the mapping. */
  constructor(options: {
    pid: number;
    path: string;
    /** False: as on a kernel that lacks PAGEMAP_SCAN and process_vm_readv. */
    newCalls?: boolean;
  }) {
    this.pid = options.pid;
    this.#canScan = options.newCalls ?? true;
    this.#canReadVectors = this.#canScan;
    let maps: string;
    try {
      maps = fs.readFileSync(`/proc/${options.pid}/maps`, 'utf8');
      this.mapping = findMapping(maps, options.path);
      this.#pagemap = fs.openSync(`/proc/${options.pid}/pagemap`, 'r');
    } catch (error) {
      throw this.#failure('opening the memory of QEMU', error);
    }
    try {
      this.#mem = fs.openSync(`/proc/${options.pid}/mem`, 'r');
    } catch (error) {
      fs.closeSync(this.#pagemap);
      throw this.#failure('opening the memory of QEMU', error);
    }
  }

  close(): void {
    fs.closeSync(this.#pagemap);
    fs.closeSync(this.#mem);
  }

  /**
   * The pages that are the process' own: present or swapped out, and not of the file. A page that was
   * only read is the file's; one that was ever written is not, even when it is all zero.
   */
  privatePages(): PageRuns {
    return this.#find(PRIVATE, PAGEMAP_FILE);
  }

  /**
   * The pages that the process has in its page table, or swapped out: what it touched, its own and the file's, and
   * those of the file that the kernel mapped beside them.
   */
  mappedPages(): PageRuns {
    return this.#find(MAPPED, 0);
  }

  /**
   * Of the private pages those written since they were protected last. They are protected from now on, each in the
   * moment in which it is looked at, so that no write is lost between. Undefined when the kernel does not
   * track what is written there (`write-tracker.ts`).
   *
   * @throws SnowforkError SF_VM_GONE, SF_QEMU_FAILED; it is not known then which pages are protected.
   */
  takeWrittenPages(): PageRuns | undefined {
    const found = new RunList();
    // To tell private pages from the file's the kernel has to look at each page, which takes eight times as long as
    // to look at its entry. So it does for those only that lie near what is not protected; the file's never are.
    const spans = new RunList(SPAN_GAP_PAGES);
    return this.#tracked(() => {
      if (this.#scan(WRITTEN, spans) !== 'done') return undefined;
      for (let span = 0; span < spans.length; span++) {
        const within = { first: spans.starts[span]!, count: spans.counts[span]! };
        if (this.#scan(WRITTEN_PRIVATE, found, within) !== 'done') return undefined;
      }
      return found;
    });
  }

  /**
   * Pages that are neither in memory nor written since they were protected: swapped out, or dropped, which looks the
   * same. Undefined as `takeWrittenPages`.
   */
  absentPages(): PageRuns | undefined {
    const found = new RunList();
    return this.#tracked(() => (this.#scan(ABSENT, found) === 'done' ? found : undefined));
  }

  /** Whether the kernel tracks writes to the first page. */
  tracksWrites(): 'yes' | 'not yet' | 'never' {
    const result = this.#tracked(() => this.#scan(WRITTEN, new RunList(), { first: 0, count: 1 }));
    return result === 'done' ? 'yes' : result === 'not tracked' ? 'not yet' : 'never';
  }

  /** @param notFlags of an entry of the page map, where the query can't be asked */
  #find(query: PageQuery, notFlags: number): PageRuns {
    const found = new RunList();
    try {
      if (this.#canScan && this.#scan(query, found) === 'done') {
        this.#assertThere();
      } else {
        this.#canScan = false;
        this.#readPagemap(found, notFlags);
      }
    } catch (error) {
      throw this.#failure('reading the page map of QEMU', error);
    }
    return found;
  }

  #tracked<T>(scan: () => T): T {
    try {
      const result = scan();
      this.#assertThere();
      return result;
    } catch (error) {
      throw this.#failure('reading the page map of QEMU', error);
    }
  }

  /** Fills `target` from its byte `offset` on with `count` pages of the RAM from `page` on. */
  readRange(page: number, count: number, target: TransferBuffer, offset: number): void {
    single[0] = page;
    this.#gather(single, 1, count, target, offset);
  }

  /** Puts the `length` first pages of the ascending list `pages` into `target`, without gaps. */
  readPages(pages: Int32Array, length: number, target: TransferBuffer): void {
    this.#gather(pages, length, 1, target, 0);
  }

  /** Each entry of the list stands for `each` pages (more than one only in a list of one entry). */
  #gather(
    list: Int32Array,
    length: number,
    each: number,
    target: TransferBuffer,
    offset: number,
  ): void {
    const bytes = length * each * PAGE_BYTES;
    const pieces = remotePieces(list, length, each, this.mapping);
    if (this.#canReadVectors) {
      setVector(localVector, 0, target.address + offset, bytes);
      const read = processVmReadv(this.pid, localVector, 1, remoteVector, pieces, 0);
      if (read === bytes) return;
      const errno = read < 0 ? koffi.errno() : ERRNO.EFAULT;
      if (errno !== ERRNO.EPERM && errno !== ERRNO.ENOSYS) {
        throw this.#failure('reading the RAM of QEMU', errnoError(errno));
      }
      this.#canReadVectors = false;
    }
    let done = offset;
    try {
      for (let piece = 0; piece < pieces; piece++) {
        const length = remoteVector[piece * VECTOR_WORDS + 2]!;
        const address =
          remoteVector[piece * VECTOR_WORDS]! + remoteVector[piece * VECTOR_WORDS + 1]! * WORD;
        readFully(this.#mem, target.bytes, done, length, address);
        done += length;
      }
    } catch (error) {
      throw this.#failure('reading the RAM of QEMU', error);
    }
  }

  /** PAGEMAP_SCAN (Linux 6.7): the kernel skips what is not mapped. */
  #scan(query: PageQuery, found: RunList, within?: { first: number; count: number }): ScanResult {
    const { startAddress, pages } = this.mapping;
    const { first, count } = within ?? { first: 0, count: pages };
    const endAddress = startAddress + (first + count) * PAGE_BYTES;
    const fromAddress = startAddress + first * PAGE_BYTES;
    for (let from = fromAddress; from < endAddress; ) {
      setScanRequest(query, from, endAddress);
      const regions = ioctl(this.#pagemap, PAGEMAP_SCAN, scanRequest);
      if (regions < 0) {
        const errno = koffi.errno();
        if (errno === ERRNO.EPERM) return 'not tracked';
        if (from === fromAddress && (errno === ERRNO.ENOTTY || errno === ERRNO.EINVAL)) {
          return 'no such call';
        }
        throw errnoError(errno);
      }
      for (let region = 0; region < regions; region++) {
        const start = (Number(scanRegions[region * 3]) - startAddress) / PAGE_BYTES;
        const end = (Number(scanRegions[region * 3 + 1]) - startAddress) / PAGE_BYTES;
        found.add(start, end - start);
      }
      const walked = Number(scanRequest[SCAN.walkEnd]);
      if (walked <= from) throw errnoError(ERRNO.EFAULT);
      from = walked;
    }
    return 'done';
  }

  /**
   * The scan of a process that has ended finds nothing, as if it had written nothing; its page map, unlike that, has an
   * end at once.
   */
  #assertThere(): void {
    const firstEntry = (this.mapping.startAddress / PAGE_BYTES) * PAGEMAP_ENTRY_BYTES;
    readFully(this.#pagemap, oneEntry, 0, PAGEMAP_ENTRY_BYTES, firstEntry);
  }

  /** What every kernel has: 8 bytes for each page, mapped or not. */
  #readPagemap(found: RunList, notFlags: number): void {
    const { startAddress, pages } = this.mapping;
    const block = Buffer.allocUnsafe(Math.min(pages, PAGEMAP_BLOCK_PAGES) * PAGEMAP_ENTRY_BYTES);
    for (let page = 0; page < pages; page += PAGEMAP_BLOCK_PAGES) {
      const count = Math.min(pages - page, PAGEMAP_BLOCK_PAGES);
      const at = (startAddress / PAGE_BYTES + page) * PAGEMAP_ENTRY_BYTES;
      readFully(this.#pagemap, block, 0, count * PAGEMAP_ENTRY_BYTES, at);
      for (let i = 0; i < count; i++) {
        const flags = block[i * PAGEMAP_ENTRY_BYTES + 7]!;
        const isThere = (flags & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)) !== 0;
        if (isThere && (flags & notFlags) === 0) found.add(page + i, 1);
      }
    }
  }

  #failure(doing: string, cause: unknown): SnowforkError {
    if (cause instanceof SnowforkError) return cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === 'ESRCH' || isGone(this.pid)) {
      return new SnowforkError('SF_VM_GONE', `QEMU (process ${this.pid}) has ended`, { cause });
    }
    if (code === 'EACCES' || code === 'EPERM') {
      const message = `${doing} (process ${this.pid}) is not permitted: run as its owner or as root`;
      return new SnowforkError('SF_PERMISSION', message, { cause });
    }
    const message = `${doing} (process ${this.pid}) failed: ${reason}`;
    return new SnowforkError('SF_QEMU_FAILED', message, { cause });
  }
}

/** `ProcessMemory.mappedPages` of a process that nothing else is asked of. @throws as that */
export function mappedPagesOf(of: { pid: number; path: string }): PageRuns {
  const memory = new ProcessMemory(of);
  try {
    return memory.mappedPages();
  } finally {
    memory.close();
  }
}

/**
 * The mapping of `path` in the text of /proc/PID/maps. The kernel splits a mapping into several lines
 * where parts of it were advised or protected differently: neighbours in memory and in the file are one.
 */
export function findMapping(maps: string, path: string): RamMapping {
  let startAddress = 0;
  let endAddress = 0;
  let fileOffset = 0;
  for (const line of maps.split('\n')) {
    const match = /^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+ +(.*)$/.exec(line);
    if (match === null || !isPath(match[4]!, path)) continue;
    const start = Number.parseInt(match[1]!, 16);
    const end = Number.parseInt(match[2]!, 16);
    const offset = Number.parseInt(match[3]!, 16);
    if (endAddress === 0 && offset === 0) {
      startAddress = start;
      endAddress = end;
    } else if (start === endAddress && offset === fileOffset) {
      endAddress = end;
    } else {
      throw new SnowforkError('SF_QEMU_FAILED', `QEMU has mapped ${path} in more than one place`);
    }
    fileOffset = offset + (end - start);
  }
  if (endAddress === 0) {
    throw new SnowforkError('SF_QEMU_FAILED', `QEMU has not mapped ${path}`);
  }
  return { startAddress, pages: (endAddress - startAddress) / PAGE_BYTES };
}

/** The kernel writes a line feed as \012 and marks a file that was unlinked. */
function isPath(shown: string, path: string): boolean {
  const escaped = path.replaceAll('\n', '\\012');
  return shown === escaped || shown === `${escaped} (deleted)`;
}

const WORD = 2 ** 32;
const VECTOR_WORDS = 4; // struct iovec: u64 address, u64 length; here as pairs of 32 bits
const PAGEMAP_BLOCK_PAGES = 131_072; // 1 MiB of page map
const PAGEMAP_ENTRY_BYTES = 8;
const PAGEMAP_PRESENT = 0x80; // bit 63
const PAGEMAP_SWAPPED = 0x40; // bit 62
const PAGEMAP_FILE = 0x20; // bit 61
const oneEntry = Buffer.alloc(PAGEMAP_ENTRY_BYTES);

const PAGEMAP_SCAN = 0xc0606610; // _IOWR('f', 16, struct pm_scan_arg)
/** Index of each u64 of struct pm_scan_arg (linux/fs.h). */
const SCAN = {
  size: 0,
  flags: 1,
  start: 2,
  end: 3,
  walkEnd: 4,
  vector: 5,
  vectorLength: 6,
  inverted: 8,
  all: 9,
  any: 10,
} as const;
const SCAN_WORDS = 12;
const SCAN_REGIONS = 8192;
const PROTECT_FLAG = 1n << 0n; // PM_SCAN_WP_MATCHING
const CHECK_FLAG = 1n << 1n; // PM_SCAN_CHECK_WPASYNC
const WRITTEN_BIT = 1n << 1n; // PAGE_IS_WRITTEN
const FILE_BIT = 1n << 2n; // PAGE_IS_FILE
const PRESENT_BIT = 1n << 3n; // PAGE_IS_PRESENT
const SWAPPED_BIT = 1n << 4n; // PAGE_IS_SWAPPED

/** Which pages: those of `all` the categories and of `any` of them, where those `inverted` mean their opposite. */
interface PageQuery {
  readonly flags: bigint;
  readonly inverted: bigint;
  readonly all: bigint;
  readonly any: bigint;
}
/** Not tracked: asynchronous write protection was wanted, and not all of the range has it. */
type ScanResult = 'done' | 'not tracked' | 'no such call';

const IS_THERE = PRESENT_BIT | SWAPPED_BIT;
const PRIVATE: PageQuery = { flags: 0n, inverted: FILE_BIT, all: FILE_BIT, any: IS_THERE };
const MAPPED: PageQuery = { flags: 0n, inverted: 0n, all: 0n, any: IS_THERE };
const WRITTEN: PageQuery = { flags: CHECK_FLAG, inverted: 0n, all: WRITTEN_BIT, any: IS_THERE };
const WRITTEN_PRIVATE: PageQuery = {
  flags: CHECK_FLAG | PROTECT_FLAG,
  inverted: FILE_BIT,
  all: FILE_BIT | WRITTEN_BIT,
  any: IS_THERE,
};
const ABSENT: PageQuery = {
  flags: CHECK_FLAG,
  inverted: WRITTEN_BIT,
  all: WRITTEN_BIT,
  any: SWAPPED_BIT,
};
/** Pages that are not worth a call of their own. */
const SPAN_GAP_PAGES = 256;
const ERRNO = koffi.os.errno as Record<
  'EPERM' | 'ESRCH' | 'EFAULT' | 'EINVAL' | 'ENOTTY' | 'ENOSYS',
  number
>;

const libc = koffi.load('libc.so.6');
const processVmReadv: (
  pid: number,
  local: Uint32Array,
  localLength: number,
  remote: Uint32Array,
  remoteLength: number,
  flags: number,
) => number = libc.func(
  'long process_vm_readv(int, void *local, ulong, void *remote, ulong, ulong flags)',
);
const ioctl: (fd: number, request: number, argument: BigUint64Array) => number = libc.func(
  'int ioctl(int, ulong, void *)',
);

// Scratch of calls that never wait, so that two freezes at a time can share it.
const single = new Int32Array(1);
const localVector = new Uint32Array(VECTOR_WORDS);
const remoteVector = new Uint32Array(VECTOR_WORDS * GATHER_PAGES_MAX);
const scanRequest = new BigUint64Array(SCAN_WORDS);
const scanRegions = new BigUint64Array(3 * SCAN_REGIONS); // struct page_region: start, end, categories
const scanRegionsAddress = koffi.address(scanRegions);

function setScanRequest({ flags, inverted, all, any }: PageQuery, from: number, to: number): void {
  scanRequest.fill(0n);
  scanRequest[SCAN.size] = BigInt(scanRequest.byteLength);
  scanRequest[SCAN.flags] = flags;
  scanRequest[SCAN.start] = BigInt(from);
  scanRequest[SCAN.end] = BigInt(to);
  scanRequest[SCAN.vector] = scanRegionsAddress;
  scanRequest[SCAN.vectorLength] = BigInt(SCAN_REGIONS);
  scanRequest[SCAN.inverted] = inverted;
  scanRequest[SCAN.all] = all;
  scanRequest[SCAN.any] = any;
}

/** Fills the remote vector, neighbours joined; returns the number of pieces. */
function remotePieces(list: Int32Array, length: number, each: number, mapping: RamMapping): number {
  let pieces = 0;
  for (let i = 0; i < length; ) {
    const first = list[i]!;
    let count = each;
    for (i++; i < length && list[i] === first + count; i++) count++;
    if (pieces === GATHER_PAGES_MAX || first < 0 || first + count > mapping.pages) {
      throw new RangeError(`pages ${first} to ${first + count} of a RAM of ${mapping.pages}`);
    }
    const address = mapping.startAddress + first * PAGE_BYTES;
    setVector(remoteVector, pieces, address, count * PAGE_BYTES);
    pieces++;
  }
  return pieces;
}

function setVector(vector: Uint32Array, index: number, address: number, length: number): void {
  const at = index * VECTOR_WORDS;
  vector[at] = address >>> 0;
  vector[at + 1] = Math.floor(address / WORD);
  vector[at + 2] = length;
  vector[at + 3] = 0;
}

function readFully(
  fd: number,
  target: Buffer,
  offset: number,
  length: number,
  position: number,
): void {
  for (let done = 0; done < length; ) {
    const read = fs.readSync(fd, target, offset + done, length - done, position + done);
    if (read === 0) throw errnoError(ERRNO.ESRCH); // the kernel's word for a process without memory
    done += read;
  }
}

function errnoError(errno: number): Error {
  const code = Object.entries(koffi.os.errno).find(([, value]) => value === errno)?.[0];
  return Object.assign(new Error(code ?? `errno ${errno}`), { code, errno });
}

function isGone(pid: number): boolean {
  try {
    const status = fs.readFileSync(`/proc/${pid}/stat`, 'latin1');
    const state = status.slice(status.lastIndexOf(')') + 2, status.lastIndexOf(')') + 3);
    return state === 'Z' || state === 'X';
  } catch {
    return true;
  }
}

/** The pages of one or the other. */
export function joinRuns(one: PageRuns, other: PageRuns): PageRuns {
  const joined = new RunList();
  for (let i = 0, j = 0; i < one.length || j < other.length; ) {
    const isOnes = j === other.length || (i < one.length && one.starts[i]! <= other.starts[j]!);
    if (isOnes) joined.add(one.starts[i]!, one.counts[i++]!);
    else joined.add(other.starts[j]!, other.counts[j++]!);
  }
  return joined;
}

/** Grows by doubling; a run that begins at most `gapPages` behind the end of the one before is joined to it. */
class RunList implements PageRuns {
  starts = new Int32Array(1024);
  counts = new Int32Array(1024);
  length = 0;
  pages = 0;
  readonly #gapPages: number;

  constructor(gapPages = 0) {
    this.#gapPages = gapPages;
  }

  /** Runs come in the order of their starts. */
  add(start: number, count: number): void {
    const last = this.length - 1;
    const lastEnd = last < 0 ? Number.NEGATIVE_INFINITY : this.starts[last]! + this.counts[last]!;
    if (start <= lastEnd + this.#gapPages) {
      const more = Math.max(0, start + count - lastEnd);
      this.counts[last]! += more;
      this.pages += more;
      return;
    }
    if (this.length === this.starts.length) {
      this.starts = doubled(this.starts);
      this.counts = doubled(this.counts);
    }
    this.starts[this.length] = start;
    this.counts[this.length] = count;
    this.length++;
    this.pages += count;
  }
}

function doubled(from: Int32Array): Int32Array<ArrayBuffer> {
  const larger = new Int32Array(from.length * 2);
  larger.set(from);
  return larger;
}
