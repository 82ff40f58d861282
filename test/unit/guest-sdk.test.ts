// The guest SDK against a `sf-guestd` and an agent that the test plays: what it asks, what it makes
// of the answers, and what it refuses by itself. A clone is played by a second call in this process,
// whose fork is answered with another id.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import {
  type GuestMethod,
  guestMethods,
  guestRequestSchema,
} from '../../packages/sdk/src/api/guest.js';
import { FrameType, MESSAGE_BYTES_MAX, VALUE_BYTES_MAX } from '../../packages/sdk/src/api/port.js';
import { decodeValue, encodeValue } from '../../packages/sdk/src/api/value.js';
import { type FramePeer, FrameServer } from '../support/fake-port.js';

let sf: typeof import('../../packages/sdk/src/guest/index.js').sf;
let SnowforkError: typeof import('../../packages/sdk/src/guest/index.js').SnowforkError;
let folder: string;
let server: FrameServer;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'sf-guest-sdk-test-'));
  server = await FrameServer.listen(join(folder, 'guest.sock'));
  process.env.SNOWFORK_GUEST_SOCKET = server.path;
  // The SDK has one connection for each process: each test gets its own SDK.
  vi.resetModules();
  // A clone that loses its connection when the test ends would end this process.
  vi.spyOn(process, 'exit').mockReturnValue(undefined as never);
  vi.spyOn(console, 'error').mockReturnValue();
  ({ sf, SnowforkError } = await import('../../packages/sdk/src/guest/index.js'));
});

afterEach(async () => {
  await server.close();
  delete process.env.SNOWFORK_GUEST_SOCKET;
  rmSync(folder, { recursive: true });
});

interface Request {
  readonly id: number;
  readonly method: GuestMethod;
  // biome-ignore lint/suspicious/noExplicitAny: each method has its own, checked by its schema
  readonly params: any;
}

/** The agent's side of the connection; what is asked must be as its schema says. */
class FakeAgent {
  readonly peer: FramePeer;

  constructor(peer: FramePeer) {
    this.peer = peer;
  }

  async take(method?: GuestMethod): Promise<Request> {
    const { payload } = await this.peer.message(FrameType.request);
    const request = guestRequestSchema.parse(decodeValue(payload, MESSAGE_BYTES_MAX));
    if (method !== undefined) expect(request.method).toBe(method);
    return { ...request, params: guestMethods[request.method].params.parse(request.params) };
  }

  answer({ id }: Request, answer: { result: unknown } | { error: unknown }): void {
    const payload = encodeValue({ id, ...answer }, MESSAGE_BYTES_MAX);
    this.peer.sendMessage(FrameType.response, 1, payload);
  }

  /** Takes one request of the method, and answers it. */
  async serve(method: GuestMethod, result: unknown): Promise<Request> {
    const request = await this.take(method);
    this.answer(request, { result });
    return request;
  }
}

const connection = async () => new FakeAgent(await server.accept());
const ticket = (clones: number, asked = clones) => ({ id: 't1', asked, clones, used: true });
const refused = (code: string) => expect.objectContaining({ name: 'SnowforkError', code });
/** Lets a rejection wait for its `expect`. */
const later = <T>(promise: Promise<T>) => {
  promise.catch(() => {});
  return promise;
};

test('fork asks once and returns what the agent answers here', async () => {
  const forked = sf.fork(3);
  const agent = await connection();
  const { params } = await agent.serve('fork', { id: 2, ticket: ticket(2, 3) });
  expect(params).toEqual({ clones: 3 });
  expect(await forked).toEqual({ id: 2, ticket: ticket(2, 3) });
});

