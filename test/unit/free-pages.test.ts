// The walk of a guest's free lists, on small guests built here: what it finds, and that lists which loop, lead
// astray or lie never make it throw, never make it run on, and never make it call a page free that is not.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type FreePages, findFreePages } from '../../packages/clone-agent/src/freeze/free-pages.js';
import type { PageSource } from '../../packages/clone-agent/src/freeze/guest-memory.js';
import { AbsentPageError } from '../../packages/clone-agent/src/freeze/layout-error.js';
import { createTransferBuffer } from '../../packages/clone-agent/src/freeze/process-memory.js';
import { times } from '../support/soak.js';

const PAGE = 4096;
const PAGES = 3584; // 14 MiB
const ORDERS = 11;
const TYPES = 4;
const ZONES = 2;
const BUDDY = -129;
const STRUCT = 64;
const FREE_AREA_BYTES = TYPES * 16 + 8;
const ZONE_BYTES = 1024;
const ZONE_AREA = 64;
const NODE_ZONE_COUNT = ZONES * ZONE_BYTES;

// Pages where the guest has its structures; page 1 is the note, the array of struct pages fills 64 pages.
const AT = { note: 1, root: 2, direct: 3, text: 4, textMiddle: 5, map: 6, mapMiddle: 7, mapLow: 8 };
const DATA = 9;
const ROOTS = 10;
const SECTIONS = 11;
const NODE = 12;
const PAGE_ARRAY = 512; // at 2 MiB, as a huge page needs
const FIRST_FREE = 1024;

const DIRECT = 0xffff888000000000n;
const TEXT = 0xffffffff80000000n;
const MAP = 0xffffea0000000000n;
const HUGE = 0x81n;
const direct = (page: number, byte = 0): bigint => DIRECT + BigInt(page * PAGE + byte);

interface Block {
  readonly page: number;
  readonly order: number;
  readonly type?: number;
  readonly zone?: number;
}

class Guest implements PageSource {
  readonly pages = PAGES;
  readonly bytes = Buffer.alloc(PAGES * PAGE);
  reads = 0;
  readonly absent = new Set<number>();

  constructor(blocks: readonly Block[], options: { smallPages?: boolean } = {}) {
    this.#writeTables(options.smallPages === true);
    this.writeNote();
    this.bytes.writeBigUInt64LE(1n, DATA * PAGE); // node_online_map
    this.bytes.writeBigUInt64LE(direct(NODE), DATA * PAGE + 8); // node_data[0]
    this.bytes.writeBigUInt64LE(direct(SECTIONS), ROOTS * PAGE);
    this.bytes.writeBigUInt64LE(MAP | 0b1011n, SECTIONS * PAGE);
    this.bytes.writeUInt32LE(ZONES, NODE * PAGE + NODE_ZONE_COUNT);
    for (let zone = 0; zone < ZONES; zone++) {
      for (let order = 0; order < ORDERS; order++) {
        for (let type = 0; type < TYPES; type++) this.#writeList({ zone, order, type }, blocks);
      }
    }
  }

  readPage: PageSource['readPage'] = (page, target, offset) => {
    this.reads++;
    if (this.absent.has(page)) throw new AbsentPageError(page);
    this.bytes.copy(target.bytes, offset, page * PAGE, (page + 1) * PAGE);
  };

  structAt(page: number): number {
    return PAGE_ARRAY * PAGE + page * STRUCT;
  }

  setNext(page: number, address: bigint): void {
    this.bytes.writeBigUInt64LE(address, this.structAt(page) + 8);
  }

  mark(page: number, order: number): void {
    this.bytes.writeInt32LE(BUDDY, this.structAt(page) + 48);
    this.bytes.writeBigUInt64LE(BigInt(order), this.structAt(page) + 40);
  }

  writeNote(replace: readonly [string, string] = ['', '']): void {
    const note = this.bytes.subarray(AT.note * PAGE, (AT.note + 1) * PAGE).fill(0);
    const text = NOTE.replace(...replace);
    note.writeUInt32LE(11, 0);
    note.writeUInt32LE(text.length, 4);
    note.write(`VMCOREINFO\0\0${text}`, 12, 'latin1');
  }

  find(options: { cachePages?: number; freeBlocksMax?: number; note?: boolean } = {}): FreePages {
    const { cachePages = 512, note = true, ...rest } = options;
    const location = { physicalAddress: AT.note * PAGE, sizeBytes: 2048 };
    const cache = createTransferBuffer(cachePages);
    return findFreePages({ source: this, note: note ? location : undefined, cache, ...rest });
  }

