// The side of an agent that other agents talk to: TLS 1.3 with certificates of the cluster on both
// ends. Answers calls, hands connections over to the host's own API, and lets hosts join that have a
// token. Whatever comes from outside is bounded and checked before anything is done for it.

import tls, { type TLSSocket } from 'node:tls';
import { SnowforkError } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { z } from 'zod';
import { identityOf } from './authority.js';
import type { ClusterFile } from './cluster-file.js';
import { KEEP_ALIVE_MS, keepAlive } from './heartbeat.js';
import { encodeFrame, FrameReader, firstFrame } from './peer-frames.js';
import {
  cancelSchema,
  type Hello,
  helloSchema,
  type PeerHandlers,
  type PeerMethod,
  peerMethods,
  requestSchema,
} from './peer-methods.js';

const CONNECTIONS_MAX = 1024;
const HELLO_BYTES_MAX = 64 * 1024;
const HELLO_TIMEOUT_MS = 10_000;
/** Calls of one connection that are being answered. */
const CALLS_MAX = 256;

export interface PeerServerOptions {
  readonly file: ClusterFile;
  readonly handlers: PeerHandlers;
  readonly log: Logger;
  /** A host that proved to have a token, or not. @throws SnowforkError that says why it may not. */
  join(hello: Extract<Hello, { for: 'join' }>): Promise<unknown>;
  /** The connection is one to this host's API from now on. */
  serveApi(socket: TLSSocket): void;
  /** The host was taken out of the cluster: its certificate counts no more. */
  isRemoved(host: string): boolean;
}

export class PeerServer {
  readonly #options: PeerServerOptions;
  readonly #server: tls.Server;
  readonly #sockets = new Set<TLSSocket>();

