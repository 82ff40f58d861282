// READs that wait for another host: each is answered, with an error when its page does not come,
// whatever else goes wrong then.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { DeferredReads } from '../../packages/clone-agent/src/pager/deferred-reads.js';
import { newRequestHeader } from '../../packages/clone-agent/src/pager/fuse-wire.js';
import { Outcome, type PageServer } from '../../packages/clone-agent/src/pager/page-server.js';
import {
  LostPageError,
  type PageListener,
  type RemotePages,
} from '../../packages/clone-agent/src/pager/remote-pages.js';
import type { FuseReplies } from '../../packages/clone-agent/src/pager/session.js';
import { lostFile } from '../../packages/clone-agent/src/pager/snapshot-file.js';

const NODE = 35;
const { EIO } = os.constants.errno;
const PAGE = { offset: 4096, sizeBytes: 4096 };

let runFolder: string;
beforeEach(() => {
  runFolder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-deferred-'));
});
afterEach(() => fs.rmSync(runFolder, { recursive: true }));

/** A pager's READs, of which the one page that is asked for never comes. */
function newReads() {
  const answers: number[] = [];
  const complaints: string[] = [];
  const waiting: PageListener[] = [];
  const shared = { nodeid: NODE, snapshot: 's1', name: 'ram' };
  const reads = new DeferredReads({
    server: {
      objects: new Map([[NODE, { shared }]]),
      read: () => Outcome.wouldWait,
    } as unknown as PageServer,
    registry: undefined as never,
    remote: {
      fetchOne: (_node: number, _page: number, _isAsked: boolean, listener: PageListener) => {
        waiting.push(listener);
        return true;
      },
    } as unknown as RemotePages,
    replies: {
      error: (_header: unknown, errno: number) => void answers.push(errno),
    } as unknown as FuseReplies,
    answered: () => undefined,
    complain: (message) => void complaints.push(message),
    runFolder,
  });
  const read = (pid: number) => {
    const header = { ...newRequestHeader(), nodeid: NODE, pid };
    reads.take({ header, wanted: PAGE, startedAt: 0, isAsked: false });
  };
  const lose = (reason: string) => {
    for (const { settled } of waiting.splice(0)) settled(new LostPageError(reason));
  };
  return { read, lose, answers, complaints };
}

test('a READ is answered also when the reason can not be written', () => {
  const { read, lose, answers, complaints } = newReads();
  read(process.pid);
  lose('host alpha does not answer');
  expect(answers).toEqual([EIO]);
  expect(complaints.join()).toMatch('host alpha does not answer');
});

test('why a page did not come is written for the process that read it', () => {
  const { read, lose } = newReads();
  const folder = path.join(runFolder, 'snapshots', 's1');
  fs.mkdirSync(folder, { recursive: true });
  read(process.pid);
  lose('host alpha does not answer');
  expect(fs.readdirSync(folder)).toEqual([lostFile(process.pid)]);
  expect(fs.readFileSync(path.join(folder, lostFile(process.pid)), 'utf8')).toBe(
    'host alpha does not answer',
  );
});
