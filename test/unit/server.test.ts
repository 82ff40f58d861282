// The agent's HTTP API over a real unix socket, with plain requests: routes, bounds, errors,
// streams.

import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { type IncomingMessage, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SnowforkError } from '@snowfork/sdk/api';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { JSON_BODY_BYTES_MAX } from '../../packages/clone-agent/src/api/request.js';
import { buildRoutes } from '../../packages/clone-agent/src/api/routes.js';
import { type RunningServer, startServer } from '../../packages/clone-agent/src/api/server.js';
import { EventQueue, FEED_QUEUE_BYTES_MAX } from '../../packages/clone-agent/src/api/sse.js';
import { readEvents } from '../../packages/sdk/src/host/events.js';
import { eventually } from '../support/eventually.js';
import { FakeService } from '../support/fake-service.js';

let folder: string;
let socketPath: string;
let service: FakeService;
let server: RunningServer;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'sf-server-'));
  socketPath = join(folder, 'agent.sock');
  service = new FakeService();
  server = await startServer({ service, socketPath, version: '9.8.7' });
});

afterEach(async () => {
  await server.close();
  rmSync(folder, { recursive: true });
});

interface Answer {
  readonly status: number;
  readonly headers: IncomingMessage['headers'];
  // biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape.
  readonly json: any;
}

function open(method: string, path: string, body?: string | Buffer): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    // A connection each: the servers of these tests come and go under one path.
    const outgoing = request({ socketPath, method, path, agent: false }, resolve);
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

async function ask(method: string, path: string, body?: unknown): Promise<Answer> {
  const raw = typeof body === 'string' || Buffer.isBuffer(body) || body === undefined;
  const incoming = await open(method, path, raw ? body : JSON.stringify(body));
  const text = Buffer.concat(await incoming.toArray()).toString();
  const json = text === '' ? undefined : JSON.parse(text);
  return { status: incoming.statusCode ?? 0, headers: incoming.headers, json };
}

async function events(method: string, path: string, body?: unknown): Promise<[string, unknown][]> {
  const incoming = await open(method, path, body === undefined ? undefined : JSON.stringify(body));
  expect(incoming.headers['content-type']).toBe('text/event-stream');
  const all: [string, unknown][] = [];
  for await (const { event, data } of readEvents(incoming)) all.push([event, decode(event, data)]);
  return all;
}

function decode(event: string, data: string): unknown {
  const isBytes = ['stdout', 'stderr', 'output'].includes(event);
  return isBytes ? Buffer.from(data, 'base64').toString() : JSON.parse(data);
}

async function launched(): Promise<string> {
  return (await ask('POST', '/v1/vms', { image: 'minimal' })).json.id;
}

describe('the socket', () => {
  test('is for its owner alone', () => {
    expect(statSync(socketPath).mode & 0o777).toBe(0o600);
  });

  test('that a dead agent left is replaced', async () => {
    const stale = join(folder, 'stale.sock');
    writeFileSync(stale, '');
    const second = await startServer({ service, socketPath: stale, version: '1' });
    await second.close();
  });

  test('of a living agent is left alone', async () => {
    const second = startServer({ service, socketPath, version: '1' });
    await expect(second).rejects.toMatchObject({ code: 'SF_BAD_REQUEST' });
    expect((await ask('GET', '/v1/host')).status).toBe(200);
  });

  test('whose path is too long is refused with the length', async () => {
    const long = join(folder, 'x'.repeat(108));
    const started = startServer({ service, socketPath: long, version: '1' });
    await expect(started).rejects.toMatchObject({ code: 'SF_BAD_REQUEST' });
    await expect(started).rejects.toThrow(/107/);
  });

  test('in a folder that is missing is an error of permission', async () => {
    const started = startServer({ service, socketPath: '/nowhere/at/all.sock', version: '1' });
    await expect(started).rejects.toMatchObject({ code: 'SF_PERMISSION' });
  });
});

