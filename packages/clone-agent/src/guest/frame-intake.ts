// Reads the frames of one guest's port, no faster than the agent can afford: a guest that does not
// read what it is sent is not heard until it does, and one that keeps the agent busy is heard less
// often, so that its neighbours are. It knows frames and nothing of what they ask for. One per channel.

import type net from 'node:net';
import { type Frame, FrameError, FrameReader } from '@snowfork/sdk/api';

/** Of the agent's time, the part that the frames of one guest may take in the long run. */
export const BUSY_SHARE_MAX = 0.25;
/** So much at a time is taken for granted: a fork, a large value. */
export const BUSY_BURST_MS = 250;

export interface FrameTaker {
  /** @throws FrameError when the guest breaks the protocol. */
  take(frame: Frame): void;
  /** More waits for the guest to read it than it may leave unread. */
  isFull(): boolean;
  /** Nothing more is taken. */
  broke(error: FrameError): void;
}

export class FrameIntake {
  readonly #socket: net.Socket;
  readonly #taker: FrameTaker;
  readonly #now: () => number;
  readonly #reader = new FrameReader();
  #frames: Frame[] = [];
  #creditMs = BUSY_BURST_MS;
  #creditAt: number;
  #rest: NodeJS.Timeout | undefined;
  /** Until it is not full any more. */
  #isWaiting = false;
  #ended = false;

  constructor(socket: net.Socket, taker: FrameTaker, now = () => performance.now()) {
    this.#socket = socket;
    this.#taker = taker;
    this.#now = now;
    this.#creditAt = now();
    socket.on('data', (chunk) => this.#receive(chunk));
  }

  /** To be called when it is not full, or may not be. */
  goOn(): void {
    if (this.#isWaiting) this.#proceed();
  }

  stop(): void {
    this.#ended = true;
    this.#frames = [];
    clearTimeout(this.#rest);
  }

  #proceed(): void {
    if (this.#ended || this.#rest !== undefined) return;
    const startedAt = this.#now();
    this.#guarded(() => this.#takeFrames());
    this.#spend(startedAt);
    if (this.#ended) return;
    this.#isWaiting = this.#taker.isFull();
    if (this.#isWaiting || this.#rest !== undefined) this.#socket.pause();
    else if (this.#socket.isPaused()) this.#socket.resume();
  }

  #receive(chunk: Buffer): void {
    if (this.#ended) return;
    this.#guarded(() => {
      for (const frame of this.#reader.push(chunk)) this.#frames.push(frame);
    });
    this.#proceed();
  }

  #takeFrames(): void {
    let taken = 0;
    while (taken < this.#frames.length && !this.#ended && !this.#taker.isFull()) {
      this.#taker.take(this.#frames[taken++]!);
    }
    this.#frames = this.#frames.slice(taken);
  }

  #guarded(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (!(error instanceof FrameError)) throw error;
      this.stop();
      this.#taker.broke(error);
    }
  }

  /** A guest that has used up its part of the agent's time has to wait until it has some again. */
  #spend(startedAt: number): void {
    const now = this.#now();
    const earnedMs = (now - this.#creditAt) * BUSY_SHARE_MAX;
    this.#creditAt = now;
    this.#creditMs = Math.min(BUSY_BURST_MS, this.#creditMs + earnedMs) - (now - startedAt);
    if (this.#creditMs >= 0 || this.#ended) return;
    this.#rest = setTimeout(() => {
      this.#rest = undefined;
      this.#proceed();
    }, -this.#creditMs / BUSY_SHARE_MAX).unref();
  }
}
