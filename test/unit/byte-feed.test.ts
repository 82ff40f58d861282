// Consoles and logs: the last bytes are kept, however they come, and no more than that.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ownBytes, RingFeed } from '../../packages/clone-agent/src/guest/byte-feed.js';

describe('a feed', () => {
  it('has the last bytes as its history, whatever the pieces', () => {
    const chunk = fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes));
    fc.assert(
      fc.property(
        fc.array(chunk, { maxLength: 60 }),
        fc.integer({ min: 1, max: 200 }),
        (all, max) => {
          const feed = new RingFeed(max);
          const heard: Buffer[] = [];
          feed.subscribe((bytes) => bytes !== undefined && heard.push(bytes));
          for (const bytes of all) feed.push(bytes);
          expect(feed.history).toEqual(Buffer.concat(all).subarray(-max));
          expect(Buffer.concat(heard)).toEqual(Buffer.concat(all));
        },
      ),
    );
  });

  it('takes a flood of single bytes for what it is', () => {
    const feed = new RingFeed(1000);
    for (let at = 0; at < 100_000; at++) feed.push(Buffer.of(at % 256));
    const expected = Array.from({ length: 1000 }, (_, at) => (99_000 + at) % 256);
    expect([...feed.history]).toEqual(expected);
  });

  it('keeps less when it is told to, of what was and of what comes', () => {
    const feed = new RingFeed(1000);
    feed.push(Buffer.from('first words, '));
    feed.shrink(10);
    expect(feed.history.toString()).toBe('st words, ');
    feed.shrink(100);
    feed.push(Buffer.from('last words'));
    expect(feed.history.toString()).toBe('last words');
  });

  it('keeps none of the memory that bytes were read with', () => {
    const read = Buffer.alloc(65_536, 7);
    expect(ownBytes(read)).toBe(read);
    const own = ownBytes(read.subarray(10, 20));
    expect(own).toEqual(Buffer.alloc(10, 7));
    expect(own.buffer.byteLength).toBe(10);
  });

  it('tells its end to those who listen and to those who come later, once', () => {
    const feed = new RingFeed(10);
    const heard: (string | undefined)[] = [];
    const listen = (bytes: Buffer | undefined) => heard.push(bytes?.toString());
    const leave = feed.subscribe(() => heard.push('never'));
    leave();
    feed.subscribe(listen);
    feed.push(Buffer.from('a'));
    feed.end();
    feed.end();
    feed.push(Buffer.from('b'));
    feed.subscribe(listen);
    expect(heard).toEqual(['a', undefined, undefined]);
    expect(feed.history.toString()).toBe('a');
  });
});
