// The bodies of datagrams: what was encoded is decoded, whatever is not exactly right is refused,
// and pages are cut so that they fit.

import {
  BODY_BYTES_MIN,
  bodyBytesFor,
  bodySizesFor,
  CHANNEL,
  DATAGRAM_PAGES_MAX,
  dataEnd,
  decodePages,
  decodePiece,
  decodeProbe,
  decodeReport,
  decodeRequest,
  encodeReport,
  encodeRequest,
  HEADER_BYTES,
  PACKED_HEAD_BYTES,
  PAGE_BYTES,
  PAGE_KIND,
  type PageKind,
  PIECES_MAX,
  pieceBytes,
  pieceCountFor,
  REPORT_MS_MAX,
  TAG_BYTES,
  URGENCY,
  writePages,
  writePiece,
  writeProbe,
} from '@snowfork/memserver';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { aheadOf, NO_SEQUENCE, nextSequence } from '../../packages/memserver/src/wire/sequence.js';
import { times } from '../support/soak.js';

const RUNS_MAX = 90;
const u32 = fc.integer({ min: 0, max: 2 ** 32 - 1 });
const u16 = fc.integer({ min: 0, max: 2 ** 16 - 1 });
const channels = fc.constantFrom(...Object.values(CHANNEL));
const places = fc.record({
  page: fc.integer({ min: 0, max: 2 ** 32 - 2 ** 16 }),
  count: fc.integer({ min: 1, max: Math.floor(DATAGRAM_PAGES_MAX / RUNS_MAX) }),
});
const lacks = fc.integer({ min: 0, max: PIECES_MAX }).chain((pieceCount) =>
  fc.record({
    pieceCount: fc.constant(pieceCount),
    pieces: fc.integer({ min: Math.min(1, pieceCount), max: 2 ** pieceCount - 1 }),
  }),
);
const requests = fc.record({
  urgency: fc.constantFrom(...Object.values(URGENCY)),
  delivery: channels,
  seen: u32,
  roundTripUs: u32,
  runs: fc.array(
    fc.tuple(places, lacks, u16).map(([place, lack, layer]) => ({ ...place, ...lack, layer })),
    { minLength: 1, maxLength: RUNS_MAX },
  ),
});
const heads = fc.record({
  sequence: u32,
  channel: channels,
  receiversLog2: fc.integer({ min: 0, max: 255 }),
  layer: u16,
});
const channelReports = fc.record({
  highest: u32,
  expected: u32,
  received: u32,
  bytes: u32,
  largest: u16,
});
const reports = fc.record({
  delivery: channels,
  intervalMs: fc.integer({ min: 1, max: REPORT_MS_MAX }),
  group: channelReports,
  unicast: channelReports,
});
const runsOfPages = fc.array(
  fc.record({
    page: u32.filter((page) => page < 2 ** 32 - 4),
    count: fc.integer({ min: 1, max: 3 }),
    kind: fc.constantFrom(...Object.values(PAGE_KIND)),
  }),
  { maxLength: 4 },
);
const runs = { numRuns: times(300, 300_000) };

