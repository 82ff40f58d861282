// The frames between agent, `sf-guestd` and programs: nothing that arrives may do more than a
// FrameError, however it is cut, and the layout stays what other languages implement.

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  decodeLines,
  encodeFrame,
  encodeLines,
  encodeMessage,
  FLAG_END,
  FLAG_MORE,
  FRAME_HEADER_BYTES,
  FRAME_PAYLOAD_BYTES_MAX,
  type Frame,
  FrameError,
  FrameReader,
  FrameType,
  MESSAGE_BYTES_MAX,
  MESSAGE_FRAMES_MAX,
  MessageAssembler,
} from '../../packages/sdk/src/api/port.js';
import { times } from '../support/soak.js';

const types = Object.values(FrameType);
const arbitraryFrame = fc.record({
  type: fc.constantFrom(...types),
  flags: fc.constantFrom(0, FLAG_MORE, FLAG_END, FLAG_MORE | FLAG_END),
  stream: fc.integer({ min: 0, max: 0xffff_ffff }),
  payload: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
});

/** The bytes in pieces whose lengths are taken from `cuts`, in turn. */
function* pieces(bytes: Buffer, cuts: readonly number[]): Generator<Buffer> {
  for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
    const length = cuts[turn % cuts.length] ?? bytes.length;
    yield bytes.subarray(at, at + length);
    at += length;
  }
}

function readAll(bytes: Buffer, cuts: readonly number[] = []): Frame[] {
  const reader = new FrameReader();
  return [...pieces(bytes, cuts)].flatMap((piece) => reader.push(piece));
}

describe('golden frames', () => {
  test.each([
    ['PING', encodeFrame(FrameType.ping, 0), '000000000600000000000000'],
    [
      'HELLO',
      encodeFrame(FrameType.hello, 0, encodeLines({ protocol: 1, kernel: '6.1', hostname: 'vm' })),
      `220000000100000000000000${Buffer.from('protocol=1\nkernel=6.1\nhostname=vm\n').toString('hex')}`,
    ],
    [
      'REQUEST with MORE on the last stream',
      encodeFrame(FrameType.request, 0xffff_ffff, Buffer.from('ab'), FLAG_MORE),
      '0200000010010000ffffffff6162',
    ],
    [
      'STDIN with END',
      encodeFrame(FrameType.stdin, 0x01020304, Buffer.alloc(0), FLAG_END),
      '000000002102000004030201',
    ],
    [
      'CREDIT',
      encodeFrame(FrameType.credit, 7, encodeLines({ bytes: 5 })),
      '08000000270000000700000062797465733d350a',
    ],
  ])('%s', (_name, frame, hex) => {
    expect(frame.toString('hex')).toBe(hex);
  });

  test('every type has its number', () => {
    expect(FrameType).toEqual({
      ...{ hello: 1, prepare: 2, prepared: 3, resume: 4, resumed: 5, ping: 6, pong: 7, again: 8 },
      ...{ request: 0x10, response: 0x11, closed: 0x12, forked: 0x13 },
      ...{ exec: 0x20, stdin: 0x21, signal: 0x22, started: 0x23, stdout: 0x24, stderr: 0x25 },
      ...{ exit: 0x26, credit: 0x27 },
    });
  });
});

describe('FrameReader', () => {
  test('gives the frames that were sent, however they are cut', () => {
    const cuts = fc.array(fc.integer({ min: 1, max: 64 }), { minLength: 1, maxLength: 20 });
    fc.assert(
      fc.property(fc.array(arbitraryFrame, { maxLength: 20 }), cuts, (frames, lengths) => {
        const bytes = Buffer.concat(
          frames.map(({ type, stream, payload, flags }) =>
            encodeFrame(type, stream, payload, flags),
          ),
        );
        expect(readAll(bytes, lengths)).toEqual(frames);
      }),
    );
  });

  test('random bytes give frames or a FrameError, and hold no more than a frame back', () => {
    const bytes = fc.array(
      fc.oneof(
        fc.uint8Array({ maxLength: 200 }).map((array) => Buffer.from(array)),
        arbitraryFrame.map(({ type, stream, payload }) => encodeFrame(type, stream, payload)),
        fc
          .tuple(fc.integer({ min: 0, max: 11 }), fc.integer({ min: 0, max: 255 }))
          .map(([at, value]) => {
            const frame = encodeFrame(FrameType.ping, 1, Buffer.from('x'));
            frame[at] = value;
            return frame;
          }),
      ),
    );
    fc.assert(
      fc.property(bytes, (chunks) => {
        const reader = new FrameReader();
        try {
          for (const chunk of chunks) {
            for (const frame of reader.push(chunk)) expect(types).toContain(frame.type);
            expect(reader.pendingBytes).toBeLessThan(FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX);
          }
        } catch (error) {
          expect(error).toBeInstanceOf(FrameError);
        }
      }),
      { numRuns: times(500, 500_000) },
    );
  });

  test.each([
    ['too long a payload', '010001000600000000000000'],
    ['an unknown type', '000000000900000000000000'],
    ['an unknown flag', '000000000604000000000000'],
    ['a reserved field', '000000000600010000000000'],
  ])('refuses %s as soon as the header is there', (_name, hex) => {
    expect(() => new FrameReader().push(Buffer.from(hex, 'hex'))).toThrow(FrameError);
  });

  test('takes the longest payload, and encodeFrame makes none that is longer', () => {
    const longest = Buffer.alloc(FRAME_PAYLOAD_BYTES_MAX, 7);
    const [frame] = readAll(encodeFrame(FrameType.stdout, 1, longest), [4096]);
    expect(frame!.payload.equals(longest)).toBe(true);
    const longer = Buffer.alloc(FRAME_PAYLOAD_BYTES_MAX + 1);
    expect(() => encodeFrame(FrameType.stdout, 1, longer)).toThrow(RangeError);
  });
});

