// The warm pool with processes that only pretend: what it keeps, what it hands out, and when it rests.

import { SnowforkError } from '@snowfork/sdk/api';
import { describe, expect, it } from 'vitest';
import type { MachineShape } from '../../packages/clone-agent/src/hypervisor/arguments.js';
import {
  type PooledProcess,
  SHAPES_MAX,
  WarmPool,
} from '../../packages/clone-agent/src/hypervisor/pool.js';

class FakeProcess implements PooledProcess {
  // Above any real pid, so that priorities and statistics touch nothing.
  readonly pid = 2 ** 30;
  readonly shape: MachineShape;
  readonly background: boolean;
  readonly #ended = new AbortController();

  constructor(shape: MachineShape, background: boolean) {
    this.shape = shape;
    this.background = background;
  }

  get ended(): AbortSignal {
    return this.#ended.signal;
  }

  foreground(): void {}

  async kill(): Promise<void> {
    this.#ended.abort();
  }
}

function shape(memoryBytes: number): MachineShape {
  return {
    machineType: 'pc-q35-7.2',
    accelerator: 'tcg',
    cpuModel: 'qemu64',
    memoryBytes,
    vcpus: 1,
    diskPath: undefined,
  };
}

function makePool(size: number, options: { fail?: () => boolean } = {}) {
  const started: FakeProcess[] = [];
  const errors: SnowforkError[] = [];
  let starting = 0;
  let startingMax = 0;
  const pool = new WarmPool<FakeProcess>({
    size,
    onError: (error) => errors.push(error),
    start: async (wanted, { background }) => {
      startingMax = Math.max(startingMax, ++starting);
      await new Promise((resolve) => setImmediate(resolve));
      starting -= 1;
      if (options.fail?.()) throw new SnowforkError('SF_QEMU_FAILED', 'no');
      const qemu = new FakeProcess(wanted, background);
      started.push(qemu);
      return qemu;
    },
  });
  const alive = () => started.filter((qemu) => !qemu.ended.aborted);
  return { pool, started, alive, errors, startingMax: () => startingMax };
}

const never = new AbortController().signal;
const small = shape(1);
const large = shape(2);

describe('WarmPool', () => {
  it('keeps so many of each wanted shape, started one at a time in the background', async () => {
    const { pool, started, startingMax } = makePool(3);
    pool.want(small);
    pool.want(large);
    await pool.settled();
    expect(pool.stats()).toMatchObject({ size: 3, ready: 6 });
    expect(started.every(({ background }) => background)).toBe(true);
    expect(startingMax()).toBe(1);
    await pool[Symbol.asyncDispose]();
  });

  it('hands out warm ones of the shape, then starts, and fills up again', async () => {
    const { pool, started } = makePool(2);
    pool.want(small);
    await pool.settled();
    const takes = await Promise.all([1, 2, 3].map(() => pool.take(small, never)));
    expect(takes.map(({ warm }) => warm)).toEqual([true, true, false]);
    expect(takes[2]!.qemu.background).toBe(false);
    expect(new Set(takes.map(({ qemu }) => qemu)).size).toBe(3);
    expect((await pool.take(large, never)).qemu.shape).toBe(large);
    await pool.settled();
    expect(pool.stats().ready).toBe(2);
    expect(started).toHaveLength(6);
    await pool[Symbol.asyncDispose]();
  });

  it('starts nothing while a fork is under way', async () => {
    const { pool, started } = makePool(2);
    pool.pause();
    pool.pause();
    pool.want(small);
    pool.resume();
    await pool.settled();
    expect(started).toHaveLength(0);
    pool.resume();
    await pool.settled();
    expect(started).toHaveLength(2);
    await pool[Symbol.asyncDispose]();
  });

  it('never hands out one that died waiting', async () => {
    const { pool, started } = makePool(2);
    pool.want(small);
    await pool.settled();
    await started[0]!.kill();
    expect(pool.stats().ready).toBe(1);
    const { qemu } = await pool.take(small, never);
    expect(qemu).toBe(started[1]);
    await pool[Symbol.asyncDispose]();
  });

  it('rests after a failed start, and reports it', async () => {
    let isBroken = true;
    const { pool, started, errors } = makePool(1, { fail: () => isBroken });
    pool.want(small);
    await pool.settled();
    expect(errors).toHaveLength(1);
    isBroken = false;
    pool.want(small);
    await pool.settled();
    expect(started).toHaveLength(0);
    expect((await pool.take(small, never)).warm).toBe(false);
    await pool[Symbol.asyncDispose]();
  });

  it('says nothing of a start that failed as its disks went, and starts the others', async () => {
    let fails = true;
    const { pool, alive, errors } = makePool(1, {
      fail: () => {
        if (!fails) return false;
        pool.dropDisks('/mnt/s7');
        fails = false;
        return true;
      },
    });
    pool.want(small);
    pool.want({ ...large, diskPath: '/mnt/s7/disk0' });
    await pool.settled();
    expect(errors).toEqual([]);
    expect(alive().map(({ shape }) => shape)).toEqual([small]);
    await pool[Symbol.asyncDispose]();
  });

  it('bounds the shapes that it keeps, and ends those of the one wanted longest ago', async () => {
    const { pool, alive } = makePool(1);
    for (let index = 0; index <= SHAPES_MAX; index++) pool.want(shape(index));
    await pool.settled();
    const kept = alive().map((qemu) => qemu.shape.memoryBytes);
    expect(kept.toSorted((a, b) => a - b)).toEqual(
      Array.from({ length: SHAPES_MAX }, (_, i) => i + 1),
    );
    await pool[Symbol.asyncDispose]();
  });

  it('ends all that it holds, and nothing that was taken', async () => {
    const { pool, alive } = makePool(2);
    pool.want(small);
    await pool.settled();
    const { qemu } = await pool.take(small, never);
    await pool[Symbol.asyncDispose]();
    expect(alive()).toEqual([qemu]);
    await pool.settled();
    expect(alive()).toEqual([qemu]);
  });
});
