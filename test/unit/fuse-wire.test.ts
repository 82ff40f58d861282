// The bytes of FUSE: golden requests and replies, and that no request at all makes a decoder throw
// anything but its own error.

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import * as wire from '../../packages/clone-agent/src/pager/fuse-wire.js';
import { times } from '../support/soak.js';

const { FuseWireError, Opcode } = wire;

/** A request as the kernel writes it, header and arguments. */
function request(
  opcode: number,
  nodeid: number,
  args: Buffer,
  extension = Buffer.alloc(0),
): Buffer {
  const header = Buffer.alloc(wire.REQUEST_HEADER_BYTES);
  header.writeUInt32LE(header.length + args.length + extension.length, 0);
  header.writeUInt32LE(opcode, 4);
  header.writeBigUInt64LE(0x8000_0000_0000_0246n, 8);
  header.writeBigUInt64LE(BigInt(nodeid), 16);
  header.writeUInt16LE(extension.length / 8, 36);
  return Buffer.concat([header, args, extension]);
}

function decoded(bytes: Buffer): wire.RequestHeader {
  const header = wire.newRequestHeader();
  wire.decodeHeader(bytes, bytes.length, header);
  return header;
}

// len 80, opcode 15, unique 0x1c2, nodeid 0x12, uid, gid, pid; fh 0, offset 0x1_2345_6000, size 4096.
const READ = Buffer.from(
  '50000000' +
    '0f000000' +
    'c201000000000000' +
    '1200000000000000' +
    '00000000' +
    '00000000' +
    'd2040000' +
    '00000000' +
    '0000000000000000' +
    '0060452301000000' +
    '00100000' +
    '00000000' +
    '0000000000000000' +
    '00000200' +
    '00000000',
  'hex',
);

describe('requests', () => {
  test('a READ of the kernel', () => {
    const unique = { uniqueLow: 0x1c2, uniqueHigh: 0 };
    expect(decoded(READ)).toEqual({ opcode: 15, ...unique, nodeid: 0x12, uid: 0, pid: 1234 });
    const wanted = { offset: 0, sizeBytes: 0 };
    wire.decodeRead(READ, READ.length, wanted);
    expect(wanted).toEqual({ offset: 0x1_2345_6000, sizeBytes: 4096 });
  });

  test('a node of the highest snapshot', () => {
    expect(decoded(request(Opcode.getattr, 0xf_ffff_ffff, Buffer.alloc(16))).nodeid).toBe(
      2 ** 36 - 1,
    );
  });

  test('LOOKUP names what is asked for, with and without an extension', () => {
    for (const extension of [Buffer.alloc(0), Buffer.alloc(16, 1)]) {
      const bytes = request(Opcode.lookup, 1, Buffer.from('ram\0'), extension);
      expect(wire.decodeLookup(bytes, bytes.length)).toBe('ram');
    }
  });

  test.each(['\0', 'ram', 'ra\0m\0', `${'x'.repeat(256)}\0`])('LOOKUP refuses %j', (name) => {
    const bytes = request(Opcode.lookup, 1, Buffer.from(name));
    expect(() => wire.decodeLookup(bytes, bytes.length)).toThrow(FuseWireError);
  });

  test('INIT of an older and of a newer kernel', () => {
    const args = Buffer.alloc(64);
    [7, 45, 131_072, 0x73ff_fffb, 0x5fd].forEach((value, index) => {
      args.writeUInt32LE(value, index * 4);
    });
    const common = { major: 7, minor: 45, maxReadahead: 131_072, flags: 0x73ff_fffb };
    const newer = request(Opcode.init, 0, args);
    expect(wire.decodeInit(newer, newer.length)).toEqual(common);
    const older = request(Opcode.init, 0, args.subarray(0, 16));
    expect(wire.decodeInit(older, older.length)).toEqual(common);
    const cut = request(Opcode.init, 0, args.subarray(0, 12));
    expect(() => wire.decodeInit(cut, cut.length)).toThrow(FuseWireError);
  });

  test('FORGET and BATCH_FORGET', () => {
    const one = request(Opcode.forget, 0x22, Buffer.alloc(8));
    expect(wire.decodeForget(one, one.length, decoded(one))).toEqual([0x22]);
    const args = Buffer.alloc(8 + 2 * 16);
    args.writeUInt32LE(2, 0);
    args.writeUInt32LE(0x31, 8);
    args.writeUInt32LE(0x41, 24);
    const batch = request(Opcode.batchForget, 0, args);
    expect(wire.decodeForget(batch, batch.length, decoded(batch))).toEqual([0x31, 0x41]);
    args.writeUInt32LE(0xffff_ffff, 0);
    const lying = request(Opcode.batchForget, 0, args);
    expect(() => wire.decodeForget(lying, lying.length, decoded(lying))).toThrow(FuseWireError);
  });

  test('a READ that is cut, too long or asks for too much is refused', () => {
    const into = { offset: 0, sizeBytes: 0 };
    for (let length = 0; length < READ.length; length += 1) {
      expect(() => wire.decodeRead(READ, length, into), `${length} bytes`).toThrow(FuseWireError);
    }
    const long = Buffer.concat([READ, Buffer.alloc(8)]);
    expect(() => wire.decodeRead(long, long.length, into)).toThrow(FuseWireError);
    const greedy = Buffer.from(READ);
    greedy.writeUInt32LE(wire.READ_BYTES_MAX + 1, 56);
    expect(() => wire.decodeRead(greedy, greedy.length, into)).toThrow(FuseWireError);
    const far = Buffer.from(READ);
    far.writeUInt32LE(0x0020_0000, 52);
    expect(() => wire.decodeRead(far, far.length, into)).toThrow(FuseWireError);
  });

  test('random bytes give a request or a FuseWireError', () => {
    const argumentsOf = fc.uint8Array({ maxLength: 160 }).map((bytes) => Buffer.from(bytes));
    const anyRequest = fc
      .tuple(fc.integer({ min: 0, max: 60 }), argumentsOf, fc.nat({ max: 40 }), fc.nat({ max: 4 }))
      .map(([opcode, args, cut, extension]) => {
        const bytes = request(opcode, 1, args);
        bytes.writeUInt16LE(extension, 36);
        return bytes.subarray(0, Math.max(0, bytes.length - (cut > 30 ? cut : 0)));
      });
    const raw = fc.uint8Array({ maxLength: 120 }).map((bytes) => Buffer.from(bytes));
    const decoders = [
      (bytes: Buffer) => wire.decodeHeader(bytes, bytes.length, wire.newRequestHeader()),
      (bytes: Buffer) => wire.decodeRead(bytes, bytes.length, { offset: 0, sizeBytes: 0 }),
      (bytes: Buffer) => wire.decodeLookup(bytes, bytes.length),
      (bytes: Buffer) => wire.decodeInit(bytes, bytes.length),
      (bytes: Buffer) => wire.decodeForget(bytes, bytes.length, wire.newRequestHeader()),
    ];
    const property = fc.property(fc.oneof(anyRequest, raw), (bytes) => {
      for (const decode of decoders) {
        try {
          decode(bytes);
        } catch (error) {
          expect(error).toBeInstanceOf(FuseWireError);
        }
      }
    });
    fc.assert(property, { numRuns: times(2000, 2_000_000) });
  });
});

