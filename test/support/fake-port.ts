// The two ends that `sf-guestd` stands between, played by the tests: the agent at the port (a unix
// socket that the daemon connects to) and a program at guest.sock. Both speak raw frames, so that
// they can also say what is wrong. Called by the tests of the guest side only.

import { EventEmitter, once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import {
  encodeFrame,
  encodeLines,
  encodeMessage,
  type Frame,
  FrameReader,
  FrameType,
  MessageAssembler,
} from '../../packages/sdk/src/api/port.js';

/** Frames of one connection, in order, to be awaited. */
export class FramePeer {
  readonly socket: Socket;
  readonly frames: Frame[] = [];
  readonly closed: Promise<boolean>;
  readonly #reader = new FrameReader();
  readonly #changes = new EventEmitter();

  constructor(socket: Socket) {
    this.socket = socket;
    this.closed = new Promise((resolve) => socket.once('close', resolve));
    this.#changes.setMaxListeners(0);
    socket.on('data', (chunk) => {
      this.frames.push(...this.#reader.push(chunk));
      this.#changes.emit('change');
    });
    socket.on('close', () => this.#changes.emit('change'));
    socket.on('error', () => {});
  }

  /** The next frame of these types (and this stream); others that came before it stay. */
  async next(types: FrameType | readonly FrameType[], stream?: number): Promise<Frame> {
    const wanted = typeof types === 'number' ? [types] : types;
    for (;;) {
      const at = this.frames.findIndex(
        (frame) => wanted.includes(frame.type) && (stream === undefined || frame.stream === stream),
      );
      if (at >= 0) return this.frames.splice(at, 1)[0]!;
      if (this.socket.destroyed) throw new Error(`closed while waiting for frames ${wanted}`);
      await once(this.#changes, 'change');
    }
  }

  /** A whole message of one stream. */
  async message(type: FrameType, stream?: number): Promise<{ stream: number; payload: Buffer }> {
    const assembler = new MessageAssembler();
    const first = await this.next(type, stream);
    let payload = assembler.push(first);
    while (payload === undefined) payload = assembler.push(await this.next(type, first.stream));
    return { stream: first.stream, payload };
  }

  send(type: FrameType, stream: number, payload: Uint8Array = Buffer.alloc(0), flags = 0): void {
    this.socket.write(encodeFrame(type, stream, payload, flags));
  }

  sendMessage(type: FrameType, stream: number, payload: Uint8Array): void {
    this.socket.write(encodeMessage(type, stream, payload));
  }

  sendLines(type: FrameType, stream: number, fields: Record<string, string | number>): void {
    this.send(type, stream, encodeLines(fields));
  }

  /** Resolves when all that was sent before was taken in: PING is answered in order. */
  async settle(): Promise<void> {
    this.send(FrameType.ping, 0, Buffer.from('settle'));
    await this.next(FrameType.pong);
  }
}

/** A unix socket that somebody connects to, and the connections it gets. */
export class FrameServer {
  readonly path: string;
  readonly #server: Server;
  readonly #waiting: FramePeer[] = [];
  readonly #all = new Set<Socket>();
  readonly #changes = new EventEmitter();

  private constructor(path: string) {
    this.path = path;
    this.#server = createServer((socket) => {
      this.#all.add(socket);
      this.#waiting.push(new FramePeer(socket));
      this.#changes.emit('change');
    });
  }

  static async listen(path: string): Promise<FrameServer> {
    const server = new FrameServer(path);
    server.#server.listen(path);
    await once(server.#server, 'listening');
    return server;
  }

  async accept(): Promise<FramePeer> {
    for (;;) {
      const peer = this.#waiting.shift();
      if (peer !== undefined) return peer;
      await once(this.#changes, 'change');
    }
  }

  async close(): Promise<void> {
    for (const socket of this.#all) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

export async function connectPeer(path: string): Promise<FramePeer> {
  const socket = connect(path);
  await once(socket, 'connect');
  return new FramePeer(socket);
}
