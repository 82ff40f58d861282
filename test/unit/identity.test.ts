// What the guest SDK renews after a fork, as far as one process shows it: the generators themselves,
// and when they and the hooks have their turn. That clones differ is tested in real VMs.

import { randomInt, randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { encodeLines, FrameType, MESSAGE_BYTES_MAX } from '../../packages/sdk/src/api/port.js';
import { decodeValue, encodeValue } from '../../packages/sdk/src/api/value.js';
import { renewGenerators } from '../../packages/sdk/src/guest/generators.js';
import { createRandom } from '../../packages/sdk/src/guest/random.js';
import { type FramePeer, FrameServer } from '../support/fake-port.js';

describe('Math.random', () => {
  const seedOf = (...words: number[]) => Buffer.from(new Uint32Array(words).buffer);

  test('is xoshiro128**', () => {
    // Of the reference implementation, from the state 1, 2, 3, 4: 11520, 0, 5927040, 70819200.
    const { next } = createRandom(seedOf(1, 2, 3, 4));
    expect(next()).toBe(((11_520 >>> 5) * 2 ** 26 + 0) / 2 ** 53);
    expect(next()).toBe(((5_927_040 >>> 5) * 2 ** 26 + (70_819_200 >>> 6)) / 2 ** 53);
  });

  test('gives numbers from 0 to below 1 whatever the seed, spread evenly', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), (seed) => {
        const { next } = createRandom(seed);
        for (let warmUp = 0; warmUp < 20; warmUp++) next();
        let sum = 0;
        for (let count = 0; count < 2000; count++) {
          const value = next();
          if (value < 0 || value >= 1) return false;
          sum += value;
        }
        return Math.abs(sum / 2000 - 0.5) < 0.06;
      }),
    );
  });

  test('can be used as the one that it stands in for', () => {
    expect(Math.random.name).toBe('random');
    expect(Math.random.length).toBe(0);
    expect(Object.getOwnPropertyNames(Math.random)).not.toContain('prototype');
    expect(() => Reflect.construct(Math.random, [])).toThrow(TypeError);
    const { writable, configurable, enumerable } = Object.getOwnPropertyDescriptor(Math, 'random')!;
    expect({ writable, configurable, enumerable }).toEqual({
      ...{ writable: true, configurable: true, enumerable: false },
    });
  });

  test('stays what it is where somebody has set it', async () => {
    const own = () => 0.25;
    vi.spyOn(Math, 'random').mockImplementation(own);
    const set = Math.random;
    vi.resetModules();
    await import('../../packages/sdk/src/guest/generators.js');
    expect(Math.random).toBe(set);
    vi.restoreAllMocks();
  });
});

describe('renewGenerators', () => {
  test('Math.random goes on from a new seed', () => {
    const { random } = Math;
    const drawn = new Set<number>();
    for (let count = 0; count < 50; count++) {
      renewGenerators();
      drawn.add(random());
    }
    expect(drawn.size).toBe(50);
  });

  test('nothing of the store of randomInt is left', () => {
    const store = storeOf(() => randomInt(2), 'readUIntBE');
    const before = Buffer.from(store);
    renewGenerators();
    expect(store.length).toBe(6144);
    expect(sharedParts(before, store, 6)).toBe(0);
  });

  test('nothing of the store of randomUUID is left', () => {
    const typedArray = Object.getPrototypeOf(Uint8Array.prototype) as Uint8Array;
    const read = vi.spyOn(typedArray, 'byteLength', 'get');
    for (let count = 0; count <= 128; count++) randomUUID();
    const stores = read.mock.contexts as Uint8Array[];
    const store = stores.find(({ length }) => length === 2048)!;
    read.mockRestore();
    const before = Buffer.from(store);
    renewGenerators();
    expect(sharedParts(before, store, 16)).toBe(0);
  });

  test('leaves nothing changed behind that it had to look through', () => {
    const typedArray = Object.getPrototypeOf(Uint8Array.prototype) as object;
    const { get } = Object.getOwnPropertyDescriptor(typedArray, 'byteLength')!;
    expect(Function.prototype.toString.call(get)).toContain('[native code]');
    expect(Buffer.prototype.readUIntBE.name).toBe('readUIntBE');
    expect(Buffer.from([1, 2, 3]).readUIntBE(0, 3)).toBe(0x010203);
  });
});

/** The bytes that a draw reads by a method of Buffer's. */
function storeOf(draw: () => void, method: 'readUIntBE'): Buffer {
  const read = vi.spyOn(Buffer.prototype, method);
  draw();
  const store = read.mock.contexts[0] as Buffer;
  read.mockRestore();
  return store;
}

function sharedParts(one: Uint8Array, other: Uint8Array, bytes: number): number {
  let shared = 0;
  for (let at = 0; at < one.length; at += bytes) {
    if (Buffer.compare(one.subarray(at, at + bytes), other.subarray(at, at + bytes)) === 0) {
      shared += 1;
    }
  }
  return shared;
}

