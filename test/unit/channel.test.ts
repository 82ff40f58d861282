// The agent's end of a guest's port, with a guest that is played by the test: whatever it sends, the
// channel throws nothing, takes no more than its bounds, and is lost at the worst.

import { setMaxListeners } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import {
  type ChannelHandlers,
  EXECS_MAX,
  GuestChannel,
  type PendingRequest,
  REQUESTS_PENDING_MAX,
} from '../../packages/clone-agent/src/guest/channel.js';
import type { SnowforkError } from '../../packages/sdk/src/api/errors.js';
import {
  decodeLines,
  EXEC_WINDOW_BYTES,
  encodeFrame,
  encodeLines,
  encodeMessage,
  FLAG_END,
  FLAG_MORE,
  FRAME_PAYLOAD_BYTES_MAX,
  FrameType,
} from '../../packages/sdk/src/api/port.js';
import { encodeValue } from '../../packages/sdk/src/api/value.js';
import { eventually } from '../support/eventually.js';
import { FramePeer } from '../support/fake-port.js';
import { times } from '../support/soak.js';

const NEVER = new AbortController().signal;
setMaxListeners(0, NEVER);
const MiB = 1024 * 1024;

let folder: string;
let server: net.Server;
let guests: net.Socket[] = [];
const open: GuestChannel[] = [];

beforeAll(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'sf-channel-'));
  server = net.createServer((socket) => guests.push(socket));
  await new Promise<void>((resolve) => server.listen(path.join(folder, 'port'), resolve));
});

afterEach(() => {
  for (const channel of open.splice(0)) channel.close();
  for (const guest of guests.splice(0)) guest.destroy();
});

afterAll(async () => {
  await new Promise((resolve) => server.close(resolve));
  fs.rmSync(folder, { recursive: true });
});

/** What the owner of a channel was told. */
interface Told {
  readonly requests: PendingRequest[];
  readonly closed: number[];
  readonly lost: string[];
  readonly broken: string[];
  logBytes: number;
}

async function connected(
  handlers: Partial<ChannelHandlers> = {},
): Promise<{ channel: GuestChannel; guest: net.Socket; told: Told }> {
  const told: Told = { requests: [], closed: [], lost: [], broken: [], logBytes: 0 };
  guests = [];
  const channel = await GuestChannel.connect(
    path.join(folder, 'port'),
    {
      hello: () => {},
      request: (request) => told.requests.push(request),
      closed: (stream) => told.closed.push(stream),
      log: (bytes) => {
        told.logBytes += bytes.length;
      },
      lost: (reason) => told.lost.push(reason),
      broken: (reason) => told.broken.push(reason),
      ...handlers,
    },
    { frozen: false, timeoutMs: 10_000 },
  );
  open.push(channel);
  await eventually(() => expect(guests).toHaveLength(1));
  guests[0]!.on('error', () => {});
  return { channel, guest: guests[0]!, told };
}

const requestOf = (id: number, method = 'info', params: unknown = {}, stream = 1): Buffer =>
  encodeMessage(FrameType.request, stream, encodeValue({ id, method, params }));

/** When the channel has seen all that the guest has sent, it is lost or it answers this. */
async function heard(channel: GuestChannel, guest: net.Socket, told: Told): Promise<void> {
  const before = told.requests.length;
  const stream = 0xffff_fff0;
  if (!guest.destroyed) guest.write(requestOf(before, 'info', {}, stream));
  await eventually(() => {
    if (!channel.usable) return;
    expect(told.requests.some((request) => request.stream === stream)).toBe(true);
  });
}

