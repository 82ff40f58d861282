// QEMU's device state: the fixture is cut from a real stream (QEMU 7.2, its last four sections). What
// is parsed lies where it says, what is synthesised parses, and what is broken is rejected.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  DeviceStreamError,
  findVmcoreinfo,
  parseDeviceState,
  synthesiseStream,
  virtualClockMs,
} from '../../packages/clone-agent/src/hypervisor/device-stream.js';

const HEADER = '5145564d00000003';
const VMCOREINFO =
  '040000001c0a766d636f7265696e666f0000000000000001' +
  '010000000100001024 00000000018e0000 7e0000001c';
const VMGENID = '040000001d07766d67656e69640000000000000001 28f0ff0f00000000 7e0000001d';
const ACPI_BUILD = '040000001e0a616370695f6275696c640000000000000001 01 7e0000001e';
const GLOBALSTATE =
  '040000001f0b676c6f62616c73746174650000000000000001' +
  `0000000872756e6e696e67${'00'.repeat(93)}7e0000001f`;

const hex = (...parts: string[]) => Buffer.from(parts.join('').replaceAll(' ', ''), 'hex');
const real = hex(HEADER, VMCOREINFO, VMGENID, ACPI_BUILD, GLOBALSTATE, '00');

/** What the function throws, if that is the one error that it may throw. */
function rejected(run: () => unknown): boolean {
  try {
    run();
    return false;
  } catch (error) {
    expect(error).toBeInstanceOf(DeviceStreamError);
    return true;
  }
}

describe('parseDeviceState', () => {
  it('finds the sections of a real stream', () => {
    const { machineType, sections } = parseDeviceState(real);
    expect(machineType).toBeUndefined();
    const facts = sections.map((section) => [
      section.id,
      section.idstr,
      section.instance,
      section.version,
      section.payloadEnd - section.payloadStart,
    ]);
    expect(facts).toEqual([
      [28, 'vmcoreinfo', 0, 1, 17],
      [29, 'vmgenid', 0, 1, 8],
      [30, 'acpi_build', 0, 1, 1],
      [31, 'globalstate', 0, 1, 104],
    ]);
  });

  it('is not misled by a footer within a payload', () => {
    const inside = hex('7e0000001d', '04', '7e0000001d00');
    const section = Buffer.concat([hex(VMGENID).subarray(0, 21), inside, hex('7e0000001d')]);
    const stream = Buffer.concat([hex(HEADER), section, hex(ACPI_BUILD), hex('00')]);
    const { sections } = parseDeviceState(stream);
    expect(sections.map(({ idstr }) => idstr)).toEqual(['vmgenid', 'acpi_build']);
    const { payloadStart, payloadEnd } = sections[0]!;
    expect(stream.subarray(payloadStart, payloadEnd)).toEqual(inside);
  });

  it.each([
    ['nothing', hex('')],
    ['another magic', hex('5145564e00000003', '00')],
    ['another version', hex('5145564d00000004', '00')],
    ['no end', hex(HEADER, VMGENID)],
    ['bytes after the end', hex(HEADER, VMGENID, '00', '01')],
    ['bytes after the end of no sections', hex(HEADER, '00', '01')],
    ['a description cut short', hex(HEADER, VMGENID, '00', '06', '00000003', '7b7d')],
    ['a footer of another section', hex(HEADER, VMGENID.replace(/1d$/, '1e'), '00')],
    ['no section mark', hex(HEADER, '05', VMGENID.slice(2), '00')],
    ['a name that is none', hex(HEADER, VMGENID.replace('766d67', '000000'), '00')],
    ['a configuration cut short', hex(HEADER, '07', '000000')],
    ['a machine type beyond the end', hex(HEADER, '07', '000000f0', '70')],
  ])('rejects %s', (_, stream) => {
    expect(rejected(() => parseDeviceState(stream))).toBe(true);
  });

  it('rejects every truncation', () => {
    for (let length = 0; length < real.length; length++) {
      expect(rejected(() => parseDeviceState(real.subarray(0, length)))).toBe(true);
    }
  });

  it('throws its own error alone, for any bytes', () => {
    const changes = fc.array(fc.tuple(fc.nat(real.length - 1), fc.nat(255)), { maxLength: 8 });
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), changes, (bytes, edits) => {
        const random = Buffer.from(bytes);
        const edited = Buffer.from(real);
        for (const [at, byte] of edits) edited[at] = byte;
        for (const stream of [random, Buffer.concat([hex(HEADER), random]), edited]) {
          rejected(() => parseDeviceState(stream));
          rejected(() => findVmcoreinfo(stream));
          rejected(() => synthesiseStream(stream, 'pc-q35-7.2'));
        }
      }),
    );
  });

  it('gives back what was put in', () => {
    const section = fc.record({
      idstr: fc.stringMatching(/^[a-z0-9:./-]{1,40}$/),
      instance: fc.nat(0xffff),
      payload: fc.uint8Array({ maxLength: 200 }),
    });
    fc.assert(
      fc.property(fc.array(section, { minLength: 1, maxLength: 20 }), (sections) => {
        const stream = Buffer.concat([hex(HEADER), ...sections.map(encodeSection), hex('00')]);
        const parsed = parseDeviceState(stream).sections;
        expect(
          parsed.map(({ idstr, instance, payloadStart, payloadEnd }) => ({
            idstr,
            instance,
            payload: new Uint8Array(stream.subarray(payloadStart, payloadEnd)),
          })),
        ).toEqual(sections);
      }),
    );
  });
});

