// The agent's HTTP server on a unix socket: its life cycle. What is asked and answered is in
// `routes.ts`; nothing here knows of VMs. The agent starts it last, when everything it serves is
// ready.

import { setMaxListeners } from 'node:events';
import { chmodSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { connect } from 'node:net';
import { getRequestListener } from '@hono/node-server';
import { SnowforkError } from '@snowfork/sdk/api';
import { carry } from '../cluster/api-tunnel.js';
import { buildRoutes } from './routes.js';
import type { AgentService } from './service.js';

/** The kernel's `sun_path` holds 108 bytes, the last of them NUL. */
export const SOCKET_PATH_BYTES_MAX = 107;
/** Requests under way have this long to be answered when the server closes. */
const CLOSE_GRACE_MS = 1000;
const CLOSE_SWEEP_MS = 10;
const KEEP_ALIVE_MS = 30_000;

export interface ServerOptions {
  readonly service: AgentService;
  readonly socketPath: string;
  /** Of the agent; sent with every answer as `snowfork-version`. */
  readonly version: string;
}

export interface RunningServer {
  /**
   * Takes no new requests, aborts those that wait, ends streams, and resolves when all connections
   * are closed. To be called after `shutDown` has resolved, or its answer is cut off.
   */
  close(): Promise<void>;
}

/**
 * Serves `service` on `socketPath` (mode 0600); a socket left by an agent that died is replaced.
 *
 * @throws SnowforkError SF_BAD_REQUEST when the path is too long or another agent answers there,
 * SF_PERMISSION when the socket cannot be made.
 */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  assertPathLength(options.socketPath);
  await removeStaleSocket(options.socketPath);
  const closing = new AbortController();
  // Every request listens to it.
  setMaxListeners(0, closing.signal);
  const routes = buildRoutes(options.service, closing.signal);
  const listener = getRequestListener(routes.fetch, { hostname: 'agent' });
  // A command's input may be sent for hours: no deadline on receiving a request.
  const server = createServer({
    requestTimeout: 0,
    keepAliveTimeout: KEEP_ALIVE_MS,
    noDelay: true,
  });
  server.on('request', (incoming, outgoing) => {
    outgoing.setHeader('snowfork-version', options.version);
    const { cluster } = options.service;
    const host = cluster.otherHost(incoming.url ?? '');
    if (host === undefined) void listener(incoming, outgoing);
    else void carry(incoming, outgoing, () => cluster.openApi(host));
  });
  await listen(server, options.socketPath);
  return { close: () => close(server, closing) };
}

function assertPathLength(socketPath: string): void {
  const sizeBytes = Buffer.byteLength(socketPath);
  if (sizeBytes <= SOCKET_PATH_BYTES_MAX) return;
  throw new SnowforkError(
    'SF_BAD_REQUEST',
    `the socket's path takes ${sizeBytes} bytes, the system allows ${SOCKET_PATH_BYTES_MAX}: ` +
      `choose a shorter state folder (${socketPath})`,
  );
}

async function removeStaleSocket(socketPath: string): Promise<void> {
  const answers = await new Promise<boolean>((resolve) => {
    const probe = connect(socketPath);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
  if (answers) {
    throw new SnowforkError(
      'SF_BAD_REQUEST',
      `another agent answers on ${socketPath}: end it with \`sf down\`, ` +
        'or use another state folder',
    );
  }
  rmSync(socketPath, { force: true });
}

async function listen(server: Server, socketPath: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) => {
      const message = `the agent cannot listen on ${socketPath}: ${cause.message}`;
      reject(new SnowforkError('SF_PERMISSION', message, { cause }));
    });
    // The folder is the agent's alone (0700), so nobody slips in before the mode is set.
    server.listen({ path: socketPath }, () => {
      chmodSync(socketPath, 0o600);
      resolve();
    });
  });
}

async function close(server: Server, closing: AbortController): Promise<void> {
  if (!server.listening) return;
  const closed = new Promise<void>((resolve) => server.close(() => resolve()));
  closing.abort(new SnowforkError('SF_ABORTED', 'the agent is shutting down'));
  const sweep = setInterval(() => server.closeIdleConnections(), CLOSE_SWEEP_MS);
  const grace = setTimeout(() => server.closeAllConnections(), CLOSE_GRACE_MS);
  await closed;
  clearInterval(sweep);
  clearTimeout(grace);
}