describe('routes', () => {
  test('of the host', async () => {
    const answer = await ask('GET', '/v1/host');
    expect(answer).toMatchObject({ status: 200, json: { stateFolder: '/fake' } });
    expect(answer.headers['snowfork-version']).toBe('9.8.7');
    expect((await ask('GET', '/v1/stats')).json.pool).toEqual({
      size: 4,
      ready: 3,
      pssBytes: 40e6,
    });
    expect((await ask('DELETE', '/v1/host')).status).toBe(204);
    expect(service.calls).toEqual(['shutDown']);
  });

  test('of images', async () => {
    expect((await ask('GET', '/v1/images')).json.images).toHaveLength(1);
    const built = await events('POST', '/v1/images', { name: 'node', file: '/images/node.yaml' });
    expect(built.map(([event]) => event)).toEqual(['progress', 'progress', 'done']);
    expect(built[2]?.[1]).toMatchObject({ unchanged: false, image: { name: 'node' } });
    expect((await ask('DELETE', '/v1/images/node')).status).toBe(204);
    expect((await ask('DELETE', '/v1/images/node')).json.error.code).toBe('SF_IMAGE_NOT_FOUND');
  });

  test('of VMs', async () => {
    const id = await launched();
    expect((await ask('GET', `/v1/vms/${id}`)).json).toMatchObject({ id, state: 'running' });
    expect((await ask('GET', `/v1/vms/${id}/stats`)).json.privatePages).toBe(256);
    const fork = (await ask('POST', `/v1/vms/${id}/fork`, { clones: 2 })).json;
    expect(fork.clones.map((clone: { cloneId: number }) => clone.cloneId)).toEqual([1, 2]);
    expect(fork.freeze.pauseMs).toBe(12.5);
    expect((await ask('DELETE', `/v1/vms/${id}`)).status).toBe(204);
    expect((await ask('GET', '/v1/vms')).json.vms).toHaveLength(2);
    expect((await ask('GET', '/v1/vms?all=1')).json.vms).toHaveLength(3);
    expect((await ask('POST', `/v1/vms/${id}/fork`, { clones: 1 })).status).toBe(410);
  });

  test('of snapshots', async () => {
    const id = await launched();
    const { snapshot } = (await ask('POST', `/v1/vms/${id}/checkpoint`)).json;
    expect(snapshot).toMatchObject({ vm: id, kept: true });
    const made = await ask('POST', `/v1/snapshots/${snapshot.id}/clones`, { clones: 3 });
    expect(made.json.clones).toHaveLength(3);
    expect((await ask('GET', '/v1/snapshots')).json.snapshots).toHaveLength(2);
    expect((await ask('DELETE', `/v1/snapshots/${snapshot.id}`)).status).toBe(204);
    expect((await ask('DELETE', '/v1/snapshots/none')).status).toBe(404);
    const used = await ask('DELETE', `/v1/snapshots/${made.json.snapshot.id}`);
    expect(used.status).toBe(409);
    expect(used.json.error.details.users).toHaveLength(3);
  });

  test('of tickets', async () => {
    service.slots = [{ cloneId: 1, status: 'exited', value: 42 }];
    expect((await ask('POST', '/v1/tickets/t1/join', { timeoutMs: 5 })).json.slots).toEqual(
      service.slots,
    );
    expect((await ask('POST', '/v1/tickets/t1/join')).status).toBe(200);
    expect((await ask('DELETE', '/v1/tickets/t1')).status).toBe(204);
    expect(service.calls).toEqual(['join t1 5', 'join t1 undefined', 'killTicket t1']);
  });

  test('are all documented', () => {
    const page = readFileSync(new URL('../../docs/reference/api.md', import.meta.url), 'utf8');
    const { routes } = buildRoutes(service, new AbortController().signal);
    const missing = routes
      .map(({ method, path }) => `${method} ${path}`)
      .filter((route) => !page.includes(`\`${route}\``));
    expect(missing).toEqual([]);
  });
});