test.each([0, -1, 1.5, 257, Number.NaN, '3', undefined, Number.POSITIVE_INFINITY])(
  '%j clones are refused before anything is sent',
  async (count) => {
    const clones = count as number;
    const accepted = { code: 'SF_BAD_REQUEST', message: expect.stringContaining('from 1 to 256') };
    await expect(sf.fork(clones)).rejects.toMatchObject(accepted);
    await expect(sf.requestTicket(clones)).rejects.toMatchObject(accepted);
    await expect(sf.map([1], (item) => item, { clones })).rejects.toMatchObject(accepted);
  },
);

test('tickets, clones and checkpoints are asked for by their ids', async () => {
  const asked = sf.requestTicket(4);
  const agent = await connection();
  await agent.serve('requestTicket', { ...ticket(4), used: false });
  const room = await asked;
  const cloned = sf.clone(room);
  expect((await agent.serve('clone', { id: 3, ticket: room })).params).toEqual({ ticket: 't1' });
  expect(await cloned).toBe(3);
  const kept = sf.checkpointParent();
  await agent.serve('checkpoint', { checkpoint: 's9', id: 0, restored: false });
  expect(await kept).toEqual({ checkpoint: 's9', id: 0, restored: false });
  const created = sf.createClones(await kept, 't2');
  const { params } = await agent.serve('createClones', ticket(4));
  expect(params).toEqual({ checkpoint: 's9', ticket: 't2' });
  expect(await created).toEqual(ticket(4));
  const killed = sf.kill(room);
  expect((await agent.serve('kill', null)).params).toEqual({ ticket: 't1' });
  expect(await killed).toBeUndefined();
  const me = sf.info();
  await agent.serve('info', { vm: 'v1', id: 0, family: 'v1' });
  expect(await me).toEqual({ vm: 'v1', id: 0, family: 'v1' });
});

test.each([undefined, null, 7, '', 'x'.repeat(65), {}])('%j is no ticket', async (given) => {
  await expect(sf.join(given as string)).rejects.toEqual(refused('SF_BAD_REQUEST'));
  await expect(sf.kill(given as string)).rejects.toEqual(refused('SF_BAD_REQUEST'));
});

test('requests go out without waiting, and answers may come in any order', async () => {
  const [one, two] = [sf.requestTicket(1), sf.requestTicket(2)];
  const agent = await connection();
  const requests = [await agent.take(), await agent.take()];
  for (const request of requests.reverse()) {
    agent.answer(request, { result: ticket(request.params.clones) });
  }
  expect([(await one).clones, (await two).clones]).toEqual([1, 2]);
});

test('an error of the agent arrives with its code, message and details', async () => {
  const forked = later(sf.fork(2));
  const agent = await connection();
  const error = new SnowforkError('SF_NO_ROOM', '3 MB are missing', { details: { missing: 3 } });
  agent.answer(await agent.take(), { error: error.toJSON() });
  await expect(forked).rejects.toMatchObject({ ...error.toJSON(), name: 'SnowforkError' });
});

test.each([null, 7, {}, { id: -1, ticket: ticket(1) }, { id: 0, ticket: {} }, { id: '0' }])(
  'the answer %j to fork is refused',
  async (result) => {
    const forked = later(sf.fork(1));
    const agent = await connection();
    await agent.serve('fork', result);
    await expect(forked).rejects.toEqual(refused('SF_INTERNAL'));
  },
);

