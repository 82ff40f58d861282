// Walks of page tables and of the guest's physical memory, on images built here.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  GuestMemory,
  type PageSource,
} from '../../packages/clone-agent/src/freeze/guest-memory.js';
import { GuestLayoutError } from '../../packages/clone-agent/src/freeze/layout-error.js';
import { PageTables } from '../../packages/clone-agent/src/freeze/page-tables.js';
import { createTransferBuffer } from '../../packages/clone-agent/src/freeze/process-memory.js';
import { times } from '../support/soak.js';

const PAGE = 4096;
const PRESENT = 1n;
const HUGE = 0x80n;
const NO_EXECUTE = 1n << 63n;

/** RAM as one buffer; counts what is read of it. */
class Image implements PageSource {
  readonly bytes: Buffer;
  readonly pages: number;
  reads = 0;

  constructor(pages: number) {
    this.pages = pages;
    this.bytes = Buffer.alloc(pages * PAGE);
  }

  readPage: PageSource['readPage'] = (page, target, offset) => {
    this.reads++;
    this.bytes.copy(target.bytes, offset, page * PAGE, (page + 1) * PAGE);
  };

  setEntry(page: number, index: number, entry: bigint): void {
    this.bytes.writeBigUInt64LE(entry, page * PAGE + index * 8);
  }

  tables(levels: 4 | 5 = 4, options: { cachePages?: number; encryptionMask?: bigint } = {}) {
    const cache = createTransferBuffer(options.cachePages ?? 64);
    const memory = new GuestMemory(this, cache);
    const { encryptionMask = 0n } = options;
    return new PageTables(memory, { rootAddress: PAGE, levels, encryptionMask });
  }
}

const entryTo = (page: number, flags = PRESENT): bigint => BigInt(page * PAGE) | flags;

describe('page tables', () => {
  // Indices 273, 1, 2, 3 and byte 5: 0xffff8880_40403005.
  const address = 0xffff888040403005n;

  it('are followed through four levels to a small page', () => {
    const image = new Image(16);
    image.setEntry(1, 273, entryTo(2));
    image.setEntry(2, 1, entryTo(3));
    image.setEntry(3, 2, entryTo(4));
    image.setEntry(4, 3, entryTo(9, PRESENT | NO_EXECUTE));
    const found = image.tables().translate(address);
    expect(found).toEqual({ physicalAddress: 9 * PAGE + 5, lengthBytes: PAGE - 5 });
  });

  it('are followed through five levels', () => {
    const image = new Image(16);
    image.setEntry(1, 511, entryTo(5)); // bits 48 to 56 are all set
    image.setEntry(5, 273, entryTo(2));
    image.setEntry(2, 1, entryTo(3));
    image.setEntry(3, 2, entryTo(4));
    image.setEntry(4, 3, entryTo(9));
    expect(image.tables(5).translate(address).physicalAddress).toBe(9 * PAGE + 5);
  });

  it('end at huge pages of 2 MiB and of 1 GiB', () => {
    const image = new Image(16);
    image.setEntry(1, 273, entryTo(2));
    image.setEntry(2, 1, entryTo(3));
    image.setEntry(3, 2, BigInt(6 * 2 ** 21) | PRESENT | HUGE);
    image.setEntry(2, 0, BigInt(3 * 2 ** 30) | PRESENT | HUGE);
    const inside = 3 * PAGE + 5;
    expect(image.tables().translate(address)).toEqual({
      physicalAddress: 6 * 2 ** 21 + inside,
      lengthBytes: 2 ** 21 - inside,
    });
    expect(image.tables().translate(0xffff888000000007n)).toEqual({
      physicalAddress: 3 * 2 ** 30 + 7,
      lengthBytes: 2 ** 30 - 7,
    });
  });

  it('take the encryption bit off an address', () => {
    const image = new Image(16);
    const mask = 1n << 47n;
    image.setEntry(1, 273, entryTo(2) | mask);
    image.setEntry(2, 1, BigInt(2 ** 30) | PRESENT | HUGE | mask);
    const tables = image.tables(4, { encryptionMask: mask });
    expect(tables.translate(0xffff888040000000n).physicalAddress).toBe(2 ** 30);
  });

  it('read across pages that are not neighbours', () => {
    const image = new Image(16);
    image.setEntry(1, 0, entryTo(2));
    image.setEntry(2, 0, entryTo(3));
    image.setEntry(3, 0, entryTo(4));
    image.setEntry(4, 0, entryTo(12));
    image.setEntry(4, 1, entryTo(7));
    image.bytes.write('left', 12 * PAGE + PAGE - 4);
    image.bytes.write('right', 7 * PAGE);
    expect(
      image
        .tables()
        .read(BigInt(PAGE - 4), 9)
        .toString(),
    ).toBe('leftright');
  });

  it('refuse what is not mapped, and tables outside of the RAM', () => {
    const image = new Image(16);
    expect(() => image.tables().translate(address)).toThrow(GuestLayoutError);
    image.setEntry(1, 273, entryTo(4096));
    expect(() => image.tables().translate(address)).toThrow(/not RAM/);
    image.setEntry(1, 273, 0x000f_ffff_ffff_f001n);
    expect(() => image.tables().translate(address)).toThrow(/not RAM/);
  });

  it('end when a table leads to itself', () => {
    const image = new Image(4);
    for (let index = 0; index < 512; index++) image.setEntry(1, index, entryTo(1));
    expect(image.tables(5).translate(address).physicalAddress).toBe(PAGE + 5);
    expect(image.reads).toBe(1);
  });

  it('read no more pages than the cache has room for', () => {
    const image = new Image(16);
    for (const level of [1, 2, 3]) {
      for (let index = 0; index < 512; index++) image.setEntry(level, index, entryTo(level + 1));
    }
    const tables = image.tables(4, { cachePages: 2 });
    expect(() => tables.translate(address)).toThrow(/budget/);
    expect(image.reads).toBe(2);
  });

  it('end with an address or one kind of error, whatever the bytes', () => {
    const bytes = fc.uint8Array({ minLength: 8 * PAGE, maxLength: 8 * PAGE });
    fc.assert(
      fc.property(bytes, fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (random, virtual) => {
        const image = new Image(8);
        image.bytes.set(random);
        // Else hardly any entry would lead into so small a RAM.
        for (let at = 0; at < image.bytes.length; at += 8) {
          if (random[at]! % 2 === 0) image.setEntry(0, at / 8, entryTo(random[at + 1]! % 9));
        }
        try {
          image.tables(random[0]! % 2 === 0 ? 4 : 5).read(virtual, 100);
        } catch (error) {
          expect(error).toBeInstanceOf(GuestLayoutError);
        }
        expect(image.reads).toBeLessThanOrEqual(8);
      }),
      { numRuns: times(50, 50_000) },
    );
  });
});