describe('what is asked', () => {
  test.each([
    ['POST', '/v1/vms', {}, 'image'],
    ['POST', '/v1/vms', { image: '../etc' }, 'image'],
    ['POST', '/v1/vms', { image: 'minimal', sudo: true }, 'sudo'],
    ['POST', '/v1/vms/v1/fork', { clones: 0 }, 'clones'],
    ['POST', '/v1/vms/v1/fork', { clones: -1 }, 'clones'],
    ['POST', '/v1/vms/v1/fork', { clones: 1.5 }, 'clones'],
    ['POST', '/v1/vms/v1/fork', { clones: 257 }, 'clones'],
    ['POST', '/v1/vms/v1/fork', { clones: '2' }, 'clones'],
    ['POST', '/v1/vms/v1/fork', { clones: null }, 'clones'],
    ['POST', '/v1/snapshots/s1/clones', { clones: 257 }, 'clones'],
    ['POST', '/v1/images', { name: 'a', file: 'relative' }, 'file'],
    ['POST', '/v1/vms/v1/exec', { command: [] }, 'command'],
    ['POST', '/v1/vms/v1/exec', { command: ['a', 7] }, 'command[1]'],
    ['POST', '/v1/vms/v1/execs/1/signal', { signal: 65 }, 'signal'],
    ['POST', '/v1/tickets/t1/join', { timeoutMs: -1 }, 'timeoutMs'],
    ['GET', '/v1/vms?all=yes', undefined, 'all'],
    ['POST', '/v1/vms', '{"image":', 'no JSON'],
    ['GET', `/v1/vms/${'x'.repeat(65)}`, undefined, '64'],
    ['POST', '/v1/vms/v1/execs/one/stdin', 'text', 'number'],
    ['GET', '/v1/nothing', undefined, 'no route GET /v1/nothing'],
  ])('%s %s %j is refused by name', async (method, path, body, named) => {
    const answer = await ask(method, path, body);
    expect(answer.status).toBe(400);
    expect(answer.json.error).toMatchObject({ code: 'SF_BAD_REQUEST' });
    expect(answer.json.error.message).toContain(named);
    expect(service.calls).toEqual([]);
  });

  test('is bounded in size, and the connection lives on', async () => {
    const answer = await ask('POST', '/v1/vms', Buffer.alloc(8 * JSON_BODY_BYTES_MAX, 'x'));
    expect(answer.status).toBe(400);
    expect(answer.json.error.message).toContain(String(JSON_BODY_BYTES_MAX));
  });
});

describe('what is answered', () => {
  test('keeps values that JSON cannot say', async () => {
    const id = await launched();
    service.end(id, { how: 'exited', value: Buffer.from('bytes') });
    const packed = { $msgpack: expect.any(String) };
    expect((await ask('POST', `/v1/vms/${id}/wait`)).json).toEqual({
      how: 'exited',
      value: packed,
    });
    expect((await ask('GET', `/v1/vms/${id}`)).json.end.value).toEqual(packed);
    service.slots = [{ cloneId: 1, status: 'exited', value: 12n }];
    expect((await ask('POST', '/v1/tickets/t/join')).json.slots[0].value).toEqual(packed);
  });

  test('has for each error its code, words, details and status', async () => {
    service.failNext = new SnowforkError('SF_NO_ROOM', '4 GiB missing', { details: { bytes: 4 } });
    const answer = await ask('POST', '/v1/vms', { image: 'minimal' });
    expect(answer.status).toBe(507);
    expect(answer.json).toEqual({
      error: { code: 'SF_NO_ROOM', message: '4 GiB missing', details: { bytes: 4 } },
    });
  });

  test('makes of what nobody foresaw SF_INTERNAL', async () => {
    service.failNext = new TypeError('oops');
    const answer = await ask('POST', '/v1/vms', { image: 'minimal' });
    expect(answer).toMatchObject({ status: 500, json: { error: { code: 'SF_INTERNAL' } } });
  });

  test('settles clones one by one', async () => {
    await events('POST', '/v1/images', { name: 'flaky', file: '/flaky.yaml' });
    const { id } = (await ask('POST', '/v1/vms', { image: 'flaky' })).json;
    const { clones } = (await ask('POST', `/v1/vms/${id}/fork`, { clones: 3 })).json;
    expect(clones.map((clone: { status: string }) => clone.status)).toEqual([
      'fulfilled',
      'rejected',
      'fulfilled',
    ]);
    expect(clones[1].error).toMatchObject({ code: 'SF_CLONE_FAILED' });
  });
});

