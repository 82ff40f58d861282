// A VM for which a page of another host did not come is lost with the reason, whichever object the page is
// of; others of the same snapshot end for reasons of their own.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { QemuExit, QemuProcess } from '../../packages/clone-agent/src/hypervisor/qemu.js';
import { lostFile } from '../../packages/clone-agent/src/pager/snapshot-file.js';
import { goneSnapshot, type Snapshot } from '../../packages/clone-agent/src/store/snapshots.js';
import { Vm } from '../../packages/clone-agent/src/vms/vm.js';

const KILLED: QemuExit = { code: null, signal: 'SIGKILL', words: '' };
const BUS_ERROR: QemuExit = { code: null, signal: 'SIGBUS', words: '' };
const WHY = 'host alpha, which has the page of s1, does not answer';
const OTHER = { how: 'lost', reason: 'QEMU was killed by SIGBUS' };

let snapshots: string;
beforeEach(() => {
  snapshots = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-lost-'));
  for (const id of ['s1', 's0.disks']) fs.mkdirSync(path.join(snapshots, id));
});
afterEach(() => fs.rmSync(snapshots, { recursive: true }));

/** Its RAM is its own, its disk is unchanged since another. */
function base(): Snapshot {
  const gone = goneSnapshot('s1', {} as never);
  const objects = [
    { name: 'ram', sizeBytes: 4096, map: 'ram.map', layers: ['l1'] },
    { name: 'disk0', sizeBytes: 4096, from: 's0.disks/disk0' },
  ];
  const folder = path.join(snapshots, 's1');
  return { ...gone, folder, file: { ...gone.file, objects } } as Snapshot;
}

function start(pid: number) {
  let exit!: (exit: QemuExit) => void;
  let failDisk!: () => void;
  const exited = new Promise<QemuExit>((resolve) => {
    exit = resolve;
  });
  const qemu = {
    pid,
    exited,
    kill: async () => exit(KILLED),
    onDiskError: (listener: () => void) => {
      failDisk = listener;
    },
  } as unknown as QemuProcess;
  const vm = new Vm(`v${pid}`, { image: 'minimal' }, base(), qemu, { ended() {} });
  return { vm, exit, failDisk };
}

function lose(snapshot: string, pid: number, reason = WHY): string {
  const file = path.join(snapshots, snapshot, lostFile(pid));
  fs.writeFileSync(file, reason);
  return file;
}

test('a page of its RAM, which ends its QEMU, is the reason for one VM', async () => {
  const [one, other] = [start(101), start(102)];
  const file = lose('s1', 101);
  for (const { exit } of [other, one]) exit(BUS_ERROR);
  expect(await one.vm.ended).toEqual({ how: 'lost', reason: WHY });
  expect(await other.vm.ended).toEqual(OTHER);
  expect(fs.existsSync(file)).toBe(false);
  const later = start(101);
  later.exit(BUS_ERROR);
  expect(await later.vm.ended).toEqual(OTHER);
});

test('a page of its disk, for which its QEMU stops, is the reason too', async () => {
  const { vm, failDisk } = start(101);
  lose('s0.disks', 101);
  failDisk();
  expect(await vm.ended).toEqual({ how: 'lost', reason: WHY });
});

test('a disk that can not be read for another reason is no less the end', async () => {
  const { vm, failDisk } = start(101);
  failDisk();
  expect(await vm.ended).toEqual({ how: 'lost', reason: 'its disk could not be read' });
});

test('a reason for which there was no room is none', async () => {
  const { vm, exit } = start(101);
  lose('s1', 101, '');
  exit(BUS_ERROR);
  expect(await vm.ended).toEqual(OTHER);
});
