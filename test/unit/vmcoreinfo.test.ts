// The guest's VMCOREINFO note: what is read from it, and that nothing a guest writes there does harm.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { GuestLayoutError } from '../../packages/clone-agent/src/freeze/layout-error.js';
import {
  findNoteLocation,
  parseVmcoreinfo,
} from '../../packages/clone-agent/src/freeze/vmcoreinfo.js';

/** As a Debian 12 guest (Linux 6.1) has it, less the lines that nobody reads. */
const LINES = [
  'OSRELEASE=6.1.0-56-cloud-amd64',
  'PAGESIZE=4096',
  'SYMBOL(init_uts_ns)=ffffffff8261b840',
  'SYMBOL(node_online_map)=ffffffff828c2b20',
  'SYMBOL(swapper_pg_dir)=ffffffff82610000',
  'SYMBOL(mem_section)=ffff88800ffff000',
  'LENGTH(mem_section)=2048',
  'SIZE(mem_section)=16',
  'OFFSET(mem_section.section_mem_map)=0',
  'NUMBER(SECTION_SIZE_BITS)=27',
  'SIZE(page)=64',
  'SIZE(zone)=1664',
  'SIZE(free_area)=104',
  'OFFSET(page._mapcount)=48',
  'OFFSET(page.private)=40',
  'OFFSET(page.lru)=8',
  'OFFSET(pglist_data.node_zones)=0',
  'OFFSET(pglist_data.nr_zones)=172064',
  'OFFSET(zone.free_area)=192',
  'OFFSET(free_area.free_list)=0',
  'OFFSET(list_head.next)=0',
  'LENGTH(zone.free_area)=11',
  'LENGTH(free_area.free_list)=6',
  'NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129',
  'NUMBER(phys_base)=-16777216',
  'SYMBOL(init_top_pgt)=ffffffff82612000',
  'SYMBOL(node_data)=ffffffff82b3c0a0',
  'LENGTH(node_data)=1024',
  'NUMBER(pgtable_l5_enabled)=0',
];

function noteOf(lines: readonly string[]): Buffer {
  const text = Buffer.from(`${lines.join('\n')}\n`, 'latin1');
  const head = Buffer.alloc(24);
  head.writeUInt32LE(11, 0);
  head.writeUInt32LE(text.length, 4);
  head.write('VMCOREINFO', 12);
  return Buffer.concat([head, text, Buffer.alloc(20)]);
}

const without = (key: string): string[] => LINES.filter((line) => !line.startsWith(`${key}=`));
const withValue = (key: string, value: string): string[] => [...without(key), `${key}=${value}`];
const refusal = (note: Buffer): string => {
  try {
    parseVmcoreinfo(note);
  } catch (error) {
    expect(error).toBeInstanceOf(GuestLayoutError);
    return (error as Error).message;
  }
  return 'accepted';
};