function encodeSection(
  section: { idstr: string; instance: number; payload: Uint8Array },
  index: number,
): Buffer {
  const head = Buffer.alloc(14 + section.idstr.length);
  head[0] = 4;
  head.writeUInt32BE(index, 1);
  head[5] = section.idstr.length;
  head.write(section.idstr, 6);
  head.writeUInt32BE(section.instance, head.length - 8);
  head.writeUInt32BE(1, head.length - 4);
  const footer = Buffer.alloc(5, 0x7e);
  footer.writeUInt32BE(index, 1);
  return Buffer.concat([head, section.payload, footer]);
}

describe('virtualClockMs', () => {
  const timer =
    '04000000000574696d65720000000000000002' +
    '000000027b0c018a 0000000000000000 00000000f49d175d 7e00000000';

  it('is read from a real section', () => {
    expect(virtualClockMs(hex(HEADER, timer, '00'))).toBe(4103.935837);
  });

  it('is not known when the section is missing or cut short', () => {
    expect(virtualClockMs(real)).toBeUndefined();
    expect(virtualClockMs(hex(HEADER, timer).subarray(0, 50))).toBeUndefined();
  });
});

describe('findVmcoreinfo', () => {
  it('reads where the guest put its note', () => {
    expect(findVmcoreinfo(real)).toEqual({
      hasVmcoreinfo: true,
      guestFormat: 1,
      sizeBytes: 4132,
      physicalAddress: 0x18e0000n,
    });
  });

  it('is undefined on a machine without the device', () => {
    expect(findVmcoreinfo(hex(HEADER, VMGENID, '00'))).toBeUndefined();
  });

  it('rejects a section of another length', () => {
    const longer = VMCOREINFO.replace('7e0000001c', '007e0000001c');
    expect(rejected(() => findVmcoreinfo(hex(HEADER, longer, '00')))).toBe(true);
  });
});

describe('synthesiseStream', () => {
  it('adds the machine type, an empty description, and nothing else', () => {
    const stream = synthesiseStream(real, 'pc-q35-7.2');
    const configuration = hex('070000000a', Buffer.from('pc-q35-7.2').toString('hex'));
    expect(stream).toEqual(
      Buffer.concat([hex(HEADER), configuration, real.subarray(8), hex('06000000027b7d')]),
    );
  });

  it('makes a stream that parses, with the same sections', () => {
    const parsed = parseDeviceState(synthesiseStream(real, 'pc-q35-7.2'));
    expect(parsed.machineType).toBe('pc-q35-7.2');
    const names = (sections: readonly { idstr: string }[]) => sections.map(({ idstr }) => idstr);
    expect(names(parsed.sections)).toEqual(names(parseDeviceState(real).sections));
  });

  it('rejects what is no device state, or has a configuration already', () => {
    expect(rejected(() => synthesiseStream(real.subarray(0, -1), 'pc-q35-7.2'))).toBe(true);
    expect(rejected(() => synthesiseStream(real, ''))).toBe(true);
    const twice = () => synthesiseStream(synthesiseStream(real, 'pc-q35-7.2'), 'pc-q35-7.2');
    expect(rejected(twice)).toBe(true);
  });
});
