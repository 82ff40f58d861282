// The cpio writer: its exact bytes, and that cpio(1) reads them.

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { type CpioEntry, encodeCpio, FileKind } from '../../packages/clone-agent/src/image/cpio.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-cpio-'));
afterAll(() => fs.rmSync(folder, { recursive: true, force: true }));

function cpio(parameters: string[], archive: Buffer): string {
  const options = { input: archive, encoding: 'utf8', cwd: folder } as const;
  return execFileSync('cpio', ['--quiet', ...parameters], options);
}

describe('encodeCpio', () => {
  it('writes the header, the name and the data as drawn, each padded to 4 bytes', () => {
    const archive = encodeCpio([
      { path: 'ab', mode: FileKind.regular | 0o644, data: Buffer.from('hello') },
    ]);
    const fields = [
      ...['00000001', '000081a4', '00000000', '00000000', '00000001', '00000000', '00000005'],
      ...['00000000', '00000000', '00000000', '00000000', '00000003', '00000000'],
    ];
    const trailer = [
      ...['00000000', '00000000', '00000000', '00000000', '00000001', '00000000', '00000000'],
      ...['00000000', '00000000', '00000000', '00000000', '0000000b', '00000000'],
    ];
    const expected = [
      `070701${fields.join('')}ab\0\0\0\0hello\0\0\0`,
      `070701${trailer.join('')}TRAILER!!!\0\0\0\0`,
    ];
    // 110 + 3 bytes of name are padded by 3, 5 bytes of data by 3, 110 + 11 by 3.
    expect(archive.toString('latin1')).toBe(expected.join(''));
    expect(archive.length % 4).toBe(0);
  });

  it('gives the same bytes for the same entries', () => {
    const entries: CpioEntry[] = [{ path: 'x', mode: FileKind.folder | 0o755 }];
    expect(encodeCpio(entries)).toEqual(encodeCpio(entries));
  });

  it.each(['', '/x', 'a//b', 'a/', '../x', 'a/./b', 'a\0b', 'TRAILER!!!', 'x'.repeat(4096)])(
    'refuses the path %j',
    (name) => {
      expect(() => encodeCpio([{ path: name, mode: FileKind.regular }])).toThrow();
    },
  );

  it('is unpacked by cpio(1) as it was', () => {
    const archive = encodeCpio([
      { path: 'bin', mode: FileKind.folder | 0o755 },
      { path: 'bin/run', mode: FileKind.regular | 0o755, data: Buffer.from('#!/bin/sh\n') },
      { path: 'bin/link', mode: FileKind.link | 0o777, data: Buffer.from('run') },
      { path: 'empty', mode: FileKind.regular | 0o600 },
    ]);
    cpio(['-id'], archive);
    expect(fs.readFileSync(path.join(folder, 'bin/run'), 'utf8')).toBe('#!/bin/sh\n');
    expect(fs.statSync(path.join(folder, 'bin/run')).mode & 0o777).toBe(0o755);
    expect(fs.readlinkSync(path.join(folder, 'bin/link'))).toBe('run');
    expect(fs.statSync(path.join(folder, 'empty')).size).toBe(0);
  });

  it('lists a device node with its numbers', () => {
    const mode = FileKind.characterDevice | 0o600;
    const archive = encodeCpio([{ path: 'console', mode, device: { major: 5, minor: 1 } }]);
    expect(cpio(['-tv'], archive)).toMatch(/^crw-------.* 5, +1 .*console$/m);
  });

  it('keeps any names and sizes apart', () => {
    const step = fc.stringMatching(/^[\w äß€+@%=-]{1,40}$/u);
    const name = fc.array(step, { minLength: 1, maxLength: 4 }).map((steps) => steps.join('/'));
    const file = fc.record({ name, data: fc.uint8Array({ maxLength: 40 }) });
    fc.assert(
      fc.property(fc.uniqueArray(file, { selector: (entry) => entry.name }), (files) => {
        const archive = encodeCpio(
          files.map((entry) => ({
            path: entry.name,
            mode: FileKind.regular | 0o644,
            data: entry.data,
          })),
        );
        expect(cpio(['-t'], archive)).toBe(files.map((entry) => `${entry.name}\n`).join(''));
      }),
      { numRuns: 30 },
    );
  });
});