  #entry(table: number, index: number, entry: bigint): void {
    this.bytes.writeBigUInt64LE(entry, table * PAGE + index * 8);
  }

  #writeTables(smallPages: boolean): void {
    const to = (page: number): bigint => BigInt(page * PAGE) | 1n;
    this.#entry(AT.root, 273, to(AT.direct));
    this.#entry(AT.direct, 0, HUGE);
    this.#entry(AT.root, 511, to(AT.text));
    this.#entry(AT.text, 510, to(AT.textMiddle));
    this.#entry(AT.textMiddle, 0, HUGE);
    this.#entry(AT.root, 468, to(AT.map));
    this.#entry(AT.map, 0, to(AT.mapMiddle));
    this.#entry(AT.mapMiddle, 0, smallPages ? to(AT.mapLow) : BigInt(PAGE_ARRAY * PAGE) | HUGE);
    for (let i = 0; i < 512; i++) this.#entry(AT.mapLow, i, to(PAGE_ARRAY + i));
  }

  #writeList(at: { zone: number; order: number; type: number }, blocks: readonly Block[]): void {
    const listed = blocks.filter(
      ({ order, type = 0, zone = 0 }) => order === at.order && type === at.type && zone === at.zone,
    );
    const inNode = at.zone * ZONE_BYTES + ZONE_AREA + at.order * FREE_AREA_BYTES + at.type * 16;
    const head = direct(NODE, inNode);
    const entries = listed.map(({ page }) => MAP + BigInt(page * STRUCT + 8));
    this.bytes.writeBigUInt64LE(entries[0] ?? head, NODE * PAGE + inNode);
    for (const [i, { page, order }] of listed.entries()) {
      this.mark(page, order);
      this.setNext(page, entries[i + 1] ?? head);
    }
  }
}

const NOTE = `OSRELEASE=6.1.0
SYMBOL(init_top_pgt)=${(TEXT + BigInt(AT.root * PAGE)).toString(16)}
NUMBER(phys_base)=0
SYMBOL(mem_section)=${direct(ROOTS).toString(16)}
LENGTH(mem_section)=2048
SIZE(mem_section)=16
OFFSET(mem_section.section_mem_map)=0
NUMBER(SECTION_SIZE_BITS)=27
SIZE(page)=${STRUCT}
OFFSET(page.lru)=8
OFFSET(page.private)=40
OFFSET(page._mapcount)=48
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=${BUDDY}
SYMBOL(node_online_map)=${(TEXT + BigInt(DATA * PAGE)).toString(16)}
SYMBOL(node_data)=${(TEXT + BigInt(DATA * PAGE + 8)).toString(16)}
LENGTH(node_data)=64
OFFSET(pglist_data.node_zones)=0
OFFSET(pglist_data.nr_zones)=${NODE_ZONE_COUNT}
SIZE(zone)=${ZONE_BYTES}
OFFSET(zone.free_area)=${ZONE_AREA}
LENGTH(zone.free_area)=${ORDERS}
SIZE(free_area)=${FREE_AREA_BYTES}
OFFSET(free_area.free_list)=0
LENGTH(free_area.free_list)=${TYPES}
OFFSET(list_head.next)=0
`;

const BLOCKS: Block[] = [
  { page: 2048, order: 10 },
  { page: 3072, order: 9, type: 1 },
  { page: FIRST_FREE, order: 3 },
  { page: FIRST_FREE + 8, order: 0 },
  { page: FIRST_FREE + 64, order: 3 },
  { page: FIRST_FREE + 128, order: 3, type: 2, zone: 1 },
  { page: FIRST_FREE + 10, order: 1, type: 3, zone: 1 },
];

function freeOf(blocks: readonly Block[]): number[] {
  return blocks.flatMap(({ page, order }) =>
    Array.from({ length: 2 ** order }, (_, i) => page + i),
  );
}

function listed(found: FreePages): number[] {
  return [...found.isFree.keys()].filter((page) => found.isFree[page] === 1);
}

const ascending = (a: number, b: number): number => a - b;

function expectNothingFree(found: FreePages, reason: RegExp): void {
  expect(found.reason).toMatch(reason);
  expect([found.freePages, found.freeBlocks, found.isComplete]).toEqual([0, 0, false]);
  expect(found.isFree.includes(1)).toBe(false);
}

