// Requests to this host's API about what another host has: they are carried there, with whatever
// streams after them, and answered as that host answers. Which host it is an id says.

import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import net from 'node:net';
import type { Duplex } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import { SnowforkError } from '@snowfork/sdk/api';
import { hostOf } from '../store/journal.js';

const ABOUT = /^\/v1\/(?:vms|snapshots|tickets)\/([^/?]+)/;

/** The host that has what a path is about, when an id in it says so. */
export function hostOfPath(path: string): string | undefined {
  const [, id] = ABOUT.exec(path) ?? [];
  try {
    return id === undefined ? undefined : hostOf(decodeURIComponent(id));
  } catch {
    // No id, which is answered here.
    return undefined;
  }
}

/** Carries a request to the other end of `tunnel`. Never rejects: what fails is answered. */
export async function carry(
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  openTunnel: () => Promise<Duplex>,
): Promise<void> {
  let tunnel: Duplex;
  try {
    tunnel = await openTunnel();
  } catch (cause) {
    refuse(outgoing, SnowforkError.from(cause));
    return;
  }
  // The caller has given up meanwhile.
  if (outgoing.destroyed) return void tunnel.destroy();
  const { method, url, headers } = incoming;
  // Paused since its first frame; nothing comes before it is asked.
  const createConnection = () => tunnel.resume() as net.Socket;
  const options = { createConnection, method, path: url, headers };
  const request = http.request(options, (response) => {
    outgoing.writeHead(response.statusCode ?? 502, response.headers);
    outgoing.flushHeaders();
    response.pipe(outgoing);
    response.on('error', () => outgoing.destroy());
  });
  request.on('error', (cause) => {
    if (outgoing.headersSent) outgoing.destroy();
    else refuse(outgoing, new SnowforkError('SF_HOST_UNREACHABLE', cause.message, { cause }));
  });
  outgoing.on('close', () => tunnel.destroy());
  incoming.pipe(request);
}

/** The other end: the connection goes on as one to the API's socket. */
export function serveApiTo(tunnel: TLSSocket, socketPath: string): void {
  const api = net.connect(socketPath);
  api.on('error', () => tunnel.destroy());
  tunnel.on('error', () => api.destroy());
  api.on('close', () => tunnel.destroy());
  tunnel.on('close', () => api.destroy());
  tunnel.pipe(api);
  api.pipe(tunnel);
}

function refuse(outgoing: ServerResponse, error: SnowforkError): void {
  outgoing.writeHead(503, { 'content-type': 'application/json' });
  outgoing.end(JSON.stringify({ error: error.toJSON() }));
}
