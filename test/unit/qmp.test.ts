// The line protocol against a server that is told what to say: answers find their commands, waits end,
// and a peer that breaks the protocol or goes away leaves nobody waiting.

import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { SnowforkError } from '@snowfork/sdk/api';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  COMMANDS_PENDING_MAX,
  LineClient,
} from '../../packages/clone-agent/src/hypervisor/line-client.js';
import { connectQmp } from '../../packages/clone-agent/src/hypervisor/qmp.js';

interface Command {
  execute: string;
  arguments?: Record<string, unknown>;
  id: number;
}

let folder: string;
let socketPath: string;
let server: net.Server;
let peer: net.Socket;
let commands: Command[];
/** What the server does with each command; by default it answers with the command's name. */
let answer: (command: Command) => unknown;

const say = (line: unknown) => peer.write(`${JSON.stringify(line)}\n`);

beforeEach(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-qmp-'));
  socketPath = path.join(folder, 'qmp.sock');
  commands = [];
  answer = ({ execute, id }) => say({ return: execute, id });
  server = net.createServer((socket) => {
    peer = socket;
    let text = '';
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      text += chunk;
      const lines = text.split('\n');
      text = lines.pop()!;
      for (const line of lines) {
        const command = JSON.parse(line) as Command;
        commands.push(command);
        void answer(command);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
});

afterEach(() => {
  peer?.destroy();
  server.close();
  fs.rmSync(folder, { recursive: true, force: true });
});

function connect(options: { lineBytesMax?: number; signal?: AbortSignal } = {}) {
  return LineClient.connect(socketPath, {
    peer: 'the peer',
    errorCode: 'SF_QEMU_FAILED',
    timeoutMs: 10_000,
    ...options,
  });
}

const failsWith = (code: string, words: RegExp) =>
  expect.objectContaining({ code, message: expect.stringMatching(words) });

describe('commands', () => {
  it('get their own answers, whatever the order', async () => {
    const waiting: Command[] = [];
    answer = (command) => {
      waiting.push(command);
      if (waiting.length < 3) return;
      for (const { execute, id } of waiting.toReversed()) say({ return: execute, id });
    };
    await using client = await connect();
    const answers = ['a', 'b', 'c'].map((name) => client.execute(name));
    expect(await Promise.all(answers)).toEqual(['a', 'b', 'c']);
  });

  it('of one turn leave in the order of the calls, with their arguments', async () => {
    await using client = await connect();
    await Promise.all([client.execute('first', { value: 1 }), client.execute('second')]);
    expect(commands).toMatchObject([
      { execute: 'first', arguments: { value: 1 } },
      { execute: 'second' },
    ]);
  });

  it("reject with the peer's words and the command's name", async () => {
    answer = ({ id }) => say({ error: { class: 'GenericError', desc: 'no such thing' }, id });
    await using client = await connect();
    const error = await client.execute('do-it').catch((caught) => caught);
    expect(error).toBeInstanceOf(SnowforkError);
    expect(error).toEqual(failsWith('SF_QEMU_FAILED', /do-it: no such thing/));
  });

  it('end at their deadline, and the late answer harms nobody', async () => {
    answer = () => {};
    await using client = await connect();
    const late = client.execute('slow', {}, { timeoutMs: 1 });
    await expect(late).rejects.toEqual(failsWith('SF_TIMEOUT', /slow/));
    answer = ({ execute, id }) => {
      say({ return: 'late', id: commands[0]!.id });
      say({ return: execute, id });
    };
    expect(await client.execute('next')).toBe('next');
  });

  it('end when the caller gives up, with the reason where that is an error of ours', async () => {
    answer = () => {};
    await using client = await connect();
    const plain = new AbortController();
    const told = new AbortController();
    const reason = new SnowforkError('SF_QEMU_FAILED', 'QEMU ended');
    const waits = [
      client.execute('a', {}, { signal: plain.signal }),
      client.execute('b', {}, { signal: told.signal }),
    ];
    plain.abort();
    told.abort(reason);
    const [first, second] = await Promise.allSettled(waits);
    expect(first).toMatchObject({ reason: { code: 'SF_ABORTED' } });
    expect(second).toMatchObject({ reason });
    await expect(client.execute('c', {}, { signal: told.signal })).rejects.toBe(reason);
  });

  it('are bounded in number', async () => {
    answer = () => {};
    await using client = await connect();
    const waits = Array.from({ length: COMMANDS_PENDING_MAX }, () => client.execute('wait'));
    for (const wait of waits) wait.catch(() => {});
    await expect(client.execute('more')).rejects.toEqual(
      failsWith('SF_QEMU_FAILED', /wait already/),
    );
  });

  it('all fail when the connection ends, and so do later ones', async () => {
    answer = () => peer.destroy();
    await using client = await connect();
    const waits = [client.execute('a'), client.execute('b'), client.waitEvent('NEVER')];
    for (const result of await Promise.allSettled(waits)) {
      expect(result).toMatchObject({ reason: { code: 'SF_QEMU_FAILED' } });
    }
    expect(client.lost.aborted).toBe(true);
    await expect(client.execute('c')).rejects.toBe(client.lost.reason);
  });
});

describe('events', () => {
  it('reach their listeners and the waits whose condition holds', async () => {
    await using client = await connect();
    const seen: unknown[] = [];
    const unsubscribe = client.on('STATE', (event) => seen.push(event.data.status));
    const done = client.waitEvent('STATE', (event) => event.data.status === 'done');
    await client.execute('begin');
    const timestamp = { seconds: 2, microseconds: 500 };
    for (const status of ['setup', 'done']) say({ event: 'STATE', data: { status }, timestamp });
    expect(await done).toEqual({ name: 'STATE', data: { status: 'done' }, timeMs: 2000.5 });
    unsubscribe();
    say({ event: 'STATE', data: { status: 'later' } });
    await client.execute('end');
    expect(seen).toEqual(['setup', 'done']);
  });

  it('that never come end the wait at its deadline', async () => {
    await using client = await connect();
    const wait = client.waitEvent('NEVER', undefined, { timeoutMs: 1 });
    await expect(wait).rejects.toEqual(failsWith('SF_TIMEOUT', /event NEVER/));
  });
});

describe('a peer that breaks the protocol loses its connection', () => {
  it.each([
    ['no JSON', '{"return": \n'],
    ['no object', '[1]\n'],
    ['neither answer nor event', '{"QMP": {}}\n'],
    ['a line longer than the bound', `{"return": "${'x'.repeat(2000)}"`],
    ['a whole line longer than the bound', `{"id": 1, "return": "${'x'.repeat(2000)}"}\n`],
  ])('%s', async (_, bytes) => {
    answer = () => peer.write(bytes);
    await using client = await connect({ lineBytesMax: 1000 });
    await expect(client.execute('a')).rejects.toMatchObject({ code: 'SF_QEMU_FAILED' });
    expect(client.lost.aborted).toBe(true);
  });

  it('but lines may come in any pieces', async () => {
    answer = async ({ id }) => {
      for (const byte of Buffer.from(`${JSON.stringify({ return: 'größer', id })}\n`)) {
        peer.write(Buffer.of(byte));
        await new Promise((resolve) => setImmediate(resolve)); // each its own chunk
      }
    };
    await using client = await connect();
    expect(await client.execute('a')).toBe('größer');
  });
});

describe('connecting', () => {
  it('waits until somebody listens', async () => {
    const later = path.join(folder, 'later.sock');
    const connecting = LineClient.connect(later, {
      peer: 'the peer',
      errorCode: 'SF_QEMU_FAILED',
      timeoutMs: 10_000,
    });
    const lateServer = net.createServer((socket) => socket.resume()).listen(later);
    const client = await connecting;
    client.close();
    lateServer.close();
  });

  it('ends at the deadline, or when the process has ended', async () => {
    const nobody = { peer: 'the peer', errorCode: 'SF_QEMU_FAILED', timeoutMs: 1 } as const;
    const never = path.join(folder, 'never.sock');
    await expect(LineClient.connect(never, nobody)).rejects.toMatchObject({ code: 'SF_TIMEOUT' });
    const reason = new SnowforkError('SF_QEMU_FAILED', 'QEMU ended with code 1: bad option');
    const signal = AbortSignal.abort(reason);
    await expect(connectQmp(never, { signal })).rejects.toBe(reason);
  });

  it('to QEMU takes its greeting and opens the monitor', async () => {
    server.prependListener('connection', (socket) => socket.write('{"QMP": {"version": {}}}\r\n'));
    await using qmp = await connectQmp(socketPath);
    expect(await qmp.execute('query-status')).toBe('query-status');
    expect(commands.map(({ execute }) => execute)).toEqual(['qmp_capabilities', 'query-status']);
  });
});