describe('free pages', () => {
  it('are all blocks of all zones, orders and types, and no others', () => {
    const found = new Guest(BLOCKS).find();
    expect(found.reason).toBeUndefined();
    expect(listed(found)).toEqual(freeOf(BLOCKS).sort(ascending));
    expect(found).toMatchObject({
      freePages: freeOf(BLOCKS).length,
      freeBlocks: BLOCKS.length,
      listsLeft: 0,
      isComplete: true,
    });
  });

  it('are found through small pages of the page array as well', () => {
    const found = new Guest(BLOCKS, { smallPages: true }).find();
    expect(listed(found)).toEqual(freeOf(BLOCKS).sort(ascending));
  });

  it('are those that can be found without a page that is on another host', () => {
    const guest = new Guest(BLOCKS);
    const structOf = (page: number) => Math.floor(guest.structAt(page) / PAGE);
    // Of one that heads a list, of one behind another, and the sample of a third.
    for (const page of [structOf(3072), structOf(FIRST_FREE + 64), FIRST_FREE + 128]) {
      guest.absent.add(page);
    }
    const missed = [3072, FIRST_FREE + 64, FIRST_FREE + 128];
    const found = guest.find();
    expect(listed(found)).toEqual(
      freeOf(BLOCKS.filter(({ page }) => !missed.includes(page))).sort(ascending),
    );
    expect(found).toMatchObject({ listsLeft: 3, isComplete: true });
    guest.absent.add(NODE);
    expectNothingFree(guest.find(), /^page 12 is on another host$/);
  });

  it('are none in a guest without free blocks', () => {
    expect(new Guest([]).find()).toMatchObject({ freePages: 0, isComplete: true });
  });

  it('leave out a zone without memory, whose list heads are zero', () => {
    const guest = new Guest(BLOCKS.filter(({ zone }) => zone !== 1));
    guest.bytes.fill(0, NODE * PAGE + ZONE_BYTES, NODE * PAGE + 2 * ZONE_BYTES);
    expect(guest.find().freePages).toBe(freeOf(BLOCKS.filter(({ zone }) => zone !== 1)).length);
  });

  it('are the largest ones when the budget of blocks ends the walk', () => {
    const found = new Guest(BLOCKS).find({ freeBlocksMax: 2 });
    expect(listed(found)).toEqual(freeOf(BLOCKS.slice(0, 2)).sort(ascending));
    expect(found).toMatchObject({ isComplete: false, freeBlocks: 2 });
    expect(found.reason).toBeUndefined();
  });

  it('are fewer when the budget of pages ends the walk', () => {
    const blocks = Array.from({ length: 20 }, (_, i) => ({ page: 2048 + i * 64, order: 0 }));
    const guest = new Guest(blocks);
    const found = guest.find({ cachePages: 20 });
    expect(found.isComplete).toBe(false);
    expect(guest.reads).toBe(20);
    expect(found.freePages).toBeGreaterThan(0);
    expect(found.freePages).toBeLessThan(20);
  });
});

describe('a list in the middle of a change', () => {
  const first = FIRST_FREE;
  const second = FIRST_FREE + 64;

  it('ends at a block that is no longer marked; what was before it is free', () => {
    const guest = new Guest(BLOCKS);
    guest.bytes.writeInt32LE(-1, guest.structAt(second) + 48);
    const found = guest.find();
    expect(found.reason).toBeUndefined();
    expect(found.listsLeft).toBe(1);
    const left = BLOCKS.filter(({ page }) => page !== second);
    expect(listed(found)).toEqual(freeOf(left).sort(ascending));
  });

  it('ends at a block of another order', () => {
    const guest = new Guest(BLOCKS);
    guest.mark(first, 4);
    const found = guest.find();
    expect(found.listsLeft).toBe(1);
    const left = BLOCKS.filter(({ page }) => page !== first && page !== second);
    expect(listed(found)).toEqual(freeOf(left).sort(ascending));
  });

  it('takes no block whose mark differs in one of its 32 bits', () => {
    const guest = new Guest(BLOCKS);
    guest.bytes.writeInt32LE(BUDDY ^ 0x01000000, guest.structAt(2048) + 48);
    expect(guest.find().isFree[2048]).toBe(0);
  });
});