test('join gives one settled result for each clone', async () => {
  const joined = sf.join('t1', { timeoutMs: 50 });
  const agent = await connection();
  const slots = [
    { cloneId: 1, status: 'exited' },
    { cloneId: 2, status: 'lost', reason: 'its QEMU was killed' },
    { cloneId: 3, status: 'running' },
    { cloneId: 4, status: 'exited' },
    { cloneId: 5, status: 'exited' },
  ];
  const { params } = await agent.serve('join', { slots });
  expect(params).toEqual({ ticket: 't1', timeoutMs: 50 });
  const values = new Map<number, unknown>([
    [1, { list: [1, 2.5, 'x', null, 2n ** 60n], bytes: Buffer.from([1, 2]) }],
    [4, undefined],
  ]);
  for (let count = 0; count < 3; count += 1) {
    const request = await agent.take('result');
    const { cloneId } = request.params;
    if (cloneId === 5) agent.answer(request, { error: { code: 'SF_INTERNAL', message: 'oh' } });
    else agent.answer(request, { result: encodeValue(values.get(cloneId)) });
  }
  expect(await joined).toEqual([
    { id: 1, status: 'fulfilled', value: values.get(1) },
    {
      ...{ id: 2, status: 'rejected' },
      reason: expect.objectContaining({
        code: 'SF_VM_GONE',
        message: 'clone 2 was lost: its QEMU was killed',
      }),
    },
    { id: 3, status: 'rejected', reason: refused('SF_TIMEOUT') },
    { id: 4, status: 'fulfilled', value: undefined },
    { id: 5, status: 'rejected', reason: expect.objectContaining({ message: 'oh' }) },
  ]);
});

test('the results of many clones are fetched two at a time', async () => {
  const joined = sf.join('t1');
  const agent = await connection();
  const slots = Array.from({ length: 9 }, (_, at) => ({ cloneId: at + 1, status: 'exited' }));
  await agent.serve('join', { slots });
  const waiting = [await agent.take('result'), await agent.take('result')];
  for (let count = 2; count < 9; count += 1) {
    const request = waiting.shift()!;
    expect(agent.peer.frames).toEqual([]);
    agent.answer(request, { result: encodeValue(request.params.cloneId) });
    waiting.push(await agent.take('result'));
  }
  for (const request of waiting) {
    agent.answer(request, { result: encodeValue(request.params.cloneId) });
  }
  const values = (await joined).map((result) => result.status === 'fulfilled' && result.value);
  expect(values).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
});

test('join can be given up; a late answer harms nobody', async () => {
  const controller = new AbortController();
  const joined = later(sf.join('t1', { signal: controller.signal }));
  const agent = await connection();
  const request = await agent.take('join');
  controller.abort(new Error('enough'));
  await expect(joined).rejects.toMatchObject({ code: 'SF_ABORTED', cause: { message: 'enough' } });
  agent.answer(request, { result: { slots: [] } });
  const me = sf.info();
  await agent.serve('info', { vm: 'v1', id: 0, family: 'v1' });
  expect(await me).toMatchObject({ vm: 'v1' });
  await expect(sf.join('t1', { signal: AbortSignal.abort() })).rejects.toEqual(
    refused('SF_ABORTED'),
  );
  await expect(sf.join('t1', { timeoutMs: -1 })).rejects.toEqual(refused('SF_BAD_REQUEST'));
});

test('exit hands over the value as MessagePack, and never returns', async () => {
  const left = sf.exit({ sum: 42 });
  const agent = await connection();
  const { params } = await agent.take('exit');
  expect(decodeValue(params.value)).toEqual({ sum: 42 });
  expect(await Promise.race([left, sf.join('').catch(() => 'still here')])).toBe('still here');
});

test('the largest value can be handed over and fetched', async () => {
  const value = Buffer.alloc(VALUE_BYTES_MAX - 5, 1);
  void later(sf.exit(value));
  const agent = await connection();
  const { params } = await agent.take('exit');
  expect(params.value.length).toBe(VALUE_BYTES_MAX);
  const joined = sf.join('t1');
  await agent.serve('join', { slots: [{ cloneId: 1, status: 'exited' }] });
  await agent.serve('result', params.value);
  const [result] = await joined;
  expect(result!.status === 'fulfilled' && value.equals(result!.value as Buffer)).toBe(true);
});

const cyclic: Record<string, unknown> = {};
cyclic.self = cyclic;
test.each([
  ['too large a value', Buffer.alloc(VALUE_BYTES_MAX), 'SF_VALUE_TOO_LARGE'],
  ['a symbol', Symbol('s'), 'SF_BAD_REQUEST'],
  ['a cycle', cyclic, 'SF_BAD_REQUEST'],
  ['too large an integer', 2n ** 70n, 'SF_BAD_REQUEST'],
])('exit refuses %s, and nothing is sent', async (_name, value, code) => {
  await expect(sf.exit(value)).rejects.toEqual(refused(code));
  const me = sf.info();
  const agent = await connection();
  await agent.serve('info', { vm: 'v1', id: 0, family: 'v1' });
  await me;
});