describe('what was encoded is decoded', () => {
  test('REQUEST', () => {
    fc.assert(
      fc.property(requests, (request) => {
        expect(decodeRequest(encodeRequest(request))).toEqual(request);
      }),
      runs,
    );
  });

  test('REPORT', () => {
    fc.assert(
      fc.property(reports, (report) => {
        expect(decodeReport(encodeReport(report))).toEqual(report);
      }),
      runs,
    );
  });

  test('PAGES', () => {
    fc.assert(
      fc.property(heads, runsOfPages, (head, pageRuns) => {
        // Packed pages of 5 bytes each, as two of them say.
        const bytesOf = { [PAGE_KIND.data]: PAGE_BYTES, [PAGE_KIND.packed]: PACKED_HEAD_BYTES + 5 };
        const parts = pageRuns.flatMap(({ kind, count }) =>
          Array.from({ length: count }, () => {
            const part = Buffer.alloc(bytesOf[kind as keyof typeof bytesOf] ?? 0, 7);
            if (kind === PAGE_KIND.packed) part.writeUInt16LE(5);
            return part;
          }),
        );
        const body = Buffer.alloc(1000 + 12 * PAGE_BYTES, 5);
        const start = writePages(body, head, pageRuns);
        const length = start + Buffer.concat(parts).copy(body, start);
        const pages = body.subarray(0, length);
        const { data, ...decoded } = decodePages(pages)!;
        expect(decoded).toEqual({ ...head, runs: pageRuns });
        expect(data.equals(pages.subarray(start))).toBe(true);
        const kinds = pageRuns.flatMap(({ kind, count }) => Array<PageKind>(count).fill(kind));
        expect(kinds.reduce<number>((end, kind) => dataEnd(kind, data, end), 0)).toBe(data.length);
        expect(decodePages(body.subarray(0, pages.length - 1))).toBeUndefined();
        expect(decodePages(body.subarray(0, pages.length + 1))).toBeUndefined();
      }),
      { numRuns: times(100, 100_000) },
    );
  });

  test('PIECE, of each size', () => {
    for (let pieceCount = 2; pieceCount <= PIECES_MAX; pieceCount++) {
      let rest = PAGE_BYTES;
      for (let piece = 0; piece < pieceCount; piece++) {
        const body = Buffer.alloc(5000, piece);
        const head = { sequence: 9, channel: CHANNEL.unicast, receiversLog2: 2, layer: 3 };
        const start = writePiece(body, head, { page: 77, piece, pieceCount });
        const end = start + Math.min(rest, pieceBytes(pieceCount));
        const data = body.subarray(start, end);
        const decoded = decodePiece(body.subarray(0, end));
        expect(decoded).toEqual({ ...head, page: 77, piece, pieceCount, data });
        expect(decodePiece(body.subarray(0, end - 1))).toBeUndefined();
        expect(decodePiece(body.subarray(0, end + 1))).toBeUndefined();
        rest -= data.length;
      }
      expect(rest).toBe(0);
    }
  });
});

test('PROBE is zeros, of any length, and nothing else', () => {
  const body = Buffer.alloc(8928, 1);
  for (const channel of [CHANNEL.group, CHANNEL.unicast]) {
    writeProbe(body, channel);
    expect(decodeProbe(body)).toBe(channel);
    expect(decodeProbe(body.subarray(0, 1))).toBe(channel);
  }
  body[8000] = 1;
  expect(decodeProbe(body)).toBe(undefined);
  expect(decodeProbe(Buffer.alloc(100, 2))).toBe(undefined);
  expect(decodeProbe(Buffer.alloc(0))).toBe(undefined);
});

test('the bytes of a request are those of the specification', () => {
  const run = { layer: 3, page: 0x01020304, count: 5, pieces: 0b101, pieceCount: 3 };
  const request = { urgency: 1, delivery: 0, seen: 7, roundTripUs: 250, runs: [run] } as const;
  expect(encodeRequest(request).toString('hex')).toBe(
    '0100010007000000fa00000000000000' + '040302010500030005030000',
  );
});