describe('after a fork', () => {
  let sf: typeof import('../../packages/sdk/src/guest/index.js').sf;
  let folder: string;
  let server: FrameServer;
  let exit: ReturnType<typeof vi.spyOn>;

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), 'sf-identity-test-'));
    server = await FrameServer.listen(join(folder, 'guest.sock'));
    process.env.SNOWFORK_GUEST_SOCKET = server.path;
    vi.resetModules();
    exit = vi.spyOn(process, 'exit').mockReturnValue(undefined as never);
    vi.spyOn(console, 'error').mockReturnValue();
    vi.spyOn(process, 'emitWarning').mockReturnValue();
    ({ sf } = await import('../../packages/sdk/src/guest/index.js'));
  });

  afterEach(async () => {
    await server.close();
    delete process.env.SNOWFORK_GUEST_SOCKET;
    rmSync(folder, { recursive: true });
    vi.restoreAllMocks();
  });

  const told = (peer: FramePeer, role: string, id: number) =>
    peer.send(FrameType.forked, 0, encodeLines({ role, id, generation: 7 }));

  async function answerFork(peer: FramePeer, role: 'parent' | 'clone', id: number): Promise<void> {
    const { payload } = await peer.message(FrameType.request);
    const request = decodeValue(payload, MESSAGE_BYTES_MAX) as { id: number; method: string };
    expect(request.method).toBe('fork');
    told(peer, role, id);
    const result = { id, ticket: { id: 't1', asked: 1, clones: 1 } };
    peer.sendMessage(FrameType.response, 0, encodeValue({ id: request.id, result }));
  }

  test.each([
    ['parent', 0],
    ['clone', 2],
  ] as const)('hooks run one after the other, before fork resolves: %s', async (role, id) => {
    const order: unknown[] = [];
    sf.onFork(async (fork) => {
      order.push(['first begins', fork]);
      await new Promise((resolve) => setTimeout(resolve, 50));
      order.push('first ends');
    });
    const takeBack = sf.onFork(() => void order.push('taken back'));
    sf.onFork(() => void order.push('second'));
    takeBack();
    const forked = sf.fork(1).then(() => order.push('resolved'));
    await answerFork(await server.accept(), role, id);
    await forked;
    expect(order).toEqual([['first begins', { role, id }], 'first ends', 'second', 'resolved']);
    expect(exit).not.toHaveBeenCalled();
  });

  test('the generators are renewed before anything else of the program is told', async () => {
    const stored = storeOf(() => randomInt(2), 'readUIntBE');
    const before = Buffer.from(stored);
    sf.onFork(() => {});
    const peer = await server.accept();
    let changed = -1;
    const asked = sf.info().catch(() => {
      changed = sharedParts(before, stored, 6);
    });
    const { payload } = await peer.message(FrameType.request);
    const { id } = decodeValue(payload) as { id: number };
    told(peer, 'clone', 1);
    const error = { code: 'SF_FORKED_AWAY', message: 'it goes on in the parent' };
    peer.sendMessage(FrameType.response, 0, encodeValue({ id, error }));
    await asked;
    expect(changed).toBe(0);
  });

  test('hooks also run when somebody else forked', async () => {
    const forks: unknown[] = [];
    const ran = new Promise<void>((resolve) => {
      sf.onFork((fork) => {
        forks.push(fork);
        if (forks.length === 2) resolve();
      });
    });
    const peer = await server.accept();
    told(peer, 'parent', 0);
    told(peer, 'clone', 5);
    await ran;
    expect(forks).toEqual([
      { role: 'parent', id: 0 },
      { role: 'clone', id: 5 },
    ]);
  });

  test('a clone whose hook fails ends; its fork never resolves', async () => {
    let resolved = false;
    sf.onFork(() => {
      throw new Error('no new token');
    });
    const ended = new Promise<void>((resolve) => {
      exit.mockImplementation((() => resolve()) as never);
    });
    const forked = sf.fork(1).then(() => {
      resolved = true;
    });
    forked.catch(() => {});
    await answerFork(await server.accept(), 'clone', 1);
    await ended;
    expect(exit).toHaveBeenCalledWith(1);
    expect(resolved).toBe(false);
    await forked.catch(() => {});
  });

  test('in the parent the call that forks rejects, and the next fork is as good as any', async () => {
    let fails = true;
    sf.onFork(async () => {
      if (fails) throw new Error('no new token');
    });
    const peer = await server.accept();
    const forked = sf.fork(1);
    forked.catch(() => {});
    await answerFork(peer, 'parent', 0);
    const error = { code: 'SF_IDENTITY_FAILED', message: expect.stringContaining('no new token') };
    await expect(forked).rejects.toMatchObject(error);
    expect(exit).not.toHaveBeenCalled();
    fails = false;
    const again = sf.fork(1);
    await answerFork(peer, 'parent', 0);
    expect(await again).toMatchObject({ id: 0 });
  });

  test('what is no function is no hook', () => {
    expect(() => sf.onFork('hook' as never)).toThrow(/a function is asked for/);
  });
});

test('without a way to OpenSSL nothing is forked', async () => {
  vi.resetModules();
  vi.doMock('node:module', () => ({
    createRequire: () => () => {
      throw new Error('Cannot find module');
    },
  }));
  const { sf } = await import('../../packages/sdk/src/guest/index.js');
  const error = { code: 'SF_IDENTITY_FAILED', message: expect.stringContaining('koffi') };
  await expect(sf.fork(1)).rejects.toMatchObject(error);
  await expect(sf.checkpointParent()).rejects.toMatchObject(error);
  vi.doUnmock('node:module');
});
