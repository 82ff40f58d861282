// Waits for datagrams without going to sleep, for a part of a millisecond: to be woken takes as long as
// half of the way from host to host. Only where they come as fast of late, and giving way to whatever
// has work for the processor, so that it costs others nothing but power. Called by the two ends of a
// demand: who waits for the answer, and who waits for the next request of one who has just been
// answered.

import { yieldProcessor } from './system-socket.js';

/** Longer than a round trip between hosts of one network, and than it takes a guest to fault again. */
export const LINGER_MS = 0.2;

/**
 * `takeNow` takes what has come, if anything has; returns whether something came in time. `nowMs` is
 * the clock, in milliseconds.
 */
export function linger(takeNow: () => boolean, nowMs = () => performance.now()): boolean {
  const endMs = nowMs() + LINGER_MS;
  for (;;) {
    if (takeNow()) return true;
    if (nowMs() >= endMs) return false;
    yieldProcessor();
  }
}