describe('what is not exactly right is refused', () => {
  const decoders = { decodeRequest, decodeReport, decodePages, decodePiece, decodeProbe };

  test.each(Object.entries(decoders))(
    '%s takes no random bytes for more than they are',
    (_, decode) => {
      fc.assert(
        fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
          decode(Buffer.from(bytes)); // throws nothing
        }),
        runs,
      );
    },
  );

  test('a request of another length, of no run, with a byte in its unused fields', () => {
    const run = { layer: 3, page: 5, count: 5, pieces: 0, pieceCount: 0 };
    const request = { urgency: 0, delivery: 1, seen: 7, roundTripUs: 1, runs: [run] } as const;
    const body = encodeRequest(request);
    expect(decodeRequest(body)).toEqual(request);
    expect(decodeRequest(encodeRequest({ ...request, runs: [] }))).toBeUndefined();
    expect(decodeRequest(body.subarray(1))).toBeUndefined();
    expect(decodeRequest(Buffer.concat([body, Buffer.alloc(12)]))).toBeUndefined();
    for (const offset of [12, 15, 26, 27]) {
      const changed = Buffer.from(body);
      changed[offset] = 1;
      expect(decodeRequest(changed)).toBeUndefined();
    }
  });

  test('a request for more pages than a receiver waits for', () => {
    const request = (...counts: number[]) => {
      const run = { layer: 3, page: 5, pieces: 0, pieceCount: 0 };
      const runs = counts.map((count) => ({ ...run, count }));
      return encodeRequest({ urgency: 0, delivery: 0, seen: 0, roundTripUs: 0, runs });
    };
    expect(decodeRequest(request(DATAGRAM_PAGES_MAX))).toBeDefined();
    expect(decodeRequest(request(DATAGRAM_PAGES_MAX + 1))).toBeUndefined();
    expect(decodeRequest(request(DATAGRAM_PAGES_MAX, 1))).toBeUndefined();
  });

  test('more pages without data than one datagram may name', () => {
    const head = { sequence: 9, channel: CHANNEL.group, receiversLog2: 2, layer: 3 };
    const body = Buffer.alloc(100);
    const pages = (...counts: number[]) => {
      const runs = counts.map((count) => ({ page: 5, count, kind: PAGE_KIND.zero }));
      return decodePages(body.subarray(0, writePages(body, head, runs)));
    };
    expect(pages(DATAGRAM_PAGES_MAX)).toBeDefined();
    expect(pages(DATAGRAM_PAGES_MAX + 1)).toBeUndefined();
    expect(pages(DATAGRAM_PAGES_MAX, 1)).toBeUndefined();
  });

  test.each([
    ['of no page', { count: 0 }],
    ['beyond the last page', { page: 2 ** 32 - 1, count: 2 }],
    ['with pieces of no geometry', { pieces: 1, pieceCount: 0 }],
    ['with a geometry of no pieces', { pieces: 0, pieceCount: 3 }],
    ['with a piece that there is not', { pieces: 0b1000, pieceCount: 3 }],
    ['with too many pieces', { pieces: 1, pieceCount: PIECES_MAX + 1 }],
  ])('a request for a run %s', (_, wrong) => {
    const run = { layer: 3, page: 5, count: 5, pieces: 0, pieceCount: 0, ...wrong };
    const body = encodeRequest({ urgency: 0, delivery: 0, seen: 0, roundTripUs: 0, runs: [run] });
    expect(decodeRequest(body)).toBeUndefined();
  });
});

test.each([
  [1280, 1210, undefined],
  [1500, 1430, undefined],
  [4000, 1430, undefined],
  [9000, 1430, 8930],
  [65_536, 1430, 8930],
])(
  'of an interface of %i bytes, datagrams are of %i, and of %s where that comes',
  (mtu, ...sizes) => {
    const [usual, large] = sizes;
    expect(bodySizesFor(mtu)).toEqual({ usual, large });
  },
);

describe('the room for a body', () => {
  test.each([
    [1500, 4, 1430, 3],
    [1500, 6, 1410, 3],
    [1450, 4, 1380, 3],
    [1280, 6, 1190, 4],
    [9000, 4, 8930, 1],
    [65_536, 4, 65_465, 1],
  ] as const)('at an MTU of %i with IPv%i is %i bytes: %i pieces', (mtu, ip, bytes, pieces) => {
    const ipBytes = ip === 4 ? 20 : 40;
    expect(bodyBytesFor(mtu, ip)).toBe(bytes);
    expect(bytes + HEADER_BYTES + TAG_BYTES + ipBytes + 8).toBeLessThanOrEqual(mtu);
    expect(pieceCountFor(bytes)).toBe(pieces);
  });

  test('is never less than a request can name the pieces of', () => {
    expect(pieceCountFor(BODY_BYTES_MIN)).toBe(PIECES_MAX);
    expect(pieceCountFor(BODY_BYTES_MIN - 1)).toBeGreaterThan(PIECES_MAX);
  });
});

test('sequence numbers go round, without that of no datagram', () => {
  const last = 0xffff_ffff;
  const after = [nextSequence(NO_SEQUENCE), nextSequence(last - 1), nextSequence(last)];
  expect(after).toEqual([1, last, 1]);
  expect(aheadOf(1, last)).toBeGreaterThan(0);
  expect(aheadOf(last, 1)).toBeLessThan(0);
});
