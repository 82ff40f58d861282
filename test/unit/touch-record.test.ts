// The record of what clones of a snapshot touched first.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { PAGE_BYTES } from '@snowfork/memserver';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  closeTouchRecord,
  openTouchRecord,
  TOUCHES_MAX,
  TouchRecord,
} from '../../packages/clone-agent/src/pager/touch-record.js';

const SIZE_BYTES = 200_000 * PAGE_BYTES;

let folder: string;
let file: string;
beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-touches-'));
  file = path.join(folder, 'ram.touched');
});
afterEach(() => fs.rmSync(folder, { recursive: true }));

/** Runs it with the record open. */
function withRecord<T>(of: (record: TouchRecord) => T, path = file, sizeBytes = SIZE_BYTES): T {
  const mapped = openTouchRecord(path, sizeBytes);
  try {
    return of(new TouchRecord(mapped));
  } finally {
    closeTouchRecord(mapped);
  }
}
const pagesOf = (path = file, sizeBytes = SIZE_BYTES) =>
  withRecord((record) => [...record.pages()], path, sizeBytes);

describe('the record of first touches', () => {
  it('has them in their order, also for the next who opens it, each once', () => {
    withRecord((record) => {
      for (const page of [7, 3, 199_999, 3, 0]) record.add(page);
    });
    expect(pagesOf()).toEqual([7, 3, 199_999, 0]);
  });

  it('takes so many and no more', () => {
    withRecord((record) => {
      for (let page = 0; page < TOUCHES_MAX + 10; page++) record.add(page);
      expect(record.size).toBe(TOUCHES_MAX);
    });
    expect(pagesOf()).toHaveLength(TOUCHES_MAX);
  });

  it('leaves room for new ones when it inherits', () => {
    withRecord((record) => {
      record.inherit(Array.from({ length: TOUCHES_MAX }, (_, page) => page));
      expect(record.size).toBe((TOUCHES_MAX * 3) / 4);
      expect(record.pages()[0]).toBe(TOUCHES_MAX / 4);
    });
  });

  it('has what was confirmed instead of what it inherited, and goes on from there', () => {
    withRecord((record) => {
      record.inherit([1, 2, 3, 4]);
      record.add(50);
      record.confirm([4, 2, 60, 50]);
      expect([...record.pages()]).toEqual([4, 2, 60, 50]);
      record.add(70);
      record.confirm([3, 2]);
      expect([...record.pages()]).toEqual([4, 2, 60, 50, 70, 3]);
    });
  });

  it('keeps what was waited for when there is nothing inherited', () => {
    withRecord((record) => {
      record.add(9);
      record.confirm([8, 9]);
      expect([...record.pages()]).toEqual([9, 8]);
    });
  });

  it('of a folder that was copied by links is that folder’s own', () => {
    withRecord((record) => record.add(1));
    const copy = path.join(folder, 'copy.touched');
    fs.linkSync(file, copy);
    withRecord((record) => {
      record.add(2);
      expect(pagesOf(copy)).toEqual([1]);
    });
    expect(pagesOf()).toEqual([1, 2]);
  });

  it('that is no record, or of a larger memory, gives no page that is not there', () => {
    fs.writeFileSync(file, 'nothing');
    expect(pagesOf()).toEqual([]);
    fs.writeFileSync(file, Buffer.alloc((1 + TOUCHES_MAX) * 4, 0xff));
    expect(pagesOf()).toEqual([]);
    fs.rmSync(file);
    withRecord((record) => {
      for (const page of [1, 10]) record.add(page);
    });
    expect(pagesOf(file, 10 * PAGE_BYTES)).toEqual([1]);
  });
});
