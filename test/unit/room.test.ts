// Room: never more VMs than fit if each grows to its full size.

import os from 'node:os';
import { describe, expect, it } from 'vitest';
import { commitBytes, type Occupant, Room } from '../../packages/clone-agent/src/vms/room.js';

const MiB = 1024 * 1024;
const machine = {
  qemuVersion: '7.2.22',
  machineType: 'pc-q35-7.2',
  accelerator: 'tcg',
  cpuModel: 'qemu64',
  memoryBytes: 256 * MiB,
  vcpus: 1,
} as const;

function room(of: { reservedBytes?: number; vmsMax?: number }, occupants: Occupant[] = []): Room {
  const { reservedBytes = 0, vmsMax = 4096 } = of;
  return new Room({ reservedBytes, vmsMax }, () => occupants);
}

describe('room', () => {
  it('is given in whole VMs, each at its full size', () => {
    const all = room({}).measure();
    const few = room({ reservedBytes: all.availableBytes - 10.5 * commitBytes(machine) });
    const { granted, reason } = few.reserve(1000, machine);
    expect(granted).toBeGreaterThan(0);
    expect(granted).toBeLessThan(20);
    expect(reason).toMatch(/^memory for \d+ of 1000: a VM of this image may take \d+ MiB/);
  });

  it('that is reserved is nobody else’s until it is released', () => {
    const rooms = room({ vmsMax: 5 });
    const first = rooms.reserve(3, machine);
    expect(first).toMatchObject({ granted: 3 });
    expect(first.reason).toBeUndefined();
    expect(rooms.measure().promisedBytes).toBe(3 * commitBytes(machine));
    expect(rooms.reserve(3, machine)).toMatchObject({ granted: 2 });
    first.release(1);
    first.release(1000);
    expect(rooms.reserve(9, machine)).toMatchObject({ granted: 3 });
  });

  it('counts what a running VM may still grow by', () => {
    const mine = room({}, [{ pid: process.pid, machine }]).measure();
    const starting = room({}, [{ pid: undefined, machine }]).measure();
    expect(starting.promisedBytes).toBe(commitBytes(machine));
    expect(mine.promisedBytes).toBeLessThan(commitBytes(machine));
  });

  it('is none when nothing is left', () => {
    const { granted, reason } = room({ reservedBytes: os.totalmem() }).reserve(1, machine);
    expect(granted).toBe(0);
    expect(reason).toContain('memory for 0 of 1');
  });

  it('leaves out what the caller is about to use', () => {
    const { availableBytes } = room({}).measure();
    expect(room({}).reserve(1, machine, availableBytes).granted).toBe(0);
  });
});
