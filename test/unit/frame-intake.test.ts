// A guest that keeps the agent busy is heard less often, by a clock that the test owns; all that it
// has sent is taken in the end, in order.

import net from 'node:net';
import { afterEach, expect, it, vi } from 'vitest';
import {
  BUSY_BURST_MS,
  BUSY_SHARE_MAX,
  FrameIntake,
} from '../../packages/clone-agent/src/guest/frame-intake.js';
import { encodeFrame, FrameType } from '../../packages/sdk/src/api/port.js';

afterEach(() => {
  vi.useRealTimers();
});

/** An intake whose frames take `costMs` each, and what it took. */
function intakeOf(costMs: number) {
  vi.useFakeTimers();
  let now = 1000;
  const socket = new net.Socket();
  const taken: number[] = [];
  const broken: string[] = [];
  let full = false;
  const intake = new FrameIntake(
    socket,
    {
      take: ({ stream }) => {
        taken.push(stream);
        now += costMs;
      },
      isFull: () => full,
      broke: (error) => broken.push(error.message),
    },
    () => now,
  );
  let sent = 0;
  return {
    socket,
    intake,
    taken,
    broken,
    send: (count: number) => {
      const frames = Array.from({ length: count }, () => encodeFrame(FrameType.ping, sent++));
      socket.emit('data', Buffer.concat(frames));
    },
    fill: (is: boolean) => {
      full = is;
    },
    pass: (ms: number) => {
      now += ms;
      vi.advanceTimersByTime(ms);
    },
  };
}

it('hears a guest at once as long as it asks for little', () => {
  const { send, taken, socket } = intakeOf(1);
  for (let i = 0; i < 20; i++) send(10);
  expect(taken).toHaveLength(200);
  expect(socket.isPaused()).toBe(false);
});

it('gives a guest that floods its share of the time and no more', () => {
  const { send, taken, pass, socket } = intakeOf(10);
  let passedMs = 0;
  for (; taken.length < 1000; passedMs += 100) {
    if (!socket.isPaused()) send(5);
    pass(100);
  }
  const busyMs = taken.length * 10;
  const elapsedMs = passedMs + busyMs;
  expect(busyMs).toBeLessThan(elapsedMs * BUSY_SHARE_MAX + BUSY_BURST_MS + 5 * 10);
  expect(taken).toEqual(taken.map((_, at) => at));
});

it('keeps what came while it rests, and while it is full', () => {
  const { send, taken, pass, fill, intake, socket } = intakeOf(1000);
  send(1);
  send(2);
  expect(taken).toEqual([0]);
  expect(socket.isPaused()).toBe(true);
  fill(true);
  pass(60_000);
  intake.goOn();
  expect(taken).toEqual([0]);
  fill(false);
  intake.goOn();
  expect(taken).toEqual([0, 1, 2]);
});

it('takes nothing more after a breach of the protocol, or its end', () => {
  const one = intakeOf(0);
  one.send(1);
  one.socket.emit('data', Buffer.alloc(12, 0xff));
  one.send(1);
  expect(one.broken).toHaveLength(1);
  expect(one.taken).toEqual([0]);
  const other = intakeOf(0);
  other.intake.stop();
  other.send(1);
  expect(other.taken).toEqual([]);
});
