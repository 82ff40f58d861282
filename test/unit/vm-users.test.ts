// Which users QEMUs run as: never one that another living process has, and none where the agent may not
// give them. That QEMUs have them is seen in `test/vm/sandbox`.

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { kvmAccess, ownUser } from '../../packages/clone-agent/src/hypervisor/confinement.js';
import {
  BLOCK_USERS,
  VmUsers,
  whyNoUsers,
} from '../../packages/clone-agent/src/hypervisor/vm-users.js';
import { Openers } from '../../packages/clone-agent/src/pager/openers.js';

/** Of nobody else on this machine. */
const FIRST = 1_930_000_000 + (process.pid % 1000);
const isRoot = process.getuid?.() === 0;
const everybody = '         0          0 4294967295\n';
const range = { first: 1000, count: 10 };

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0)) await step();
});

async function claim(first: number): Promise<VmUsers> {
  const users = await VmUsers.claim(first);
  if (typeof users === 'string') throw new Error(users);
  undo.push(() => users[Symbol.dispose]());
  return users;
}

describe('rights', () => {
  const root = { capabilities: 0xffn, uidMap: everybody, gidMap: everybody };

  test('are those of root, for every user of the range', () => {
    expect(whyNoUsers(range, root)).toBeUndefined();
    expect(whyNoUsers(range, { ...root, uidMap: '0 1000 1005\n1005 7000 4\n' })).toContain('1000');
    expect(whyNoUsers(range, { ...root, gidMap: '0 100000 1009\n' })).toContain('user namespace');
    expect(whyNoUsers(range, { ...root, uidMap: '0 5 1\n1 100000 65536\n' })).toBeUndefined();
  });

  test('are missing without either capability', () => {
    for (const capabilities of [0n, 0x80n, 0x40n]) {
      expect(whyNoUsers(range, { ...root, capabilities })).toBe('the agent is not root');
    }
  });

  test('are not asked for where the owner wants none', async () => {
    expect(await VmUsers.claim(0)).toContain('vmUserFirst');
  });
});

describe.skipIf(!isRoot)(`users${isRoot ? '' : ' (skipped: not root)'}`, () => {
  test('are each given once, until they are given back', async () => {
    const users = await claim(FIRST);
    const taken = Array.from({ length: BLOCK_USERS }, () => users.take());
    expect(new Set(taken).size).toBe(BLOCK_USERS);
    expect(taken.every((user) => users.has(user))).toBe(true);
    expect(() => users.take()).toThrow(/taken/);
    users.giveBack(taken[77]!);
    expect(users.take()).toBe(taken[77]);
  });

  test('of two agents are not the same', async () => {
    const one = await claim(FIRST);
    const other = await claim(FIRST);
    expect(other.range.first).toBe(one.range.first + BLOCK_USERS);
    one[Symbol.dispose]();
    expect((await claim(FIRST)).range.first).toBe(one.range.first);
  });

  test('that a process of a dead agent still has are not given', async () => {
    const user = FIRST + 2;
    const child = spawn('sleep', ['1000'], { uid: user, gid: user });
    undo.push(() => child.kill('SIGKILL'));
    const users = await claim(FIRST);
    expect([users.take(), users.take(), users.take()]).toEqual([FIRST, FIRST + 1, FIRST + 3]);
  });

  test('are found again from the folder', () => {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-users-'));
    undo.push(() => fs.rmSync(folder, { recursive: true }));
    expect(ownUser(folder)).toBeUndefined();
    fs.chownSync(folder, 0, FIRST);
    expect(ownUser(folder)).toBe(FIRST);
    expect(ownUser(path.join(folder, 'gone'))).toBeUndefined();
  });
});

test('KVM is open to all, to a group, or to its owner alone', () => {
  const device = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-kvm-')), 'kvm');
  undo.push(() => fs.rmSync(path.dirname(device), { recursive: true }));
  fs.writeFileSync(device, '');
  const access = (mode: number) => {
    fs.chmodSync(device, mode);
    return kvmAccess(device);
  };
  expect([access(0o666), access(0o600)]).toEqual(['all', 'owner']);
  if (isRoot) {
    // A file of the group root says nothing of a group that QEMU could be in.
    expect(access(0o660)).toBe('owner');
    fs.chownSync(device, 0, 108);
    expect([access(0o660), access(0o640)]).toEqual([108, 'owner']);
  }
});

test('only the agent, and who was admitted, may open an object', () => {
  const run = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-openers-'));
  undo.push(() => fs.rmSync(run, { recursive: true }));
  fs.mkdirSync(path.join(run, 'openers'));
  fs.writeFileSync(path.join(run, 'openers', '1001'), 's1/disk0\ns12/ram\n');
  const openers = new Openers(run, 0);
  const may = (user: number) =>
    ['s1/disk0', 's12/ram', 's1/ram', 's2/ram'].map((object) => openers.mayOpen(user, object));
  expect(may(0)).toEqual([true, true, true, true]);
  expect(may(1001)).toEqual([true, true, false, false]);
  expect(may(1002)).toEqual([false, false, false, false]);
});