describe('a command', () => {
  test('streams its output in order and its exit last', async () => {
    const id = await launched();
    const all = await events('POST', `/v1/vms/${id}/exec`, { command: ['echo', 'hi'] });
    expect(all).toEqual([
      ['started', { exec: expect.any(Number), pid: 99 }],
      ['stdout', 'hi\n'],
      ['exit', { code: 0, signal: null }],
    ]);
  });

  test('that cannot be started ends its stream with the error', async () => {
    const id = await launched();
    const all = await events('POST', `/v1/vms/${id}/exec`, { command: ['nothing'] });
    expect(all.at(-1)).toEqual([
      'error',
      { error: expect.objectContaining({ code: 'SF_BAD_REQUEST' }) },
    ]);
  });

  test('of a VM that is not there is no stream but an error', async () => {
    const answer = await ask('POST', '/v1/vms/none/exec', { command: ['echo'] });
    expect(answer).toMatchObject({ status: 404, json: { error: { code: 'SF_VM_NOT_FOUND' } } });
  });

  test('is killed when its connection is closed', async () => {
    const id = await launched();
    const body = JSON.stringify({ command: ['sleep'] });
    const incoming = await open('POST', `/v1/vms/${id}/exec`, body);
    await incoming.iterator({ destroyOnReturn: false }).next();
    incoming.destroy();
    await eventually(() => expect(service.aborted).toEqual(['exec']));
  });

  test('is not run ahead of its reader', async () => {
    const id = await launched();
    const sizeBytes = 64 * 1024 * 1024;
    const body = JSON.stringify({ command: ['flood', String(sizeBytes)] });
    const incoming = await open('POST', `/v1/vms/${id}/exec`, body);
    const exec = service.execOf(2);
    await untilStill(() => exec.taken);
    expect(exec.taken).toBeGreaterThan(0);
    expect(exec.taken).toBeLessThan(sizeBytes / 16);
    let received = 0;
    for await (const { event, data } of readEvents(incoming)) {
      if (event === 'stdout') received += Buffer.byteLength(data, 'base64');
    }
    expect(received).toBe(sizeBytes);
  });

  test('takes input and signals while it runs, and none afterwards', async () => {
    const id = await launched();
    const body = JSON.stringify({ command: ['cat'], stdin: true });
    const incoming = await open('POST', `/v1/vms/${id}/exec`, body);
    const seen = readEvents(incoming);
    const { exec } = JSON.parse((await seen.next()).value?.data ?? '');
    const path = `/v1/vms/${id}/execs/${exec}`;
    expect((await ask('POST', `${path}/stdin`, Buffer.from('some\n'))).status).toBe(204);
    expect(decode('stdout', (await seen.next()).value?.data ?? '')).toBe('some\n');
    expect((await ask('DELETE', `${path}/stdin`)).status).toBe(204);
    expect((await seen.next()).value?.event).toBe('exit');
    const late = await ask('POST', `${path}/stdin`, Buffer.alloc(3_000_000));
    expect(late.json.error.code).toBe('SF_EXEC_NOT_FOUND');
    expect((await ask('POST', `${path}/signal`, { signal: 9 })).status).toBe(404);
  });
});

