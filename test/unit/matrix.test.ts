// The table of the matrix of versions, as it is kept in SPECIFICATION.md.

import { describe, expect, it } from 'vitest';
import { MATRIX_END, MATRIX_START, updateTable } from '../matrix/table.js';

const empty = `before\n${MATRIX_START}\n${MATRIX_END}\nafter\n`;
const counts = { passed: 140, failed: 0, skipped: 1, date: '2026-01-31' };

function rowsOf(document: string): string[] {
  return document.split('\n').filter((line) => /^\| \d/.test(line));
}

describe('updateTable', () => {
  it('writes a row a cell, in the order of the versions, and leaves the rest alone', () => {
    const document = updateTable(empty, [
      { qemu: '10.0.2', kernel: '6.12.95+deb12-cloud-amd64', ...counts },
      { qemu: '7.2.22', kernel: '6.12.95+deb12-cloud-amd64', ...counts },
      { qemu: '7.2.22', kernel: '6.1.0-56-cloud-amd64', ...counts },
    ]);
    expect(rowsOf(document)).toEqual([
      '| 7.2.22 | 6.1.0-56-cloud-amd64 | 140 | 0 | 1 | 2026-01-31 |',
      '| 7.2.22 | 6.12.95+deb12-cloud-amd64 | 140 | 0 | 1 | 2026-01-31 |',
      '| 10.0.2 | 6.12.95+deb12-cloud-amd64 | 140 | 0 | 1 | 2026-01-31 |',
    ]);
    expect(document).toMatch(/^before\n/);
    expect(document).toMatch(/\nafter\n$/);
  });

  it('replaces the row of a cell that was run again, also of another patch', () => {
    const first = updateTable(empty, [
      { qemu: '7.2.22', kernel: '6.1.0-50-cloud-amd64', ...counts },
      { qemu: '10.0.2', kernel: '6.1.0-50-cloud-amd64', ...counts },
    ]);
    const again = { qemu: '7.2.23', kernel: '6.1.0-56-cloud-amd64', ...counts, failed: 2 };
    expect(rowsOf(updateTable(first, [again]))).toEqual([
      '| 7.2.23 | 6.1.0-56-cloud-amd64 | 140 | 2 | 1 | 2026-01-31 |',
      '| 10.0.2 | 6.1.0-50-cloud-amd64 | 140 | 0 | 1 | 2026-01-31 |',
    ]);
  });

  it('refuses a document without a place for it', () => {
    expect(() => updateTable('nothing', [])).toThrow('no <!-- matrix');
  });
});
