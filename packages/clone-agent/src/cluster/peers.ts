// The side of an agent that talks to others: one kept connection for the calls to each host, made
// when it is first wanted and again when it was lost. Checks that the other end is the host that is
// meant, of this cluster.

import tls, { type TLSSocket } from 'node:tls';
import { SnowforkError } from '@snowfork/sdk/api';
import { withResolvers } from '../guest/exec.js';
import { untilAborted } from '../system/until-aborted.js';
import { identityOf } from './authority.js';
import type { ClusterFile } from './cluster-file.js';
import { KEEP_ALIVE_MS, keepAlive } from './heartbeat.js';
import { encodeFrame, FrameReader, firstFrame } from './peer-frames.js';
import {
  type Hello,
  type PeerMethod,
  type PeerParams,
  type PeerResult,
  peerMethods,
  responseSchema,
} from './peer-methods.js';

const CONNECT_TIMEOUT_MS = 5000;
const WELCOME_BYTES_MAX = 64 * 1024;

export interface PeerAddress {
  readonly name: string;
  readonly address: string;
  readonly port: number;
}

interface Call {
  resolve(result: unknown): void;
  reject(error: Error): void;
}

interface Connection {
  readonly socket: TLSSocket;
  readonly calls: Map<number, Call>;
}

export class Peers {
  #file: ClusterFile;
  readonly #addressOf: (host: string) => PeerAddress;
  readonly #connections = new Map<string, Promise<Connection>>();
  #nextId = 0;

  /** `addressOf` throws SnowforkError when there is no such host. */
  constructor(file: ClusterFile, addressOf: (host: string) => PeerAddress) {
    this.#file = file;
    this.#addressOf = addressOf;
  }

  /** What new connections show; those that are there go on. */
  useCertificate(file: ClusterFile): void {
    this.#file = file;
  }

  /** @throws SnowforkError SF_HOST_UNREACHABLE, SF_ABORTED, and what the other host says. */
  async call<M extends PeerMethod>(
    host: string,
    method: M,
    params: PeerParams<M>,
    signal?: AbortSignal,
  ): Promise<PeerResult<M>> {
    const connecting = this.#connection(host);
    const connection = await (signal === undefined ? connecting : untilAborted(connecting, signal));
    const id = this.#nextId++;
    const { promise, resolve, reject } = withResolvers<unknown>();
    connection.calls.set(id, { resolve, reject });
    const onAbort = () => {
      this.#say(connection, { cancel: id });
      reject(new SnowforkError('SF_ABORTED', 'the caller gave up'));
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      this.#say(connection, { id, method, params });
      const result = peerMethods[method].result.safeParse(await promise);
      if (result.success) return result.data as PeerResult<M>;
      const message = `host ${host} answered ${method} in a form that is not known here`;
      throw new SnowforkError('SF_INTERNAL', message, { cause: result.error });
    } finally {
      connection.calls.delete(id);
      signal?.removeEventListener('abort', onAbort);
    }
  }

  /** A connection that goes on as one to the host's API. @throws SnowforkError */
  async openApi(host: string): Promise<TLSSocket> {
    return await this.#open(host, { for: 'api' });
  }

  close(): void {
    for (const connection of this.#connections.values()) {
      connection.then(
        ({ socket }) => socket.destroy(),
        () => {},
      );
    }
    this.#connections.clear();
  }

  #connection(host: string): Promise<Connection> {
    let connection = this.#connections.get(host);
    if (connection === undefined) {
      connection = this.#connect(host);
      this.#connections.set(host, connection);
      connection.catch(() => this.#connections.delete(host));
    }
    return connection;
  }

  async #connect(host: string): Promise<Connection> {
    const socket = await this.#open(host, { for: 'calls' });
    const connection: Connection = { socket, calls: new Map() };
    const reader = new FrameReader();
    keepAlive(socket, () => this.#say(connection, { alive: true }));
    socket.on('data', (chunk: Buffer) => {
      try {
        reader.push(chunk);
        for (let frame = reader.next(); frame; frame = reader.next()) take(connection, frame.value);
      } catch {
        socket.destroy();
      }
    });
    socket.on('close', () => {
      this.#connections.delete(host);
      const error = unreachable(host, 'the connection was lost');
      for (const call of connection.calls.values()) call.reject(error);
    });
    socket.resume();
    return connection;
  }

  async #open(host: string, hello: Hello): Promise<TLSSocket> {
    const { address, port } = this.#addressOf(host);
    const { ca, certificate, privateKey, cluster } = this.#file;
    const socket = tls.connect({
      host: address,
      port,
      minVersion: 'TLSv1.3',
      ca,
      cert: certificate,
      key: privateKey,
      // By the name in its certificate, not by its address.
      checkServerIdentity: () => undefined,
    });
    socket.on('error', () => socket.destroy());
    try {
      await secured(socket);
      const identity = identityOf(socket);
      if (identity?.cluster !== cluster.id || identity.host !== host) {
        throw new Error(`it is ${identity?.host ?? 'nobody'} that answers at ${address}:${port}`);
      }
      socket.setNoDelay(true);
      socket.setKeepAlive(true, KEEP_ALIVE_MS);
      socket.write(encodeFrame(hello));
      const limits = { bytesMax: WELCOME_BYTES_MAX, timeoutMs: CONNECT_TIMEOUT_MS };
      const answer = await firstFrame(socket, limits);
      if (typeof answer === 'object' && answer !== null && 'error' in answer) {
        throw SnowforkError.fromJSON(answer.error);
      }
      return socket;
    } catch (cause) {
      socket.destroy();
      if (cause instanceof SnowforkError) throw cause;
      throw unreachable(host, (cause as Error).message, cause);
    }
  }

  #say({ socket }: Connection, value: unknown): void {
    if (!socket.destroyed) socket.write(encodeFrame(value));
  }
}

/** Resolves when the other end has shown a certificate of the cluster. */
export function secured(socket: TLSSocket): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => socket.destroy(new Error('no answer')), CONNECT_TIMEOUT_MS);
    socket.once('secureConnect', () => {
      clearTimeout(timer);
      resolve();
    });
    socket.once('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
  });
}

function take({ calls }: Connection, value: unknown): void {
  if (typeof value === 'object' && value !== null && 'alive' in value) return;
  const { id, result, error } = responseSchema.parse(value);
  const call = calls.get(id);
  if (error === undefined) call?.resolve(result);
  else call?.reject(SnowforkError.fromJSON(error));
}

function unreachable(host: string, words: string, cause?: unknown): SnowforkError {
  return new SnowforkError('SF_HOST_UNREACHABLE', `host ${host} can't be reached: ${words}`, {
    ...(cause === undefined ? {} : { cause }),
  });
}
