// What goes packed with a snapshot to other hosts.

import { deflateRawSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LIKELY_PAGES_MAX } from '../../packages/clone-agent/src/pager/first-touches.js';
import {
  packDeviceState,
  packTouches,
  unpackDeviceState,
  unpackTouches,
} from '../../packages/clone-agent/src/store/descriptor.js';

const page = fc.integer({ min: 0, max: 2 ** 35 - 1 });

describe('first touches on their way to another host', () => {
  it('come as they were, in their order', () => {
    fc.assert(
      fc.property(fc.array(page), (pages) => {
        expect(unpackTouches(packTouches(pages))).toEqual(pages);
      }),
    );
  });

  it('are as many as are wanted, the first of them', () => {
    const pages = Array.from({ length: LIKELY_PAGES_MAX + 1 }, (_, index) => index * 3);
    expect(unpackTouches(packTouches(pages))).toEqual(pages.slice(0, LIKELY_PAGES_MAX));
  });

  it('take two bytes a page when half of them follow the page before', () => {
    const pages: number[] = [];
    for (let run = 0; run < 10_000; run++) {
      const first = (run * 7919 * 64) % 262_144;
      pages.push(first, first + 1);
    }
    expect(packTouches(pages).length).toBeLessThan(2 * pages.length);
  });

  it('that are none are refused, whatever they are', () => {
    const refusal = expect.objectContaining({ code: 'SF_BAD_REQUEST' });
    const refused = (encoded: number[]) => deflateRawSync(Buffer.from(encoded));
    expect(() => unpackTouches(refused([0x80]))).toThrow(refusal); // more should follow
    expect(() => unpackTouches(refused([0x01]))).toThrow(refusal); // page -1
    expect(() => unpackTouches(refused(new Array(9).fill(0xff)))).toThrow(refusal);
    expect(() => unpackTouches(refused(new Array(LIKELY_PAGES_MAX + 1).fill(0)))).toThrow(refusal);
    expect(() => unpackTouches(refused(new Array(LIKELY_PAGES_MAX * 7).fill(0)))).toThrow(refusal);
    fc.assert(
      fc.property(fc.uint8Array(), (bytes) => {
        try {
          for (const one of unpackTouches(bytes)) expect(one).toBeGreaterThanOrEqual(0);
        } catch (error) {
          expect(error).toEqual(refusal);
        }
      }),
    );
  });
});

describe('device state on its way to another host', () => {
  it('comes as it was', () => {
    fc.assert(
      fc.property(fc.uint8Array(), (bytes) => {
        const state = Buffer.from(bytes);
        expect(unpackDeviceState(packDeviceState(state))).toEqual(state);
      }),
    );
  });

  it('that is none, or has no end, is refused', () => {
    const refusal = expect.objectContaining({ code: 'SF_BAD_REQUEST' });
    expect(() => unpackDeviceState(Buffer.from('nothing deflated'))).toThrow(refusal);
    const bomb = deflateRawSync(Buffer.alloc(64 * 1024 * 1024 + 1));
    expect(() => unpackDeviceState(bomb)).toThrow(refusal);
  });
});