test('outside a VM the error says so', async () => {
  process.env.SNOWFORK_GUEST_SOCKET = join(folder, 'nothing-here.sock');
  await expect(sf.info()).rejects.toMatchObject({
    code: 'SF_AGENT_UNREACHABLE',
    message: expect.stringContaining('does not run inside a Snowfork VM'),
  });
});

test('a lost connection rejects what was asked, and the next call opens another', async () => {
  const [one, two] = [later(sf.info()), later(sf.fork(1))];
  const agent = await connection();
  await agent.take();
  agent.peer.socket.destroy();
  await expect(one).rejects.toEqual(refused('SF_AGENT_UNREACHABLE'));
  await expect(two).rejects.toEqual(refused('SF_AGENT_UNREACHABLE'));
  const three = sf.info();
  await (await connection()).serve('info', { vm: 'v1', id: 0, family: 'v1' });
  expect(await three).toMatchObject({ vm: 'v1' });
});

test.each([
  ['no frames', Buffer.from('HTTP/1.1 400 Bad Request')],
  ['a frame of another type', Buffer.from('000000000600000000000000', 'hex')],
  ['an answer that is no MessagePack', Buffer.from('01000000110000000100000082', 'hex')],
  ['an answer of no fields', Buffer.from('010000001100000001000000c0', 'hex')],
])('%s from sf-guestd reject what was asked', async (_name, bytes) => {
  const me = later(sf.info());
  const agent = await connection();
  await agent.take();
  agent.peer.socket.write(bytes);
  await expect(me).rejects.toEqual(refused('SF_INTERNAL'));
});

/**
 * One call of `map` as the parent and each clone see it: the forks are answered with 0, 1 … m; what
 * a clone hands over becomes its result, unless `lost` has a reason for it.
 */
async function playMap<T, R>(
  items: T[],
  fn: (item: T, index: number) => R,
  options: { clones: number; given?: number; lost?: Record<number, string> },
) {
  const run = () => later(sf.map(items, fn, { clones: options.clones }));
  const given = options.given ?? Math.min(options.clones, items.length);
  const parent = run();
  const agent = await connection();
  const { params } = await agent.serve('fork', { id: 0, ticket: ticket(given) });
  expect(params.clones).toBe(Math.min(options.clones, items.length));
  if (given === 0) return parent;
  const join = await agent.take('join');
  const values = new Map<number, Uint8Array>();
  for (let cloneId = 1; cloneId <= given; cloneId += 1) {
    if (options.lost?.[cloneId] !== undefined) continue;
    void run();
    await agent.serve('fork', { id: cloneId, ticket: ticket(given) });
    values.set(cloneId, (await agent.take('exit')).params.value);
  }
  const slots = Array.from({ length: given }, (_, at) => {
    const reason = options.lost?.[at + 1];
    return { cloneId: at + 1, ...(reason ? { status: 'lost', reason } : { status: 'exited' }) };
  });
  agent.answer(join, { result: { slots } });
  for (const _ of values) {
    const request = await agent.take('result');
    agent.answer(request, { result: values.get(request.params.cloneId) });
  }
  return parent;
}

test.each([
  [8, undefined, 20],
  [20, undefined, 3],
  [8, 3, 20],
  [4, 1, 5],
  [8, 0, 5],
])(
  'map with %j clones asked, %j given: the results of %j items in their order',
  async (clones, given, count) => {
    const items = Array.from({ length: count }, (_, index) => index * 10);
    const table = new Map(items.map((item) => [item, `value of ${item}`]));
    const results = await playMap(items, (item, index) => `${table.get(item)} at ${index}`, {
      clones,
      ...(given === undefined ? {} : { given }),
    });
    expect(results).toEqual(items.map((item, index) => `value of ${item} at ${index}`));
  },
);

