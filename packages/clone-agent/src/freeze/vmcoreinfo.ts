// VMCOREINFO: the note in which a Linux guest tells where its kernel's data are and how they are laid out. It owns
// finding the note's address in QEMU's device state and the reading of its text; it reads no other memory. The bytes
// are the guest's, so whatever they are, the outcome is the fields or GuestLayoutError. Called by `free-pages.ts`.
//
//    0          4          8        12              24
//   +----------+----------+--------+---------------+---------------------------------+
//   | name len | text len | type 0 | "VMCOREINFO"0 | KEY(name)=value, one a line …   |
//   +----------+----------+--------+---------------+---------------------------------+
//                                   padded to 4 bytes

import { GuestLayoutError } from './layout-error.js';

/** Where the guest has its note. */
export interface NoteLocation {
  readonly physicalAddress: number;
  readonly sizeBytes: number;
}

/** What the walk of the free lists needs; offsets and sizes in bytes, addresses are the kernel's. */
export interface Vmcoreinfo {
  /** Kernel release, for messages. */
  readonly release: string;
  /** Virtual address of the kernel's own page table. */
  readonly pageTable: bigint;
  readonly physicalBase: bigint;
  readonly pageTableLevels: 4 | 5;
  readonly encryptionMask: bigint;
  readonly memSection: bigint;
  readonly memSectionRoots: number;
  readonly memSectionBytes: number;
  readonly memSectionMapOffset: number;
  readonly sectionPagesLog2: number;
  readonly pageStructBytes: number;
  readonly pageLruOffset: number;
  readonly pageMapcountOffset: number;
  readonly pagePrivateOffset: number;
  /** Signed 32 bits: `_mapcount` of the first page of a free block. */
  readonly buddyMapcount: number;
  /** Either the array of pointers to nodes, with the set of those in use, or the only node. */
  readonly nodes:
    | { readonly pointers: bigint; readonly online: bigint; readonly length: number }
    | { readonly only: bigint };
  readonly nodeZonesOffset: number;
  readonly nodeZoneCountOffset: number;
  readonly zoneBytes: number;
  readonly zoneFreeAreaOffset: number;
  readonly orders: number;
  readonly freeAreaBytes: number;
  readonly freeListOffset: number;
  readonly freeListTypes: number;
  readonly listNextOffset: number;
}

const NOTE_NAME = 'VMCOREINFO\0';
const NOTE_HEADER_BYTES = 12;
const NOTE_BYTES_MAX = 16_384;
const NOTE_LINES_MAX = 1024;

/**
 * Reads the section of QEMU's `vmcoreinfo` device out of a device state, `docs/internals/formats.md`.
 * Undefined when the machine has no such device or its guest did not fill it in.
 */
export function findNoteLocation(deviceState: Buffer): NoteLocation | undefined {
  const at = deviceState.indexOf(NOTE_SECTION);
  const fields = at + NOTE_SECTION.length;
  if (at < 0 || deviceState.length < fields + NOTE_SECTION_BYTES) return undefined;
  const isFilled = deviceState.readUInt8(fields) === 1;
  const isElf = deviceState.readUInt16BE(fields + 3) === NOTE_FORMAT_ELF;
  const sizeBytes = deviceState.readUInt32BE(fields + 5);
  const physicalAddress = Number(deviceState.readBigUInt64BE(fields + 9));
  const isSane = Number.isSafeInteger(physicalAddress) && sizeBytes <= NOTE_BYTES_MAX;
  return isFilled && isElf && isSane ? { physicalAddress, sizeBytes } : undefined;
}

/** Name, instance and version of the section; then u8 filled, u16 ×2 formats, u32 size, u64 address. */
const NOTE_SECTION = Buffer.from('\x0avmcoreinfo\0\0\0\0\0\0\0\x01', 'latin1');
const NOTE_SECTION_BYTES = 17;
const NOTE_FORMAT_ELF = 1;

