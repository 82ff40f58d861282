// System calls that the agent makes through the C library. Each runs in a process of its own: the filter
// cannot be taken back.

import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { lowerPriority, restorePriority } from '../../packages/clone-agent/src/system/priority.js';

const repository = path.resolve(import.meta.dirname, '../..');
const seccomp = path.join(repository, 'packages/clone-agent/src/system/seccomp.ts');
const isRoot = process.getuid?.() === 0;

/** Maps memory, advises huge pages, and prints the answer and whether the mapping got the flag. */
const ADVISE = `
  import fs from 'node:fs';
  import koffi from 'koffi';
  const libc = koffi.load('libc.so.6');
  const mmap = libc.func('intptr_t mmap(intptr_t, size_t, int, int, int, long)');
  const madvise = libc.func('int madvise(intptr_t, size_t, int)');
  const bytes = 64 * 1024 * 1024;
  const at = mmap(0, bytes, 3, 0x22, -1, 0);
  const answer = madvise(at, bytes, 14);
  const other = madvise(at + 1, bytes, 4);
  const smaps = fs.readFileSync('/proc/self/smaps', 'latin1');
  const flags = [...smaps.matchAll(/^Size: +(\\d+) kB[^]*?^VmFlags: (.*)$/gm)];
  const huge = flags.some(([, kib, vm]) => Number(kib) >= bytes / 1024 && vm.includes('hg'));
  console.log(JSON.stringify({ answer, other, huge }));
`;

function run(script: string): string {
  const parameters = ['--import', 'tsx', '--input-type=module', '--eval', script];
  const child = spawnSync(process.execPath, parameters, { cwd: repository, encoding: 'utf8' });
  expect(child.stderr).toBe('');
  return child.stdout.trim();
}

describe.skipIf(process.arch !== 'x64' || !isRoot)('ignoreHugePageAdvice', () => {
  it('without it the advice is taken', () => {
    expect(JSON.parse(run(ADVISE))).toEqual({ answer: 0, other: -1, huge: true });
  });

  it('makes the advice succeed and do nothing, in this process and its children', () => {
    const install = `
      import { spawnSync } from 'node:child_process';
      import { ignoreHugePageAdvice } from ${JSON.stringify(seccomp)};
      if (!ignoreHugePageAdvice() || !ignoreHugePageAdvice()) throw new Error('not installed');
    `;
    const ignored = { answer: 0, other: -1, huge: false };
    expect(JSON.parse(run(install + ADVISE))).toEqual(ignored);
    const child = `
      const parameters = ['--input-type=module', '--eval', ${JSON.stringify(ADVISE)}];
      console.log(spawnSync(process.execPath, parameters, { encoding: 'utf8' }).stdout);
    `;
    expect(JSON.parse(run(install + child))).toEqual(ignored);
  });
});

describe('priority', () => {
  it('of a process that has gone is nobody’s trouble', () => {
    const { pid } = spawnSync('/bin/true');
    expect(() => lowerPriority(pid)).not.toThrow();
    expect(() => restorePriority(pid)).not.toThrow();
  });
});