describe('whatever a guest sends', () => {
  const types = Object.values(FrameType);
  const payload = fc.oneof(
    fc.uint8Array({ maxLength: 200 }),
    fc.constantFrom(
      encodeLines({ fork: 'f1', ok: 1, monotonic: '1'.repeat(40) }),
      encodeLines({ fork: 'f1', error: 'x' }),
      encodeLines({ bytes: -1 }),
      encodeLines({ bytes: 1e300 }),
      encodeLines({ pid: 'a', code: 'b', signal: '9999999999999' }),
      encodeValue({ id: 1, method: 'join', params: { ticket: 't1' } }),
      encodeValue({ id: 1, method: 'nothing', params: null }),
      encodeValue({ id: -1, method: 'fork', params: [] }),
      Buffer.from('ddffffffff', 'hex'),
    ),
  );
  const frame = fc
    .record({
      type: fc.constantFrom(...types),
      stream: fc.constantFrom(0, 1, 2, 0xffff_ffff),
      flags: fc.constantFrom(0, 0, 0, FLAG_MORE, FLAG_END),
      payload,
    })
    .map(({ type, stream, flags, payload }) => encodeFrame(type, stream, payload, flags));
  const garbage = fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes));

  it('the channel is usable afterwards, or lost with the reason', async () => {
    const sent = fc.array(fc.oneof({ weight: 20, arbitrary: frame }, garbage), { maxLength: 40 });
    await fc.assert(
      fc.asyncProperty(sent, fc.boolean(), async (pieces, inHandshake) => {
        const { channel, guest, told } = await connected();
        const refused = (error: Error) => expect(error.name).toBe('SnowforkError');
        const abort = new AbortController();
        const exec = channel.exec({ command: ['true'] }, NEVER).catch(refused);
        const prepared = inHandshake ? channel.prepare('f1', abort.signal).catch(refused) : true;
        guest.write(Buffer.concat(pieces));
        await heard(channel, guest, told);
        expect(told.lost).toHaveLength(channel.usable ? 0 : 1);
        expect(told.broken).toEqual(told.lost);
        abort.abort();
        channel.close();
        guest.destroy();
        await Promise.all([exec, prepared]);
      }),
      { numRuns: times(60, 60_000) },
    );
  });

  it.each([
    ['a frame that is too long', Buffer.from('010001000600000000000000', 'hex'), 'frame of 65537'],
    ['a type that there is not', Buffer.from('000000007700000000000000', 'hex'), 'frame type 119'],
    ['a frame of the agent', encodeFrame(FrameType.prepare, 0), 'is not for the agent'],
    ['a request that is none', encodeFrame(FrameType.request, 1, Buffer.from('x')), 'of the form'],
    [
      'a request of a method that there is not',
      requestOf(1, 'reboot the host'),
      'not of the form agreed',
    ],
    ['an empty part', encodeFrame(FrameType.request, 1, Buffer.alloc(0), FLAG_MORE), 'empty frame'],
  ])('it is lost by %s, and its owner told why', async (_, bytes, words) => {
    const { channel, guest, told } = await connected();
    guest.write(bytes);
    await eventually(() => expect(told.broken).toHaveLength(1));
    expect(told.broken[0]).toContain('the guest broke the protocol');
    expect(told.broken[0]).toContain(words);
    expect(channel.usable).toBe(false);
    await expect(channel.exec({ command: ['true'] }, NEVER)).rejects.toMatchObject({
      code: 'SF_GUEST_NOT_READY',
    });
    await eventually(() => expect(guest.destroyed).toBe(true));
  });

  it('a port that is closed is no breach of the protocol', async () => {
    const { guest, told } = await connected();
    guest.destroy();
    await eventually(() => expect(told.lost).toEqual(['the port was closed']));
    expect(told.broken).toEqual([]);
  });

  it('what was never asked for is passed over', async () => {
    const { channel, guest, told } = await connected();
    for (const type of [FrameType.prepared, FrameType.resumed, FrameType.pong, FrameType.hello]) {
      for (const fork of ['f1', '', 'x'.repeat(60_000)]) {
        guest.write(encodeFrame(type, 0, encodeLines({ fork, ok: 1, error: 'none' })));
      }
    }
    for (const type of [FrameType.started, FrameType.exit, FrameType.credit]) {
      guest.write(encodeFrame(type, 77, encodeLines({ code: 0, bytes: 1e9, pid: 1 })));
    }
    await heard(channel, guest, told);
    expect(channel.usable).toBe(true);
  });

  it('a repair that failed in too many words is told in few', async () => {
    const { channel, guest } = await connected();
    const peer = new FramePeer(guest);
    const facts = { fork: 'f1', role: 'clone', id: 1, hostname: 'h', entropy: Buffer.alloc(64) };
    const resumed = channel.resume({ ...facts, role: 'clone' }, NEVER);
    resumed.catch(() => {});
    await peer.next(FrameType.resume);
    peer.send(FrameType.resumed, 0, encodeLines({ fork: 'f1', error: 'E'.repeat(60_000) }));
    const error = await resumed.catch((failure: SnowforkError) => failure);
    expect(error).toMatchObject({ code: 'SF_CLONE_FAILED' });
    expect((error as SnowforkError).message.length).toBeLessThan(1000);
  });
});