/** @throws GuestLayoutError when the note is not one, lacks a key, or has absurd values. */
export function parseVmcoreinfo(note: Buffer): Vmcoreinfo {
  const keys = readKeys(noteText(note));
  const pageStructBytes = keys.integer('SIZE(page)', 32, 256);
  const pageFieldMax = pageStructBytes - 8;
  const zoneBytes = keys.integer('SIZE(zone)', 64, 65_536);
  const freeAreaBytes = keys.integer('SIZE(free_area)', 16, 1024);
  const freeListTypes = keys.integer('LENGTH(free_area.free_list)', 1, 16);
  const memSectionBytes = keys.integer('SIZE(mem_section)', 8, 256);
  const info: Vmcoreinfo = {
    release: keys.text('OSRELEASE'),
    pageTable: keys.address('SYMBOL(init_top_pgt)', 'SYMBOL(swapper_pg_dir)'),
    physicalBase: keys.signed('NUMBER(phys_base)'),
    pageTableLevels: keys.has('NUMBER(pgtable_l5_enabled)')
      ? ((4 + keys.integer('NUMBER(pgtable_l5_enabled)', 0, 1)) as 4 | 5)
      : 4,
    encryptionMask: keys.has('NUMBER(sme_mask)') ? keys.signed('NUMBER(sme_mask)') : 0n,
    memSection: keys.address('SYMBOL(mem_section)'),
    memSectionRoots: keys.integer('LENGTH(mem_section)', 1, 2 ** 20),
    memSectionBytes,
    memSectionMapOffset: keys.offset('OFFSET(mem_section.section_mem_map)', memSectionBytes - 8),
    sectionPagesLog2: keys.integer('NUMBER(SECTION_SIZE_BITS)', 22, 36) - 12,
    pageStructBytes,
    pageLruOffset: keys.offset('OFFSET(page.lru)', pageFieldMax),
    pageMapcountOffset: keys.offset('OFFSET(page._mapcount)', pageFieldMax),
    pagePrivateOffset: keys.offset('OFFSET(page.private)', pageFieldMax),
    buddyMapcount: Number(BigInt.asIntN(32, keys.signed('NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)'))),
    nodes: readNodes(keys),
    nodeZonesOffset: keys.offset('OFFSET(pglist_data.node_zones)', 2 ** 20),
    nodeZoneCountOffset: keys.offset('OFFSET(pglist_data.nr_zones)', 2 ** 20),
    zoneBytes,
    zoneFreeAreaOffset: keys.offset('OFFSET(zone.free_area)', zoneBytes - freeAreaBytes),
    orders: keys.integer('LENGTH(zone.free_area)', 1, 24),
    freeAreaBytes,
    freeListOffset: keys.offset('OFFSET(free_area.free_list)', freeAreaBytes - 16),
    freeListTypes,
    listNextOffset: keys.offset('OFFSET(list_head.next)', 8),
  };
  if ((pageStructBytes & (pageStructBytes - 1)) !== 0) {
    throw new GuestLayoutError(`a struct page of ${pageStructBytes} bytes`);
  }
  if (info.freeListOffset + freeListTypes * LIST_HEAD_BYTES > freeAreaBytes) {
    throw new GuestLayoutError('free lists larger than their area');
  }
  if (info.zoneFreeAreaOffset + info.orders * freeAreaBytes > zoneBytes) {
    throw new GuestLayoutError('free areas larger than their zone');
  }
  return info;
}

export const LIST_HEAD_BYTES = 16;

function readNodes(keys: Keys): Vmcoreinfo['nodes'] {
  if (!keys.has('SYMBOL(node_data)')) return { only: keys.address('SYMBOL(contig_page_data)') };
  return {
    pointers: keys.address('SYMBOL(node_data)'),
    online: keys.address('SYMBOL(node_online_map)'),
    length: keys.integer('LENGTH(node_data)', 1, 4096),
  };
}

function noteText(note: Buffer): string {
  const textStart = NOTE_HEADER_BYTES + Math.ceil(NOTE_NAME.length / 4) * 4;
  if (note.length < textStart || note.length > NOTE_BYTES_MAX) {
    throw new GuestLayoutError(`a VMCOREINFO note of ${note.length} bytes`);
  }
  const isNamed = note.toString('latin1', NOTE_HEADER_BYTES, NOTE_HEADER_BYTES + NOTE_NAME.length);
  if (note.readUInt32LE(0) !== NOTE_NAME.length || isNamed !== NOTE_NAME) {
    throw new GuestLayoutError('no VMCOREINFO note where the guest said it is');
  }
  const textLength = note.readUInt32LE(4);
  if (textLength > note.length - textStart) {
    throw new GuestLayoutError('the VMCOREINFO note is cut short');
  }
  return note.toString('latin1', textStart, textStart + textLength);
}

interface Keys {
  has(key: string): boolean;
  text(key: string): string;
  integer(key: string, min: number, max: number): number;
  /** An integer of 0 … max that is a multiple of 4. */
  offset(key: string, max: number): number;
  /** Hexadecimal; the first of the names that is there. */
  address(...names: string[]): bigint;
  signed(key: string): bigint;
}

function readKeys(text: string): Keys {
  const values = new Map<string, string>();
  for (const line of text.split('\n', NOTE_LINES_MAX)) {
    const equals = line.indexOf('=');
    if (equals > 0) values.set(line.slice(0, equals), line.slice(equals + 1).replace(/\0.*/, ''));
  }
  const matched = (key: string, form: RegExp): string => {
    const value = values.get(key);
    if (value === undefined) throw new GuestLayoutError(`VMCOREINFO lacks ${key}`);
    if (!form.test(value))
      throw new GuestLayoutError(`VMCOREINFO has ${key}=${value.slice(0, 32)}`);
    return value;
  };
  const keys: Keys = {
    has: (key) => values.has(key),
    text: (key) => matched(key, /^[\x21-\x7e]{1,64}$/),
    integer: (key, min, max) => {
      const value = Number(matched(key, /^-?\d{1,15}$/));
      if (value >= min && value <= max) return value;
      throw new GuestLayoutError(`VMCOREINFO has ${key}=${value}`);
    },
    offset: (key, max) => {
      const value = keys.integer(key, 0, max);
      if (value % 4 === 0) return value;
      throw new GuestLayoutError(`VMCOREINFO has ${key}=${value}`);
    },
    address: (...names) => {
      const key = names.find((name) => values.has(name)) ?? names[0]!;
      return BigInt(`0x${matched(key, /^[0-9a-f]{1,16}$/)}`);
    },
    signed: (key) => BigInt.asIntN(64, BigInt(matched(key, /^-?\d{1,20}$/))),
  };
  return keys;
}
