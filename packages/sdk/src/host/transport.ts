// HTTP over the agent's unix socket: requests, streams, and every way in which they fail as one
// SnowforkError. Knows paths and schemas only as arguments. Called by `host.ts`, `vm.ts` and the
// rest.

import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { type Dispatcher, Pool } from 'undici';
import type { z } from 'zod';
import { SnowforkError } from '../api/errors.js';
import { apiErrorSchema } from '../api/schemas.js';
import { readEvents, type StreamEvent } from './events.js';
import { abortError, pause } from './waits.js';

/** The kernel's `sun_path` holds 108 bytes, the last of them NUL. */
const SOCKET_PATH_BYTES_MAX = 107;
const CONNECT_TIMEOUT_MS = 5000;
/** A wait that as many agents have left unanswered has something to do with their deaths. */
const AGENTS_OUTLIVED_MAX = 10;
const REVIVE_DELAY_MS = 50;
/** An answer that is no stream is at most this long: a list of all VMs with their values. */
const ANSWER_BYTES_MAX = 256 * 1024 * 1024;

/** Resolves when an agent answers. */
export type Revive = (signal: AbortSignal | undefined) => Promise<void>;

export interface RequestOptions {
  readonly method: 'GET' | 'POST' | 'DELETE';
  readonly path: string;
  readonly query?: Record<string, string>;
  /** Sent as JSON. */
  readonly json?: unknown;
  /** Sent as it is. */
  readonly bytes?: Uint8Array;
  readonly signal?: AbortSignal | undefined;
}

export class Transport {
  readonly socketPath: string;
  readonly #pool: Pool;
  readonly #revive: Revive | undefined;
  #closed = false;

