// A memory server on a host of the bench's network, with one file as the layer of one snapshot.

import type { ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Group, MEMORY_SERVER_SOCKET } from '@snowfork/memserver';
import { LineClient, type NetHost } from '../support/agent-parts.js';

const SERVER_MAIN = fileURLToPath(import.meta.resolve('@snowfork/memserver/main'));
const PORT = 7700;
const GROUP: Group = { address: '239.77.0.1', port: 7701 };
const PEER = { peer: 'the memory server', errorCode: 'SF_INTERNAL', timeoutMs: 20_000 } as const;

/** Where its pages are asked for. */
export interface Served {
  readonly address: string;
  readonly port: number;
  /** In base64. */
  readonly key: string;
  readonly group: Group;
}

export async function serveFile(
  host: NetHost,
  of: { readonly folder: string; readonly file: string; readonly linkBytesPerSecond: number },
): Promise<{ served: Served; pid: number }> {
  const { address } = host;
  const server = host.spawn(
    process.execPath,
    [
      ...[SERVER_MAIN, '--run', of.folder, '--address', address, '--port', String(PORT)],
      ...['--link-bytes-per-second', String(of.linkBytesPerSecond)],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  await spoken(server);
  const client = await LineClient.connect(path.join(of.folder, MEMORY_SERVER_SOCKET), PEER);
  const key = randomBytes(32).toString('base64');
  const layers = [{ path: of.file }];
  await client.execute('serve', { snapshot: 's1', key, group: GROUP, layers });
  client.close();
  return { served: { address, port: PORT, key, group: GROUP }, pid: server.pid! };
}

/** Resolves when it has said something; rejects when it ends without a word. */
export async function spoken(child: ChildProcess): Promise<void> {
  const ended = once(child, 'exit').then(([code]) => {
    throw new Error(`${child.spawnargs.join(' ')} ended with ${code}`);
  });
  // Later on, its end is nothing bad.
  ended.catch(() => {});
  await Promise.race([once(child.stdout!, 'data'), ended]);
}