test('map of nothing asks nobody', async () => {
  process.env.SNOWFORK_GUEST_SOCKET = join(folder, 'nothing-here.sock');
  expect(await sf.map([], () => 1, { clones: 4 })).toEqual([]);
});

test('map rejects with what the function threw first, in the order of the items', async () => {
  const fn = (item: number) => {
    if (item === 3) throw new RangeError('three is too much');
    if (item === 4) throw new SnowforkError('SF_NO_ROOM', 'four');
    return item;
  };
  await expect(playMap([1, 2, 3, 4], fn, { clones: 2 })).rejects.toMatchObject({
    name: 'RangeError',
    message: 'three is too much',
    stack: expect.stringContaining('guest-sdk.test.ts'),
  });
});

test('map carries a SnowforkError with its code', async () => {
  const fn = () => {
    throw new SnowforkError('SF_NO_ROOM', 'four', { details: { missing: 4 } });
  };
  const expected = { code: 'SF_NO_ROOM', message: 'four', details: { missing: 4 } };
  await expect(playMap([4], fn, { clones: 1 })).rejects.toMatchObject(expected);
});

test.each([
  ['a form', (item: number) => (item === 2 ? Symbol('no') : item), 'SF_BAD_REQUEST'],
  ['room', () => Buffer.alloc(VALUE_BYTES_MAX / 2), 'SF_VALUE_TOO_LARGE'],
])('map rejects when results have not %s to travel', async (_name, fn, code) => {
  await expect(playMap<number, unknown>([1, 2, 3], fn, { clones: 1 })).rejects.toEqual(
    refused(code),
  );
});

test('map names the items of lost clones', async () => {
  const lost = { 2: 'it crashed' };
  const mapped = playMap([0, 1, 2, 3, 4, 5, 6], (item) => item, { clones: 3, lost });
  await expect(mapped).rejects.toMatchObject({
    code: 'SF_VM_GONE',
    message: expect.stringMatching(/items 1, 4: clone 2 was lost: it crashed/),
    details: { items: [1, 4] },
  });
});

test('mapSettled keeps the other results', async () => {
  const settled = sf.mapSettled([10, 11, 12], (item) => item, { clones: 2 });
  const agent = await connection();
  await agent.serve('fork', { id: 0, ticket: ticket(2) });
  await agent.serve('join', {
    slots: [
      { cloneId: 1, status: 'exited' },
      { cloneId: 2, status: 'exited' },
    ],
  });
  // Clone 2 called `sf.exit('bye')` within the function.
  for (const value of [[[10], [undefined, { name: 'Error', message: 'no 12' }]], 'bye']) {
    await agent.serve('result', encodeValue(value));
  }
  expect(await settled).toEqual([
    { status: 'fulfilled', value: 10 },
    { status: 'rejected', reason: refused('SF_VM_GONE') },
    { status: 'rejected', reason: new Error('no 12') },
  ]);
});

test('a map that is given up kills its clones', async () => {
  const controller = new AbortController();
  const mapped = later(sf.map([1, 2], (item) => item, { clones: 2, signal: controller.signal }));
  const agent = await connection();
  await agent.serve('fork', { id: 0, ticket: ticket(2) });
  await agent.take('join');
  controller.abort();
  expect((await agent.serve('kill', null)).params).toEqual({ ticket: 't1' });
  await expect(mapped).rejects.toEqual(refused('SF_ABORTED'));
});