describe('MessageAssembler', () => {
  const assemble = (frames: Frame[]) => {
    const assembler = new MessageAssembler();
    return frames.flatMap((frame) => {
      const payload = assembler.push(frame);
      return payload === undefined ? [] : [{ stream: frame.stream, payload }];
    });
  };

  test.each([
    0,
    1,
    FRAME_PAYLOAD_BYTES_MAX - 1,
    FRAME_PAYLOAD_BYTES_MAX,
    FRAME_PAYLOAD_BYTES_MAX + 1,
    3 * FRAME_PAYLOAD_BYTES_MAX,
    MESSAGE_BYTES_MAX,
  ])('a message of %d bytes comes out as it went in', (length) => {
    const payload = Buffer.alloc(length, 'payload');
    const frames = readAll(encodeMessage(FrameType.request, 9, payload), [50_000]);
    expect(frames.map(({ flags }) => flags)).toEqual(
      frames.map((_, index) => (index < frames.length - 1 ? FLAG_MORE : 0)),
    );
    const [message] = assemble(frames);
    expect(message!.payload.equals(payload)).toBe(true);
  });

  test('messages of several streams may be mixed', () => {
    const message = fc.tuple(
      fc.constantFrom(FrameType.request, FrameType.response),
      fc.array(fc.uint8Array({ minLength: 1, maxLength: 20 }), { minLength: 1, maxLength: 5 }),
    );
    const order = fc.array(fc.nat(), { minLength: 1, maxLength: 30 });
    fc.assert(
      fc.property(fc.array(message, { minLength: 1, maxLength: 6 }), order, (messages, picks) => {
        const queues = messages.map(([type, parts], stream) =>
          parts.map((part, index): Frame => {
            const flags = index < parts.length - 1 ? FLAG_MORE : 0;
            return { type, stream, flags, payload: Buffer.from(part) };
          }),
        );
        const mixed: Frame[] = [];
        for (let turn = 0; queues.some((queue) => queue.length > 0); turn += 1) {
          const waiting = queues.filter((queue) => queue.length > 0);
          mixed.push(waiting[picks[turn % picks.length]! % waiting.length]!.shift()!);
        }
        const whole = assemble(mixed).sort((a, b) => a.stream - b.stream);
        expect(whole).toEqual(
          messages.map(([, parts], stream) => ({ stream, payload: Buffer.concat(parts) })),
        );
      }),
    );
  });

  test('what is under way is bounded over all streams, and given back', () => {
    const part = { type: FrameType.request, flags: FLAG_MORE, payload: Buffer.alloc(65_536) };
    const fill = (assembler: MessageAssembler) => {
      for (let bytes = 0, stream = 0; bytes + 65_536 <= 2 * MESSAGE_BYTES_MAX; bytes += 65_536) {
        assembler.push({ ...part, stream });
        stream = (stream + 1) % 5;
      }
    };
    const assembler = new MessageAssembler();
    fill(assembler);
    expect(() => assembler.push({ ...part, stream: 0 })).toThrow(FrameError);
    const other = new MessageAssembler();
    for (let round = 0; round < 3; round += 1) {
      fill(other);
      for (const stream of [0, 1, 2]) other.push({ ...part, stream, flags: 0 });
      for (const stream of [3, 4]) other.drop(stream);
    }
  });

  test('a message byte by byte is taken up to a number of frames, and given back', () => {
    const assembler = new MessageAssembler();
    const part = (stream: number): Frame => {
      return { type: FrameType.request, flags: FLAG_MORE, stream, payload: Buffer.from('x') };
    };
    for (let round = 0; round < 2; round++) {
      for (let at = 0; at < MESSAGE_FRAMES_MAX; at++) assembler.push(part(at % 7));
      for (let stream = 0; stream < 7; stream++) assembler.drop(stream);
    }
    for (let at = 0; at < MESSAGE_FRAMES_MAX; at++) assembler.push(part(at));
    expect(() => assembler.push(part(0))).toThrow(FrameError);
  });

  test('random frames give messages or a FrameError', () => {
    fc.assert(
      fc.property(fc.array(arbitraryFrame), (frames) => {
        const assembler = new MessageAssembler();
        try {
          for (const frame of frames) assembler.push(frame);
        } catch (error) {
          expect(error).toBeInstanceOf(FrameError);
        }
      }),
    );
  });
});

describe('lines', () => {
  test('come back as they were', () => {
    const key = fc.stringMatching(/^[a-z]{1,10}$/);
    const value = fc.string().filter((text) => !text.includes('\n'));
    fc.assert(
      fc.property(fc.dictionary(key, value), (fields) => {
        expect(Object.fromEntries(decodeLines(encodeLines(fields)))).toEqual({ ...fields });
      }),
    );
  });

  test('any bytes can be decoded', () => {
    fc.assert(
      fc.property(fc.uint8Array(), (bytes) => {
        expect(decodeLines(bytes)).toBeInstanceOf(Map);
      }),
    );
  });
});