describe('a guest that does not read', () => {
  it('is not heard any more when too much waits for it, and then it is', async () => {
    const result = Buffer.alloc(1 * MiB);
    let answered = 0;
    const { channel, guest } = await connected({
      request: (request) => {
        answered++;
        channel.respond(request, { result });
      },
    });
    guest.pause();
    const asked = 200;
    for (let id = 0; id < asked; id++) guest.write(requestOf(id));
    await eventually(() => expect(answered).toBeGreaterThan(30));
    await delay(200);
    // 33 MiB and what lies in the sockets; all of them would be 200 MiB.
    expect(answered).toBeLessThan(50);
    let bytes = 0;
    guest.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
    });
    guest.resume();
    await eventually(() => expect(answered).toBe(asked));
    await eventually(() => expect(bytes).toBeGreaterThan(asked * MiB));
    expect(channel.usable).toBe(true);
  });

  it('is not answered pings without end', async () => {
    const { channel, guest, told } = await connected();
    guest.pause();
    const pings = Buffer.concat(new Array(4096).fill(encodeFrame(FrameType.ping, 0)));
    const parts = 48;
    let taken = 0;
    const send = (): void => {
      if (taken === parts) guest.write(requestOf(1, 'info', {}, 9));
      else
        guest.write(pings, () => {
          taken++;
          send();
        });
    };
    send();
    for (let before = -1; before !== taken; await delay(500)) before = taken;
    expect(taken).toBeLessThan(parts);
    expect(told.requests).toEqual([]);
    guest.resume();
    await eventually(() => expect(told.requests).toHaveLength(1));
    expect(channel.usable).toBe(true);
  });

  it('loses its channel when it asks for too much in the midst of a freeze', async () => {
    const result = Buffer.alloc(7 * MiB);
    const { channel, guest, told } = await connected({
      request: (request) => channel.respond(request, { result }),
    });
    const prepared = channel.prepare('f1', NEVER).catch((error: SnowforkError) => error.code);
    for (let id = 0; id < 40; id++) guest.write(requestOf(id));
    await eventually(() => expect(told.lost).toEqual(['too much was sent to a frozen guest']));
    expect(await prepared).toBe('SF_VM_GONE');
  });
});