describe('nothing is free', () => {
  it('without a note, and says so', () => {
    expectNothingFree(new Guest(BLOCKS).find({ note: false }), /no VMCOREINFO/);
  });

  it('when a list loops', () => {
    const guest = new Guest(BLOCKS);
    guest.setNext(FIRST_FREE + 64, MAP + BigInt(FIRST_FREE * STRUCT + 8));
    expectNothingFree(guest.find(), /free twice/);
  });

  it('when a block follows itself', () => {
    const guest = new Guest(BLOCKS);
    guest.setNext(2048, MAP + BigInt(2048 * STRUCT + 8));
    expectNothingFree(guest.find(), /free twice/);
  });

  it('when a small block lies in a large one', () => {
    expectNothingFree(new Guest([...BLOCKS, { page: 2050, order: 1 }]).find(), /free twice/);
  });

  it.each([
    ['nowhere', 0n],
    ['outside of the page array', MAP - 56n],
    ['to a page beyond the RAM', MAP + BigInt(PAGES * STRUCT + 8)],
    ['between two struct pages', MAP + 24n],
    ['to the poison of a deleted entry', 0xdead000000000100n],
    ['to a list head of another list', direct(NODE, ZONE_AREA)],
  ])('when a list leads %s', (_, address) => {
    const guest = new Guest(BLOCKS);
    guest.setNext(FIRST_FREE, address);
    expectNothingFree(guest.find(), /out of the page array/);
  });

  it('when a block is not aligned', () => {
    expectNothingFree(new Guest([{ page: 2049, order: 1 }]).find(), /aligned/);
  });

  it('when a block sticks out of the RAM', () => {
    expectNothingFree(new Guest([{ page: 3072, order: 10 }]).find(), /outside of the RAM/);
  });

  it('when the guest poisons free pages', () => {
    const guest = new Guest(BLOCKS);
    guest.bytes.fill(0xaa, 2048 * PAGE, 3072 * PAGE);
    expectNothingFree(guest.find(), /poisons/);
  });

  it('but stale bytes in them are no poison', () => {
    const guest = new Guest(BLOCKS);
    guest.bytes.fill(0xcc, 2048 * PAGE, 3072 * PAGE);
    guest.bytes.fill(0xaa, FIRST_FREE * PAGE, FIRST_FREE * PAGE + 4000);
    expect(guest.find().reason).toBeUndefined();
  });

  it('when sections do not share one page array', () => {
    const guest = new Guest(BLOCKS);
    guest.writeNote(['NUMBER(SECTION_SIZE_BITS)=27', 'NUMBER(SECTION_SIZE_BITS)=22']);
    guest.bytes.writeBigUInt64LE((MAP + 0x100000n) | 0b11n, SECTIONS * PAGE + 16);
    expectNothingFree(guest.find(), /several parts/);
  });

  it('when no section is present', () => {
    const guest = new Guest(BLOCKS);
    guest.bytes.writeBigUInt64LE(0n, SECTIONS * PAGE);
    expectNothingFree(guest.find(), /no memory section/);
  });

  it('when a node has absurdly many zones', () => {
    const guest = new Guest(BLOCKS);
    guest.bytes.writeUInt32LE(2 ** 31, NODE * PAGE + NODE_ZONE_COUNT);
    expectNothingFree(guest.find(), /zones/);
  });

  it('when offsets lead astray', () => {
    for (const line of ['OFFSET(pglist_data.node_zones)=0', 'NUMBER(phys_base)=0']) {
      const guest = new Guest(BLOCKS);
      guest.writeNote([line, `${line.slice(0, -1)}999424`]);
      const found = guest.find();
      expect([found.freePages, found.isFree.includes(1)]).toEqual([0, false]);
    }
  });
});

it('whatever the guest has there: it ends within its budget, and only marked blocks are free', () => {
  // Words of the structures are overwritten: by anything, or by what points to somewhere in the RAM.
  const places = [
    AT.root,
    AT.map,
    AT.mapMiddle,
    DATA,
    ROOTS,
    SECTIONS,
    NODE,
    NODE,
    PAGE_ARRAY + 16,
  ];
  const value = fc.oneof(
    fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    fc.nat(PAGES - 1).map((page) => MAP + BigInt(page * STRUCT + 8)),
    fc.nat(PAGES - 1).map((page) => direct(page)),
    fc.nat(PAGES - 1).map((page) => BigInt(page * PAGE) | 1n),
  );
  const edit = fc.tuple(fc.constantFrom(...places), fc.nat(511), value);
  fc.assert(
    fc.property(fc.array(edit, { minLength: 1, maxLength: 30 }), (edits) => {
      const guest = new Guest(BLOCKS);
      for (const [page, word, bits] of edits) {
        guest.bytes.writeBigUInt64LE(bits, page * PAGE + word * 8);
      }
      const found = guest.find({ cachePages: 100, freeBlocksMax: 50 });
      expect(guest.reads).toBeLessThanOrEqual(100);
      expect(found.freeBlocks).toBeLessThanOrEqual(50);
      expect(listed(found).length).toBe(found.freePages);
      if (found.reason !== undefined) expect(found.freePages).toBe(0);
    }),
    { numRuns: times(300, 300_000) },
  );
});
