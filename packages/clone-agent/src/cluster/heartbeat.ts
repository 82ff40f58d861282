// Tells a peer that is gone from one that is silent: both ends say that they are there, and whoever
// hears nothing for long ends the connection. Without it a host that lost its power looks like one
// that thinks.

import type { Duplex } from 'node:stream';

/** After which the kernel asks: on connections whose bytes are not ours, such as those to an API. */
export const KEEP_ALIVE_MS = 5000;
const SIGN_OF_LIFE_MS = 2000;
const SILENCE_MS_MAX = 10_000;

/** Until the connection closes. */
export function keepAlive(socket: Duplex, say: () => void): void {
  let heardMs = performance.now();
  const timer = setInterval(() => {
    if (performance.now() - heardMs > SILENCE_MS_MAX) socket.destroy();
    else say();
  }, SIGN_OF_LIFE_MS);
  timer.unref();
  socket.on('data', () => {
    heardMs = performance.now();
  });
  socket.on('close', () => clearInterval(timer));
}
