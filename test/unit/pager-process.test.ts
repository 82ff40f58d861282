// The pager as a process, with a pipe in the place of /dev/fuse: it ends when it can't go on, so that
// another is started.

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { LISTENING_LINE } from '@snowfork/memserver/control';
import { expect, test } from 'vitest';
import { SERVING_THREADS } from '../../packages/clone-agent/src/pager/thread-data.js';
import { eventually } from '../support/eventually.js';

const MAIN = fileURLToPath(
  new URL('../../packages/clone-agent/dist/pager/main.js', import.meta.url),
);
const FUSE = 3;

/** How many threads of the process block in a system call on its `/dev/fuse`. */
function threadsThatRead(pid: number): number {
  const calls = fs
    .readdirSync(`/proc/${pid}/task`)
    .map((thread) => fs.readFileSync(`/proc/${pid}/task/${thread}/syscall`, 'utf8'));
  return calls.filter((call) => call.split(' ')[1] === `0x${FUSE}`).length;
}

for (const [what, code] of [
  ['an error that nobody caught', 'throw new Error("of a test")'],
  ['a rejection that nobody caught', 'Promise.reject(new Error("of a test"))'],
] as const) {
  test(`it ends at ${what}, though its threads block`, async () => {
    const run = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-pager-'));
    for (const folder of ['snapshots', 'layers']) fs.mkdirSync(path.join(run, folder));
    const pipe = path.join(run, 'pipe');
    execFileSync('mkfifo', [pipe]);
    // A reader blocks, as there is one who may write.
    const descriptor = fs.openSync(pipe, 'r+');
    // In the main thread, on a signal.
    const fault = `import { isMainThread } from 'node:worker_threads';
      if (isMainThread) process.on('SIGUSR2', () => { ${code}; });`;
    const pager = spawn(
      process.execPath,
      [
        ...['--import', `data:text/javascript,${encodeURIComponent(fault)}`],
        ...[MAIN, '--fuse-fd', String(FUSE), '--run', run],
      ],
      { stdio: ['ignore', 'pipe', 'pipe', descriptor] },
    );
    try {
      let words = '';
      pager.stderr!.on('data', (chunk) => {
        words += chunk;
      });
      const [said] = await once(pager.stdout!, 'data');
      expect(String(said)).toMatch(LISTENING_LINE);
      await eventually(() => expect(threadsThatRead(pager.pid!)).toBe(SERVING_THREADS));
      const closed = once(pager, 'close');
      pager.kill('SIGUSR2');
      expect(await closed).toEqual([1, null]);
      expect(words).toMatch('pager: failed: Error: of a test');
    } finally {
      pager.kill('SIGKILL');
      fs.closeSync(descriptor);
      fs.rmSync(run, { recursive: true });
    }
  });
}