  /** @throws SnowforkError SF_PERMISSION when the port can't be had. */
  static async listen(options: PeerServerOptions): Promise<PeerServer> {
    const server = new PeerServer(options);
    const { address, port } = options.file.host;
    await new Promise<void>((resolve, reject) => {
      server.#server.once('error', (cause) => {
        const message = `the agent can't listen on ${address}:${port}: ${cause.message}`;
        reject(new SnowforkError('SF_PERMISSION', message, { cause }));
      });
      server.#server.listen({ host: address, port }, resolve);
    });
    return server;
  }

  private constructor(options: PeerServerOptions) {
    this.#options = options;
    this.#server = tls.createServer(
      {
        ...credentialsOf(options.file),
        requestCert: true,
        // A host that joins has no certificate; all else is refused below.
        rejectUnauthorized: false,
        handshakeTimeout: HELLO_TIMEOUT_MS,
      },
      (socket) => void this.#take(socket),
    );
    this.#server.maxConnections = CONNECTIONS_MAX;
    this.#server.on('tlsClientError', (error, socket) => {
      options.log.warn({ peer: socket.remoteAddress, err: error }, 'no TLS with a peer');
    });
  }

  /** What new connections are shown; those that are there go on. */
  useCertificate(file: ClusterFile): void {
    this.#server.setSecureContext(credentialsOf(file));
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  async #take(socket: TLSSocket): Promise<void> {
    const { log } = this.#options;
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    socket.on('error', () => socket.destroy());
    socket.setNoDelay(true);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    try {
      const limits = { bytesMax: HELLO_BYTES_MAX, timeoutMs: HELLO_TIMEOUT_MS };
      const hello = helloSchema.parse(await firstFrame(socket, limits));
      if (hello.for === 'join') {
        socket.end(encodeFrame({ result: await this.#options.join(hello) }));
        return;
      }
      const host = this.#assertMember(socket);
      socket.write(encodeFrame({ welcome: true }));
      if (hello.for === 'api') this.#options.serveApi(socket);
      else new CallsConnection(socket, host, this.#options);
    } catch (cause) {
      const error = SnowforkError.from(cause, 'SF_BAD_REQUEST');
      log.warn({ peer: socket.remoteAddress, err: error }, 'a peer was refused');
      if (!socket.destroyed) socket.end(encodeFrame({ error: error.toJSON() }));
    }
  }

  /** @throws SnowforkError SF_PERMISSION: it is no host of this cluster. */
  #assertMember(socket: TLSSocket): string {
    const { cluster, host: own } = this.#options.file;
    const identity = socket.authorized ? identityOf(socket) : undefined;
    const isOurs = identity?.cluster === cluster.id;
    if (isOurs && !this.#options.isRemoved(identity.host)) return identity.host;
    const words =
      identity === undefined
        ? `its certificate is not of cluster ${cluster.name} (${socket.authorizationError})`
        : isOurs
          ? `${identity.host} was taken out of the cluster: \`sf host join\` joins it anew`
          : `it is of another cluster (${identity.cluster})`;
    throw new SnowforkError('SF_PERMISSION', `${own.name} refuses the connection: ${words}`);
  }
}

function credentialsOf({ ca, certificate, privateKey }: ClusterFile): tls.SecureContextOptions {
  // With the authority's, so that a host that joins can check it by its token.
  return { minVersion: 'TLSv1.3', cert: `${certificate}\n${ca}`, key: privateKey, ca };
}

/** A connection by which another host makes calls. */
class CallsConnection {
  readonly #socket: TLSSocket;
  readonly #host: string;
  readonly #options: PeerServerOptions;
  readonly #reader = new FrameReader();
  readonly #calls = new Map<number, AbortController>();

  constructor(socket: TLSSocket, host: string, options: PeerServerOptions) {
    this.#socket = socket;
    this.#host = host;
    this.#options = options;
    keepAlive(socket, () => this.#say({ alive: true }));
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.on('close', () => {
      const reason = new SnowforkError('SF_ABORTED', `host ${host} is gone`);
      for (const call of this.#calls.values()) call.abort(reason);
    });
    socket.resume();
  }

  #take(chunk: Buffer): void {
    if (this.#options.isRemoved(this.#host)) return void this.#socket.destroy();
    try {
      this.#reader.push(chunk);
      for (let frame = this.#reader.next(); frame; frame = this.#reader.next()) {
        this.#takeFrame(frame.value);
      }
    } catch (error) {
      this.#options.log.warn({ host: this.#host, err: error }, 'a host sent what is no call');
      this.#socket.destroy();
    }
  }

  #takeFrame(value: unknown): void {
    const cancel = cancelSchema.safeParse(value);
    if (cancel.success) {
      const reason = new SnowforkError('SF_ABORTED', `host ${this.#host} gave up`);
      this.#calls.get(cancel.data.cancel)?.abort(reason);
      return;
    }
    if (typeof value === 'object' && value !== null && 'alive' in value) return;
    const { id, method, params } = requestSchema.parse(value);
    void this.#answer(id, method, params);
  }

  async #answer(id: number, method: PeerMethod, params: unknown): Promise<void> {
    const call = new AbortController();
    try {
      if (this.#calls.size >= CALLS_MAX) {
        throw new SnowforkError('SF_LIMIT', `a host answers ${CALLS_MAX} calls at a time`);
      }
      this.#calls.set(id, call);
      const parsed = peerMethods[method].params.safeParse(params);
      if (!parsed.success) {
        throw new SnowforkError('SF_BAD_REQUEST', `${method}: ${z.prettifyError(parsed.error)}`);
      }
      const handler = this.#options.handlers[method] as (
        params: unknown,
        host: string,
        signal: AbortSignal,
      ) => Promise<unknown>;
      this.#say({ id, result: await handler(parsed.data, this.#host, call.signal) });
    } catch (cause) {
      const error = SnowforkError.from(cause);
      if (error.code === 'SF_INTERNAL') {
        this.#options.log.error({ host: this.#host, method, err: cause }, 'a call of a host');
      }
      this.#say({ id, error: error.toJSON() });
    } finally {
      this.#calls.delete(id);
    }
  }

  #say(value: unknown): void {
    if (!this.#socket.destroyed) this.#socket.write(encodeFrame(value));
  }
}