describe('physical memory', () => {
  const memoryOf = (bytes: number): GuestMemory => {
    const source: PageSource = { pages: bytes / PAGE, readPage: () => {} };
    return new GuestMemory(source, createTransferBuffer(1));
  };

  it('is the RAM itself when it fits below the PCI hole', () => {
    const memory = memoryOf(0xb0000000 - PAGE);
    expect(memory.ramPage(0)).toBe(0);
    expect(memory.ramPage(0xafffe)).toBe(0xafffe);
    expect(memory.ramPage(0xaffff)).toBe(-1);
    expect(memory.ramPage(0x100000)).toBe(-1);
    expect(memory.physicalPagesEnd).toBe(0xaffff);
  });

  it('goes on at 4 GiB when it does not', () => {
    const memory = memoryOf(0xb0000000);
    expect(memory.ramPage(0x7ffff)).toBe(0x7ffff);
    expect(memory.ramPage(0x80000)).toBe(-1);
    expect(memory.ramPage(0xfffff)).toBe(-1);
    expect(memory.ramPage(0x100000)).toBe(0x80000);
    expect(memory.ramPage(0x100000 + 0x2ffff)).toBe(0xaffff);
    expect(memory.ramPage(0x100000 + 0x30000)).toBe(-1);
    expect(memory.ramPage(-1)).toBe(-1);
    expect(memory.physicalPagesEnd).toBe(0x130000);
  });

  it('reads a page once', () => {
    const image = new Image(4);
    image.bytes.write('abc', 2 * PAGE + 10);
    const memory = new GuestMemory(image, createTransferBuffer(4));
    expect(memory.read(2 * PAGE + 10, 3).toString()).toBe('abc');
    memory.read(2 * PAGE, PAGE);
    expect([image.reads, memory.pagesRead]).toEqual([1, 1]);
  });
});