describe('a guest that goes on', () => {
  const facts = { fork: 'f1', id: 1, hostname: 'h', entropy: Buffer.alloc(64) };
  const clone = { ...facts, role: 'clone' } as const;

  /** A clone whose clock shows `performance.now()`; QEMU may have let it run `lateMs` late. */
  async function goingOn(lateMs: number, handlers: Partial<ChannelHandlers> = {}) {
    const { channel, guest } = await connected(handlers);
    const peer = new FramePeer(guest);
    const monotonicMs = performance.now();
    const resumed = { earliestMs: monotonicMs - lateMs, latestMs: monotonicMs };
    const reading = { monotonicMs, lowMs: monotonicMs, highMs: monotonicMs };
    channel.clock.start(resumed, { reading, virtualMs: 0 });
    return { channel, peer };
  }

  /** Until RESUME comes, whose lines are returned. */
  async function looksUntilResume(peer: FramePeer, shownMs: () => number) {
    for (let looks = 0; ; looks++) {
      const frame = await peer.next([FrameType.ping, FrameType.resume]);
      if (frame.type === FrameType.resume) return { looks, lines: decodeLines(frame.payload) };
      const text = `monotonic=${Math.round(shownMs() * 1e6)}\n${frame.payload}`;
      peer.send(FrameType.pong, 0, Buffer.from(text));
    }
  }

  it('is looked at first when its clock is badly known, and told the right time', async () => {
    const { channel, peer } = await goingOn(5000);
    const resumed = channel.resume(clone, NEVER);
    const { looks, lines } = await looksUntilResume(peer, () => performance.now());
    expect(looks).toBeGreaterThan(0);
    const originMs = Number(lines.get('origin')) / 1e6;
    expect(Math.abs(originMs + performance.now() - Date.now())).toBeLessThan(1000);
    peer.sendLines(FrameType.resumed, 0, { fork: 'f1', ok: 1 });
    await resumed;
  });

  it.each([
    ['its clock is well known', 0, clone],
    ['its clock has not stood still', 5000, { ...facts, role: 'failed' } as const],
  ])('is not looked at when %s', async (_, lateMs, told) => {
    const { channel, peer } = await goingOn(lateMs);
    const resumed = channel.resume(told, NEVER);
    const { looks, lines } = await looksUntilResume(peer, () => performance.now());
    expect(looks).toBe(0);
    expect(lines.has('origin')).toBe(told.role === 'clone');
    peer.sendLines(FrameType.resumed, 0, { fork: 'f1', ok: 1 });
    await resumed;
  });

  it('is told what is known when looks are in vain', async () => {
    const { channel, peer } = await goingOn(5000);
    const resumed = channel.resume(clone, NEVER);
    const { looks, lines } = await looksUntilResume(peer, () => Number.NaN);
    expect(looks).toBe(20);
    expect(lines.has('origin')).toBe(true);
    peer.sendLines(FrameType.resumed, 0, { fork: 'f1', ok: 1 });
    await resumed;
  });

  it('gets what is sent to it meanwhile after its RESUME, the next PREPARE too', async () => {
    const { channel, peer } = await goingOn(5000);
    const resumed = channel.resume(clone, NEVER);
    const prepared = channel.prepare('f2', NEVER);
    const { looks } = await looksUntilResume(peer, () => performance.now());
    expect(looks).toBeGreaterThan(0);
    expect(peer.frames).toEqual([]);
    peer.sendLines(FrameType.resumed, 0, { fork: 'f1', ok: 1 });
    await resumed;
    await peer.next(FrameType.prepare);
    const monotonic = Math.round(performance.now() * 1e6);
    peer.sendLines(FrameType.prepared, 0, { fork: 'f2', monotonic });
    await prepared;
  });

  it('takes a command that is run between two looks', async () => {
    let exec: Promise<unknown> | undefined;
    const { channel, peer } = await goingOn(5000, {
      request: () => {
        exec = channel.exec({ command: ['true'] }, NEVER);
      },
    });
    const resumed = channel.resume(clone, NEVER);
    const { payload } = await peer.next(FrameType.ping);
    // In one chunk with the answer, whose handshake is over then.
    const pong = encodeFrame(FrameType.pong, 0, Buffer.from(`monotonic=x\n${payload}`));
    peer.socket.write(Buffer.concat([pong, requestOf(1)]));
    await looksUntilResume(peer, () => performance.now());
    peer.sendLines(FrameType.resumed, 0, { fork: 'f1', ok: 1 });
    await resumed;
    const { stream } = await peer.next(FrameType.exec);
    peer.sendLines(FrameType.started, stream, { pid: 7 });
    expect(await exec).toMatchObject({ pid: 7 });
  });
});

describe('requests of a guest', () => {
  it('are refused when too many wait already', async () => {
    const { guest, told } = await connected();
    const peer = new FramePeer(guest);
    for (let id = 0; id < REQUESTS_PENDING_MAX + 10; id++) guest.write(requestOf(id));
    for (let i = 0; i < 10; i++) await peer.next(FrameType.response);
    expect(told.requests).toHaveLength(REQUESTS_PENDING_MAX);
  });

  it('get an error when their answer is too large to travel', async () => {
    const { channel, guest } = await connected({
      request: (request) => channel.respond(request, { result: Buffer.alloc(9 * MiB) }),
    });
    const peer = new FramePeer(guest);
    guest.write(requestOf(1));
    const { payload } = await peer.message(FrameType.response);
    expect(payload.toString('latin1')).toContain('SF_VALUE_TOO_LARGE');
  });
});