describe('what waits', () => {
  test('is aborted when its caller goes', async () => {
    const id = await launched();
    const paths: [string, unknown][] = [
      [`/v1/vms/${id}/wait`, {}],
      [`/v1/vms/${id}/fork`, { clones: 13 }],
      ['/v1/tickets/slow/join', {}],
    ];
    for (const [path, body] of paths) {
      const before = service.calls.length;
      const outgoing = request({ socketPath, method: 'POST', path, agent: false });
      outgoing.on('error', () => {});
      outgoing.end(JSON.stringify(body));
      await eventually(() => expect(service.calls.length).toBe(before + 1));
      outgoing.destroy();
    }
    await eventually(() => expect([...service.aborted].sort()).toEqual(['fork', 'join', 'wait']));
  });

  test('is answered with SF_ABORTED when the server closes, and the socket is gone', async () => {
    const id = await launched();
    const waiting = ask('POST', `/v1/vms/${id}/wait`);
    const watching = events('GET', '/v1/events');
    await eventually(() => expect(service.calls).toContain(`wait ${id}`));
    await eventually(() => expect(service.listeners).toBe(1));
    await server.close();
    expect(await waiting).toMatchObject({ status: 499, json: { error: { code: 'SF_ABORTED' } } });
    expect((await watching).at(-1)?.[0]).toBe('error');
    expect(service.listeners).toBe(0);
    await expect(ask('GET', '/v1/host')).rejects.toMatchObject({ code: 'ENOENT' });
  });
});

describe('feeds', () => {
  test('of a console: what was, then what comes, then the end', async () => {
    const id = await launched();
    const watching = events('GET', `/v1/vms/${id}/console`);
    await eventually(() => expect(service.consoleFeed.listeners).toBe(1));
    expect((await ask('POST', `/v1/vms/${id}/console`, Buffer.from('root\n'))).status).toBe(204);
    service.consoleFeed.end();
    expect(await watching).toEqual([
      ['output', 'boot\r\nlogin: '],
      ['output', 'root\n'],
      ['end', {}],
    ]);
    expect(service.consoleFeed.listeners).toBe(0);
  });

  test('of logs end after the past when nothing is to be followed', async () => {
    const id = await launched();
    expect(await events('GET', `/v1/vms/${id}/logs?follow=0`)).toEqual([
      ['output', 'guest side: ready\n'],
      ['end', {}],
    ]);
  });

  test('forget a reader that has gone', async () => {
    const id = await launched();
    const incoming = await open('GET', `/v1/vms/${id}/console`);
    await eventually(() => expect(service.consoleFeed.listeners).toBe(1));
    incoming.destroy();
    await eventually(() => expect(service.consoleFeed.listeners).toBe(0));
  });

  test('tell a reader that is too slow how much it missed', async () => {
    const queue = new EventQueue<Buffer | number>({
      costMax: FEED_QUEUE_BYTES_MAX,
      costOf: (item) => (typeof item === 'number' ? 0 : item.length),
      onDropped: (bytes) => bytes,
    });
    const chunk = FEED_QUEUE_BYTES_MAX / 4;
    for (let index = 0; index < 6; index += 1) queue.push(Buffer.alloc(chunk, index));
    queue.end();
    const all: (Buffer | number)[] = [];
    for await (const item of queue) all.push(item);
    expect(all[0]).toBe(2 * chunk);
    expect(all.slice(1).map((item) => (item as Buffer)[0])).toEqual([2, 3, 4, 5]);
  });

  test('of changes begin when they say so', async () => {
    const incoming = await open('GET', '/v1/events');
    const seen = readEvents(incoming);
    expect((await seen.next()).value?.event).toBe('ready');
    const id = await launched();
    const { value } = await seen.next();
    expect(JSON.parse(value?.data ?? '')).toEqual({ kind: 'vm', id });
    await seen.return();
  });
});

/** Until a count has stopped growing: the writer waits for the reader. */
async function untilStill(count: () => number): Promise<void> {
  for (let last = -1, same = 0; same < 10; last = count()) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    same = count() === last && last > 0 ? same + 1 : 0;
  }
}
