// A file delivered by Snowfork: one memory server has it as a layer, and receivers prefetch all of
// it.

import type { ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { type Group, MEMORY_SERVER_SOCKET, PAGE_BYTES } from '@snowfork/memserver';
import { LineClient, type NetHost } from '../support/agent-parts.js';
import type { Deliver } from './delivery.js';

const SERVER_MAIN = fileURLToPath(import.meta.resolve('@snowfork/memserver/main'));
const RECEIVER_MAIN = fileURLToPath(new URL('./receiver-main.js', import.meta.url));
const PORT = 7700;
const GROUP: Group = { address: '239.77.0.1', port: 7701 };
const PEER = { peer: 'the memory server', errorCode: 'SF_INTERNAL', timeoutMs: 20_000 } as const;

/** What a receiver is asked for. */
export interface Wanted {
  readonly localAddress: string;
  readonly origin: {
    readonly address: string;
    readonly port: number;
    /** In base64. */
    readonly key: string;
    readonly group: Group;
  };
  /** Where the pages go. */
  readonly file: string;
  readonly pageCount: number;
}

export const deliverByMemoryServer: Deliver = async (of) => {
  const { sender, receivers, folder, file, fileBytes, linkBitsPerSecond } = of;
  const key = randomBytes(32).toString('base64');
  await serve(sender, { folder, file, key, linkBytesPerSecond: linkBitsPerSecond / 8 });
  const { address } = sender;
  const origin = { address, port: PORT, key, group: GROUP };
  const files = receivers.map(({ name }) => path.join(folder, name));
  const children = receivers.map((host, index) => {
    const wanted: Wanted = {
      ...{ localAddress: host.address, origin },
      ...{ file: files[index]!, pageCount: fileBytes / PAGE_BYTES },
    };
    const args = [RECEIVER_MAIN, JSON.stringify(wanted)];
    return host.spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  });
  await Promise.all(children.map(spoken));
  const start = async (): Promise<void> => {
    const ended = children.map(async (child) => {
      child.stdin!.write('go\n');
      const counts = await text(child.stdout!);
      if (counts === '') throw new Error('a receiver has died');
    });
    await Promise.all(ended);
  };
  return { files, start };
};

async function serve(
  host: NetHost,
  of: { folder: string; file: string; key: string; linkBytesPerSecond: number },
): Promise<void> {
  const server = host.spawn(
    process.execPath,
    [
      ...[SERVER_MAIN, '--run', of.folder, '--address', host.address, '--port', String(PORT)],
      ...['--link-bytes-per-second', String(of.linkBytesPerSecond)],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  await spoken(server);
  const client = await LineClient.connect(path.join(of.folder, MEMORY_SERVER_SOCKET), PEER);
  const layers = [{ path: of.file }];
  await client.execute('serve', { snapshot: 's1', key: of.key, group: GROUP, layers });
  client.close();
}

/** Rejects when it ends without a word. */
async function spoken(child: ChildProcess): Promise<void> {
  const ended = once(child, 'exit').then(([code]) => {
    throw new Error(`${child.spawnargs.join(' ')} ended with ${code}`);
  });
  // Later on, its end is nothing bad.
  ended.catch(() => {});
  await Promise.race([once(child.stdout!, 'data'), ended]);
}