describe('the output of a command', () => {
  async function running() {
    const { channel, guest, told } = await connected();
    const peer = new FramePeer(guest);
    const starting = channel.exec({ command: ['true'] }, NEVER);
    const { stream } = await peer.next(FrameType.exec);
    peer.send(FrameType.started, stream, encodeLines({ pid: 'no number' }));
    const exec = await starting;
    expect(exec.pid).toBe(0);
    return { channel, guest, told, peer, stream, exec };
  }

  it('that comes byte by byte and is not read is all there when it is', async () => {
    const { told, guest, channel, stream, exec } = await running();
    const bytes = Array.from({ length: 5000 }, (_, i) => {
      const type = i % 2 === 0 ? FrameType.stdout : FrameType.stderr;
      return encodeFrame(type, stream, Buffer.of(i % 251));
    });
    guest.write(Buffer.concat(bytes));
    guest.write(encodeFrame(FrameType.exit, stream, encodeLines({ code: 3, signal: 'none' })));
    await heard(channel, guest, told);
    const output = { stdout: [] as number[], stderr: [] as number[] };
    let events = 0;
    for await (const event of exec.events()) {
      events++;
      if (event.kind === 'exit') expect(event.exit).toEqual({ code: 3, signal: null });
      else output[event.kind].push(...event.bytes);
    }
    expect(events).toBeLessThan(2000);
    const all = Array.from({ length: 5000 }, (_, i) => i % 251);
    expect(output.stdout).toEqual(all.filter((_, i) => i % 2 === 0));
    expect(output.stderr).toEqual(all.filter((_, i) => i % 2 === 1));
  });

  it('that is empty costs nothing', async () => {
    const { told, guest, channel, stream, exec } = await running();
    const empty = Buffer.concat(new Array(5000).fill(encodeFrame(FrameType.stdout, stream)));
    for (let i = 0; i < 20; i++) guest.write(empty);
    guest.write(encodeFrame(FrameType.exit, stream, encodeLines({ code: 0 })));
    await heard(channel, guest, told);
    const kinds: string[] = [];
    for await (const event of exec.events()) kinds.push(event.kind);
    expect(kinds).toEqual(['exit']);
  });

  it('beyond its window is a breach of the protocol', async () => {
    const { told, guest, stream, exec } = await running();
    const chunk = encodeFrame(FrameType.stdout, stream, Buffer.alloc(FRAME_PAYLOAD_BYTES_MAX));
    for (let bytes = 0; bytes <= EXEC_WINDOW_BYTES; bytes += FRAME_PAYLOAD_BYTES_MAX) {
      guest.write(chunk);
    }
    await eventually(() => expect(told.broken[0]).toContain('output beyond its window'));
    await expect(
      (async () => {
        for await (const _ of exec.events());
      })(),
    ).rejects.toMatchObject({ code: 'SF_VM_GONE' });
  });

  it('of a command that nobody knows goes to the log', async () => {
    const { told, guest, channel } = await connected();
    for (let i = 0; i < 100; i++) {
      guest.write(encodeFrame(FrameType.stdout, 5, Buffer.alloc(FRAME_PAYLOAD_BYTES_MAX)));
    }
    guest.resume();
    await heard(channel, guest, told);
    expect(told.logBytes).toBe(100 * FRAME_PAYLOAD_BYTES_MAX);
  });

  it('of more commands than may run is never asked for', async () => {
    const { channel } = await connected();
    const many = Array.from({ length: EXECS_MAX }, () =>
      channel.exec({ command: ['x'] }, new AbortController().signal),
    );
    for (const one of many) one.catch(() => {});
    await expect(channel.exec({ command: ['x'] }, NEVER)).rejects.toMatchObject({
      code: 'SF_BAD_REQUEST',
    });
  });
});