/** A program of its own that uses the SDK; its output when it has ended by itself. */
async function runProgram(source: string): Promise<string> {
  const sdk = new URL('../../packages/sdk/src/guest/index.ts', import.meta.url);
  const program = `import { sf } from ${JSON.stringify(sdk.href)};\n${source}`;
  const options = ['--import', 'tsx', '--input-type=module', '-e', program];
  const child = spawn(process.execPath, options, { stdio: ['ignore', 'pipe', 'pipe'] });
  const output = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]);
  return `${output[0]}${output[1]}code ${child.exitCode}`;
}

test('a program lives while it waits for an answer, and ends when it waits for none', async () => {
  const output = runProgram("console.log((await sf.info()).vm); console.log('end');");
  const agent = await connection();
  const request = await agent.take('info');
  agent.answer(request, { result: { vm: 'v7', id: 0, family: 'v7' } });
  expect(await output).toBe('v7\nend\ncode 0');
});

test('a clone that can not hand over its results ends; it never does what the parent goes on with', async () => {
  const output = runProgram(
    "await sf.map([1], () => 2, { clones: 1 }); console.log('the parent');",
  );
  const agent = await connection();
  await agent.serve('fork', { id: 1, ticket: ticket(1) });
  await agent.take('exit');
  agent.peer.socket.destroy();
  expect(await output).toMatch(/^sf\.map: this clone could not hand over[\s\S]*code 1$/);
});

test('the SDK loads neither zod nor anything else that a program need not wait for', () => {
  const loaded = new Set<string>();
  const load = (file: URL) => {
    if (loaded.has(file.pathname)) return;
    loaded.add(file.pathname);
    const source = readFileSync(file, 'utf8');
    for (const [, name] of source.matchAll(/^(?:import|export) (?!type )[^;]*?from '([^']+)'/gm)) {
      if (name!.startsWith('.')) load(new URL(name!.replace(/\.js$/, '.ts'), file));
      else loaded.add(name!);
    }
  };
  load(new URL('../../packages/sdk/src/guest/index.ts', import.meta.url));
  const packages = [...loaded].filter((name) => !name.startsWith('/')).sort();
  expect(packages).toEqual(['msgpackr', 'node:crypto', 'node:events', 'node:module', 'node:net']);
});

const sfGuest = fileURLToPath(
  new URL('../../packages/clone-agent/guest/sf-guest', import.meta.url),
);

/** `sf-guest` as a shell script runs it; `serve` plays the agent meanwhile. */
async function shell(
  words: string[],
  serve: (agent: FakeAgent) => Promise<unknown> = async () => {},
  input: string | Buffer = '',
) {
  const child = spawn(sfGuest, words);
  child.stdin.end(input);
  const gathered = Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]);
  if (serve.length > 0) await serve(await connection());
  const [stdout, stderr] = await gathered;
  return { stdout, stderr, code: child.exitCode };
}

test('sf-guest fork prints what sh can read', async () => {
  const serve = (id: number, given: object) => async (agent: FakeAgent) => {
    const { params } = await agent.serve('fork', { id, ticket: given });
    expect(params).toEqual({ clones: 200, detached: true });
  };
  const file = join(folder, 'ticket');
  expect(await shell(['fork', '200', '--ticket-file', file], serve(3, ticket(200)))).toEqual({
    ...{ stdout: '3\n', stderr: '', code: 0 },
  });
  expect(readFileSync(file, 'utf8')).toBe('t1\n');
  const fewer = { ...ticket(2, 200), reason: 'there is no room' };
  expect(await shell(['fork', '--ticket', '200'], serve(0, fewer))).toEqual({
    ...{ stdout: '0 t1 2\n', code: 0 },
    stderr: 'sf-guest: 2 of 200 clones: there is no room\n',
  });
});