describe('VMCOREINFO', () => {
  it('gives addresses, signed numbers and layouts', () => {
    const info = parseVmcoreinfo(noteOf(LINES));
    expect(info).toMatchObject({
      release: '6.1.0-56-cloud-amd64',
      pageTable: 0xffffffff82612000n,
      physicalBase: -16777216n,
      pageTableLevels: 4,
      encryptionMask: 0n,
      memSection: 0xffff88800ffff000n,
      sectionPagesLog2: 15,
      pageStructBytes: 64,
      pageMapcountOffset: 48,
      buddyMapcount: -129,
      nodes: { pointers: 0xffffffff82b3c0a0n, online: 0xffffffff828c2b20n, length: 1024 },
      orders: 11,
      freeListTypes: 6,
    });
  });

  it('takes the other names that kernels have for the same things', () => {
    const lines = without('SYMBOL(init_top_pgt)').filter((line) => !line.includes('node_'));
    const older = ['SYMBOL(contig_page_data)=ffffffff82b00000', 'NUMBER(pgtable_l5_enabled)=1'];
    const layout = LINES.filter((line) => line.startsWith('OFFSET(pglist_data'));
    const info = parseVmcoreinfo(noteOf([...lines, ...layout, ...older]));
    expect(info.pageTable).toBe(0xffffffff82610000n);
    expect(info.nodes).toEqual({ only: 0xffffffff82b00000n });
    expect(info.pageTableLevels).toBe(5);
  });

  it('takes a mark of newer kernels, printed with or without its sign, for the same 32 bits', () => {
    for (const value of ['-268435456', '4026531840']) {
      const note = noteOf(withValue('NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)', value));
      expect(parseVmcoreinfo(note).buddyMapcount).toBe(-268435456);
    }
  });

  it('names the key that is missing', () => {
    for (const key of ['OSRELEASE', 'SIZE(page)', 'OFFSET(page.lru)', 'LENGTH(zone.free_area)']) {
      expect(refusal(noteOf(without(key)))).toContain(key);
    }
  });

  it.each([
    ['SIZE(page)', '0'],
    ['SIZE(page)', '56'],
    ['SIZE(page)', '99999999999'],
    ['OFFSET(page.lru)', '60'],
    ['OFFSET(page._mapcount)', '-4'],
    ['OFFSET(page.private)', '41'],
    ['SIZE(zone)', '128'],
    ['LENGTH(zone.free_area)', '200'],
    ['LENGTH(free_area.free_list)', '9'],
    ['SYMBOL(mem_section)', 'ffff88800ffff00000'],
    ['SYMBOL(node_data)', '0x10'],
    ['NUMBER(phys_base)', '1e9'],
    ['SIZE(mem_section)', '4'],
  ])('refuses %s=%s', (key, value) => {
    expect(refusal(noteOf(withValue(key, value)))).not.toBe('accepted');
  });

  it('refuses what is no note, or cut short', () => {
    const note = noteOf(LINES);
    expect(refusal(Buffer.alloc(0))).toContain('0 bytes');
    expect(refusal(Buffer.alloc(4096))).toContain('no VMCOREINFO');
    expect(refusal(note.subarray(0, 400))).toContain('cut short');
    expect(refusal(Buffer.alloc(2 ** 20))).toContain('bytes');
  });

  it('ends with fields or one kind of error, whatever the bytes', () => {
    const edits = fc.array(fc.tuple(fc.nat(1200), fc.integer({ min: 0, max: 255 })), {
      maxLength: 40,
    });
    const mutated = edits.map((changes) => {
      const note = noteOf(LINES);
      for (const [at, byte] of changes) note[at % note.length] = byte;
      return note;
    });
    const random = fc.uint8Array({ maxLength: 6000 }).map((bytes) => Buffer.from(bytes));
    fc.assert(fc.property(fc.oneof(mutated, random), (note) => void refusal(note)));
  });
});

describe('the note in a device state', () => {
  // The section as QEMU 7.2 writes it for a guest that filled it in.
  const section =
    '040000002a0a766d636f7265696e666f0000000000000001' + // full section 42, "vmcoreinfo", 0, 1
    '01000100010000102400000000018cc000' + // filled, formats 1 and 1, 4,132 bytes at 0x18cc000
    '7e0000002a';
  const before = Buffer.from('5145564d00000003', 'hex');

  it('is found with its address and size', () => {
    const state = Buffer.concat([before, Buffer.from(section, 'hex')]);
    expect(findNoteLocation(state)).toEqual({ physicalAddress: 0x18cc000, sizeBytes: 4132 });
  });

  it('is not there without the device, or when the guest never filled it in', () => {
    expect(findNoteLocation(before)).toBeUndefined();
    const unfilled = section.replace('0100010001', '0000010001');
    expect(findNoteLocation(Buffer.from(unfilled, 'hex'))).toBeUndefined();
    const cut = Buffer.from(section, 'hex').subarray(0, 30);
    expect(findNoteLocation(cut)).toBeUndefined();
  });

  it('is refused when it is absurdly large or far', () => {
    const large = section.replace('00001024', '7fffffff');
    const far = section.replace('00000000018cc000', 'ffffffffffffffff');
    expect(findNoteLocation(Buffer.from(large, 'hex'))).toBeUndefined();
    expect(findNoteLocation(Buffer.from(far, 'hex'))).toBeUndefined();
  });
});