describe('replies and notifications', () => {
  test('an error goes out negative', () => {
    const reply = Buffer.alloc(wire.REPLY_HEADER_BYTES);
    wire.encodeReplyHeader(reply, { uniqueLow: 7, uniqueHigh: 0 }, 0, 5);
    expect(reply.toString('hex')).toBe('10000000' + 'fbffffff' + '0700000000000000');
  });

  test('INIT offers what was agreed, 64 bytes long', () => {
    const { asyncRead, maxPages } = wire.InitFlag;
    const result = wire.encodeInit({
      minor: 40,
      maxReadahead: 0,
      flags: asyncRead | maxPages,
      maxBackground: 64,
      congestionThreshold: 48,
    });
    const words = [
      '07000000',
      '28000000',
      '00000000',
      '01004000',
      '40003000',
      '00100000',
      '01000000',
      '00010000',
    ].join('');
    expect(result.toString('hex')).toBe(words + '00'.repeat(64 - 32));
  });

  test('an entry: node, validity, attributes', () => {
    const node = { nodeid: 0x1_0000_0012, sizeBytes: 8192, mode: 0o100666 };
    const entry = wire.encodeEntry(node, 3600);
    expect(entry.length).toBe(128);
    expect(entry.readBigUInt64LE(0)).toBe(0x1_0000_0012n);
    expect(entry.readBigUInt64LE(16)).toBe(3600n);
    expect(entry.readBigUInt64LE(24)).toBe(3600n);
    const attributes = wire.encodeAttributes(node, 3600);
    expect(attributes.length).toBe(104);
    expect(attributes.subarray(16).equals(entry.subarray(40))).toBe(true);
    expect(entry.readBigUInt64LE(40 + 8)).toBe(8192n);
    expect(entry.readBigUInt64LE(40 + 16)).toBe(16n);
    expect(entry.readUInt32LE(40 + 60)).toBe(0o100666);
  });

  test('STORE', () => {
    const header = Buffer.alloc(wire.STORE_HEADER_BYTES, 0xff);
    wire.encodeStoreHeader(header, { nodeid: 0x12, offset: 0x1_0000_0000, sizeBytes: 65_536 });
    expect(header.toString('hex')).toBe(
      [
        '28000100',
        '04000000',
        '0000000000000000',
        '1200000000000000',
        '0000000001000000',
        '00000100',
        '00000000',
      ].join(''),
    );
  });

  test('INVAL_ENTRY and INVAL_INODE', () => {
    expect(wire.encodeInvalidateEntry(1, 's1').toString('hex')).toBe(
      [
        '23000000',
        '03000000',
        '0000000000000000',
        '0100000000000000',
        '02000000',
        '00000000',
        '733100',
      ].join(''),
    );
    expect(wire.encodeInvalidateInode(0x12).toString('hex')).toBe(
      [
        '28000000',
        '02000000',
        '0000000000000000',
        '1200000000000000',
        '0000000000000000',
        '0000000000000000',
      ].join(''),
    );
  });
});