test('sf-guest has the other calls', async () => {
  const asked: unknown[] = [];
  const answer = (method: GuestMethod, result: unknown) => async (agent: FakeAgent) => {
    asked.push([method, (await agent.serve(method, result)).params]);
  };
  const run = async (words: string[], method: GuestMethod, result: unknown) =>
    (await shell(words, answer(method, result))).stdout;
  expect(await run(['ticket', '4'], 'requestTicket', ticket(3, 4))).toBe('t1 3\n');
  expect(await run(['clone', 't1'], 'clone', { id: 2, ticket: ticket(3) })).toBe('2\n');
  const kept = { checkpoint: 's1', id: 5, restored: true };
  expect(await run(['checkpoint'], 'checkpoint', kept)).toBe('s1 5 1\n');
  expect(await run(['create-clones', 's1', 't2'], 'createClones', ticket(3))).toBe('');
  expect(await run(['kill', 't1'], 'kill', null)).toBe('');
  const me = { vm: 'v2', id: 1, family: 'v1', parent: 'v1' };
  expect(await run(['info'], 'info', me)).toBe('vm=v2\nid=1\nfamily=v1\nparent=v1\n');
  expect(asked).toEqual([
    ['requestTicket', { clones: 4 }],
    ['clone', { ticket: 't1', detached: true }],
    ['checkpoint', { detached: true }],
    ['createClones', { checkpoint: 's1', ticket: 't2' }],
    ['kill', { ticket: 't1' }],
    ['info', {}],
  ]);
});

const deepJson = { a: [1, -1, 2.5, 1e300, 0.1, 70_000, 2 ** 40, -5e9], 'b"\\\n': { c: 'ü😀' } };
test.each([
  ['a string', ['exit', 'grüße'], 'grüße'],
  ['no value', ['exit'], ''],
  ['what looks like an option', ['exit', '--', '--json'], '--json'],
  ['a number as JSON', ['exit', '--json', ' -12 '], -12],
  ['deep JSON', ['exit', '--json', JSON.stringify(deepJson, null, 1)], deepJson],
  [
    'escapes in JSON',
    ['exit', '--json', '"\\u00fc\\ud83d\\ude00\\\\ud83d\\t\\/"'],
    'ü😀\\ud83d\t/',
  ],
  ['other JSON', ['exit', '--json', '[null,true,false,[],{}]'], [null, true, false, [], {}]],
  ['bytes', ['exit', '--stdin'], Buffer.alloc(100_000, '\xff\x00', 'latin1')],
])('sf-guest exit hands over %s', async (_name, words, value) => {
  const child = spawn(sfGuest, words, { stdio: ['pipe', 'ignore', 'ignore'] });
  child.stdin!.end(Buffer.isBuffer(value) ? value : '');
  const agent = await connection();
  expect(decodeValue((await agent.take('exit')).params.value)).toEqual(value);
  agent.peer.socket.destroy();
  await once(child, 'exit');
});

test('sf-guest join prints a line for each clone', async () => {
  const values = [
    'a text',
    'two\nlines',
    42,
    -7.25,
    { a: [1, true, null] },
    Buffer.from('any'),
    undefined,
  ];
  const slots = [
    ...values.map((_, at) => ({ cloneId: at + 1, status: 'exited' })),
    { cloneId: 8, status: 'lost', reason: 'it\ncrashed' },
    { cloneId: 300, status: 'running' },
  ];
  const serve = async (agent: FakeAgent) => {
    const { params } = await agent.serve('join', { slots });
    expect(params).toEqual({ ticket: 't1', timeoutMs: 1500 });
    for (const value of values) await agent.serve('result', encodeValue(value));
  };
  expect(await shell(['join', 't1', '--timeout', '1.5'], serve)).toEqual({
    stdout: [
      ...['1 exited a text', '2 exited "two\\nlines"', '3 exited 42', '4 exited -7.25'],
      ...['5 exited {"a":[1,true,null]}', '6 exited {"$bytes":"YW55"}', '7 exited null'],
      ...['8 lost it crashed', '300 running', ''],
    ].join('\n'),
    stderr: '',
    code: 7,
  });
  const json = await shell(['join', '--json', 't1', '--timeout', '1.5'], serve);
  expect(
    json.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line)),
  ).toEqual([
    ...values.slice(0, 5).map((value, at) => ({ id: at + 1, status: 'exited', value })),
    { id: 6, status: 'exited', value: { $bytes: 'YW55' } },
    { id: 7, status: 'exited', value: null },
    { id: 8, status: 'lost', reason: 'it\ncrashed' },
    { id: 300, status: 'running' },
  ]);
});