  /**
   * Connects with the first request. `revive`: starts the next agent when one was killed.
   * @throws SnowforkError SF_BAD_REQUEST when the path is too long.
   */
  constructor(socketPath: string, revive?: Revive) {
    assertPathLength(socketPath);
    this.socketPath = socketPath;
    this.#revive = revive;
    // Long polls and consoles may be silent for days: deadlines are the callers'.
    this.#pool = new Pool('http://agent', {
      connect: { socketPath, timeout: CONNECT_TIMEOUT_MS },
      headersTimeout: 0,
      bodyTimeout: 0,
    });
  }

  /** The answer, checked. @throws SnowforkError the agent's, or one of the way to it. */
  async json<S extends z.ZodType>(options: RequestOptions, schema: S): Promise<z.output<S>> {
    const response = await this.#send(options);
    const answer = await this.#readJson(response, options.signal);
    const parsed = schema.safeParse(answer);
    if (parsed.success) return parsed.data;
    const version = response.headers['snowfork-version'];
    throw new SnowforkError(
      'SF_INTERNAL',
      `the answer of the agent (version ${version}) to ${options.method} ${options.path} was not ` +
        'understood: do the versions of SDK and agent fit?',
      { cause: parsed.error },
    );
  }

  /**
   * As `json`, for what may be asked twice: an agent that was killed leaves the answer to the next.
   * `request` is made anew each time, as there is less time left.
   */
  async outlastingJson<S extends z.ZodType>(
    request: (passedMs: number) => RequestOptions,
    schema: S,
  ): Promise<z.output<S>> {
    const startedAt = performance.now();
    for (let outlived = 0; ; outlived++) {
      const options = request(outlived === 0 ? 0 : performance.now() - startedAt);
      try {
        return await this.json(options, schema);
      } catch (error) {
        if (outlived === AGENTS_OUTLIVED_MAX || !this.#wasKilled(error)) throw error;
        await pause(REVIVE_DELAY_MS, options.signal);
        await this.#revive!(options.signal);
      }
    }
  }

  /** For requests whose answer has no body. */
  async send(options: RequestOptions): Promise<void> {
    const response = await this.#send(options);
    await response.body.dump().catch(() => {});
  }

  /**
   * The events of a stream, once the agent has accepted the request. The event `error` throws; so
   * does an end without one of `lastEvents`. Leaving early closes the connection: reading to the
   * end keeps it for the next request, and lets the agent tell a caller that is done from one that
   * fled.
   */
  async stream(
    options: RequestOptions,
    lastEvents: readonly string[],
  ): Promise<AsyncGenerator<StreamEvent, void, undefined>> {
    const response = await this.#send(options);
    return this.#events(response.body, lastEvents, options.signal);
  }

  /** Requests under way reject with SF_ABORTED; no socket stays open. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#pool.destroy(
      new SnowforkError('SF_ABORTED', 'the connection to the agent was closed'),
    );
  }

  async *#events(
    body: Readable,
    lastEvents: readonly string[],
    signal: AbortSignal | undefined,
  ): AsyncGenerator<StreamEvent, void, undefined> {
    // Aborted or left early, the body ends with an error that nobody waits for.
    body.on('error', () => {});
    let complete = false;
    try {
      for await (const event of readEvents(body)) {
        if (event.event === 'error') throw errorOf(parseJson(event.data));
        if (lastEvents.includes(event.event)) complete = true;
        yield event;
      }
    } catch (error) {
      throw this.#failure(error, signal);
    }
    if (!complete) throw this.#lost(undefined);
  }

  async #send(options: RequestOptions): Promise<Dispatcher.ResponseData> {
    const { method, path, query, signal } = options;
    if (this.#closed)
      throw new SnowforkError('SF_ABORTED', 'the connection to the agent was closed');
    if (signal?.aborted) throw abortError(signal.reason);
    let response: Dispatcher.ResponseData;
    try {
      response = await this.#pool.request({
        method,
        path,
        ...bodyOf(options),
        ...(query === undefined ? {} : { query }),
        ...(signal === undefined ? {} : { signal }),
      });
    } catch (error) {
      throw this.#failure(error, signal);
    }
    if (response.statusCode < 300) return response;
    throw errorOf(await this.#readJson(response, signal));
  }

  async #readJson(
    response: Dispatcher.ResponseData,
    signal: AbortSignal | undefined,
  ): Promise<unknown> {
    const chunks: Buffer[] = [];
    let sizeBytes = 0;
    try {
      for await (const chunk of response.body as AsyncIterable<Buffer>) {
        sizeBytes += chunk.length;
        if (sizeBytes > ANSWER_BYTES_MAX) {
          throw new SnowforkError(
            'SF_INTERNAL',
            `the answer is longer than ${ANSWER_BYTES_MAX} bytes`,
          );
        }
        chunks.push(chunk);
      }
    } catch (error) {
      throw this.#failure(error, signal);
    }
    return parseJson(Buffer.concat(chunks).toString('utf8'));
  }

  /** One that was shut down has taken its file with it, and its VMs. */
  #wasKilled(error: unknown): boolean {
    if (!(error instanceof SnowforkError) || error.code !== 'SF_AGENT_UNREACHABLE') return false;
    if (this.#closed || this.#revive === undefined) return false;
    return existsSync(join(dirname(this.socketPath), 'agent.json'));
  }

  #failure(error: unknown, signal: AbortSignal | undefined): SnowforkError {
    if (error instanceof SnowforkError) return error;
    if (signal?.aborted) return abortError(signal.reason);
    if (this.#closed)
      return new SnowforkError('SF_ABORTED', 'the connection to the agent was closed');
    const code = (error as NodeJS.ErrnoException).code;
    const folder = dirname(this.socketPath);
    if (code === 'ENOENT' || code === 'ECONNREFUSED') {
      return new SnowforkError(
        'SF_AGENT_UNREACHABLE',
        `no agent is running for ${folder}: start it with \`sf up\``,
        { cause: error },
      );
    }
    if (code === 'EACCES' || code === 'EPERM') {
      return new SnowforkError(
        'SF_PERMISSION',
        `this user may not talk to the agent (${this.socketPath}): run as the user that started it`,
        { cause: error },
      );
    }
    return this.#lost(error);
  }

  #lost(cause: unknown): SnowforkError {
    const log = join(dirname(this.socketPath), 'agent.log');
    return new SnowforkError(
      'SF_AGENT_UNREACHABLE',
      `the agent closed the connection before it had answered: see the end of ${log}`,
      { cause },
    );
  }
}

/** `/v1/vms/<id>/fork` with each part escaped. */
export function apiPath(...parts: readonly (string | number)[]): string {
  return `/v1/${parts.map((part) => encodeURIComponent(part)).join('/')}`;
}

function bodyOf({ json, bytes }: RequestOptions): {
  body?: string | Uint8Array;
  headers?: Record<string, string>;
} {
  if (bytes !== undefined) {
    return { body: bytes, headers: { 'content-type': 'application/octet-stream' } };
  }
  if (json === undefined) return {};
  return { body: JSON.stringify(json), headers: { 'content-type': 'application/json' } };
}

function errorOf(answer: unknown): SnowforkError {
  const parsed = apiErrorSchema.safeParse(answer);
  return SnowforkError.fromJSON(parsed.success ? parsed.data.error : answer);
}

/** What is no JSON stays text, and fails the schema that looks at it next. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function assertPathLength(socketPath: string): void {
  const sizeBytes = Buffer.byteLength(socketPath);
  if (sizeBytes <= SOCKET_PATH_BYTES_MAX) return;
  throw new SnowforkError(
    'SF_BAD_REQUEST',
    `the agent's socket would have a path of ${sizeBytes} bytes, the system allows ` +
      `${SOCKET_PATH_BYTES_MAX}: choose a shorter state folder (${socketPath})`,
  );
}