test('sf-guest fetches values over many frames', async () => {
  const value = 'x'.repeat(1_000_000);
  const { stdout, code } = await shell(['join', 't1'], async (agent) => {
    await agent.serve('join', { slots: [{ cloneId: 1, status: 'exited' }] });
    await agent.serve('result', encodeValue(value));
  });
  expect([stdout === `1 exited ${value}\n`, code]).toEqual([true, 0]);
});

test('sf-guest connect joins its input and output to a port or a socket, both ways at once', async () => {
  const sizeBytes = 4 * 1024 * 1024;
  const input = Buffer.alloc(sizeBytes, 'in');
  for (const target of [0, join(folder, 'peer.sock')]) {
    // It writes all that it has before it reads: a relay that waits for either side would hang.
    const server = createServer({ allowHalfOpen: true }, async (peer) => {
      await new Promise((resolve) => peer.write(Buffer.alloc(sizeBytes, 'out'), resolve));
      const chunks: Buffer[] = [];
      peer.on('data', (chunk) => chunks.push(chunk));
      await once(peer, 'end');
      peer.end(String(Buffer.concat(chunks).equals(input)));
    });
    server.listen(target);
    await once(server, 'listening');
    const address = server.address();
    const words = ['connect', typeof address === 'string' ? address : String(address!.port)];
    const { stdout, ...rest } = await shell(words, undefined, input);
    expect(rest).toEqual({ stderr: 'connected\n', code: 0 });
    expect([stdout.length, stdout.slice(sizeBytes)]).toEqual([sizeBytes + 4, 'true']);
    server.close();
  }
  const refused = await shell(['connect', join(folder, 'nobody.sock')]);
  expect(refused).toMatchObject({ stdout: '', code: 1 });
  expect(refused.stderr).toContain('nobody.sock: No such file');
});

test('sf-guest says what is wrong, by its exit code too', async () => {
  const error = { code: 'SF_NO_ROOM', message: '3 MB are missing', details: {} };
  const failed = await shell(['fork', '2'], async (agent) => {
    agent.answer(await agent.take('fork'), { error });
  });
  expect(failed).toEqual({
    stdout: '',
    stderr: 'sf-guest: SF_NO_ROOM: 3 MB are missing\n',
    code: 1,
  });
  const garbled = await shell(['info'], async (agent) => {
    await agent.take('info');
    agent.peer.sendMessage(FrameType.response, 1, Buffer.from('82', 'hex'));
  });
  expect(garbled).toMatchObject({ stdout: '', code: 1 });
  expect((await shell(['--help'])).stdout).toContain('sf-guest fork 4 --ticket');
  for (const words of [
    [],
    ['frok'],
    ['fork'],
    ['fork', '257'],
    ['connect', '65536'],
    ['connect', 'relative.sock'],
    ['connect', `/${'x'.repeat(107)}`],
    ['fork', '1.5'],
    ['fork', '1', '2'],
  ]) {
    expect(await shell(words)).toMatchObject({ stdout: '', code: 2 });
  }
  for (const json of ['', '{', '[1,]', '01', '"a', '{"a" 1}', 'nul', '1 2']) {
    expect(await shell(['exit', '--json', json])).toMatchObject({ stdout: '', code: 2 });
  }
  const large = Buffer.alloc(VALUE_BYTES_MAX);
  expect(await shell(['exit', '--stdin'], undefined, large)).toMatchObject({ code: 1 });
  process.env.SNOWFORK_GUEST_SOCKET = join(folder, 'nothing-here.sock');
  expect(await shell(['info'])).toMatchObject({ stdout: '', code: 3 });
});
