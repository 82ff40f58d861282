// What of a pager fetches pages of other hosts, without a mount, as a process: `node fetcher-main.js
// RUN-FOLDER SNAPSHOT`. Fetches what a test says by the control socket, and what this host's memory
// server says that neighbours want. Ends when its standard input does.

import { createHash } from 'node:crypto';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { PAGE_BYTES, readWaiting } from '@snowfork/memserver';
import { listenForCommands } from '@snowfork/memserver/control';
import { z } from 'zod';
import { PAGER_SOCKET } from '../../packages/clone-agent/src/pager/client.js';
import { Registry } from '../../packages/clone-agent/src/pager/objects.js';
import { RemotePages, wantedSchema } from '../../packages/clone-agent/src/pager/remote-pages.js';
import { ServedObject } from '../../packages/clone-agent/src/pager/served-object.js';
import { MAIN_THREAD } from '../../packages/clone-agent/src/pager/thread-data.js';

const LOOK_MS = 10;
const fetchSchema = z.object({
  firstPage: z.number(),
  count: z.number(),
  /** Pages in demand at a time; 0: by prefetch. */
  atOnce: z.number(),
});
const [runFolder, snapshot] = process.argv.slice(2) as [string, string];
const complaints: string[] = [];
const complain = (message: string): void => void complaints.push(message);
const nothing = (): void => undefined;
const remote = new RemotePages({ runFolder, push: nothing, askable: nothing, complain });
let served!: ServedObject;
const registry = new Registry(runFolder, {
  complain,
  loaded: (object, layers) => {
    served = new ServedObject(object, MAIN_THREAD);
    remote.open(served, layers);
  },
});

/** Resolves when all of them are here. */
async function fetch({ firstPage, count, atOnce }: z.infer<typeof fetchSchema>): Promise<void> {
  const { nodeid } = served.shared;
  const end = firstPage + count;
  if (atOnce === 0) {
    remote.prefetchRange({ nodeid, firstPage, count });
    const { held } = served.paged.layers[0]!;
    while (!held!.hasAll(firstPage, count)) await delay(LOOK_MS);
  }
  let next = firstPage;
  const goOn = async (): Promise<void> => {
    while (next < end) await remote.fetch(nodeid, next++, 1);
  };
  await Promise.all(Array.from({ length: atOnce }, goOn));
}

function hash(): string {
  const { paged } = served;
  const page = Buffer.alloc(PAGE_BYTES);
  const all = createHash('sha256');
  for (let at = 0; at < paged.pageCount; at++) {
    if (!paged.readInto(page, at, 1, readWaiting)) throw new Error(`page ${at} is not here`);
    all.update(page);
  }
  return all.digest('hex');
}

await listenForCommands(path.join(runFolder, PAGER_SOCKET), {
  open: () => void registry.loadAll(snapshot),
  fetch: (args) => fetch(fetchSchema.parse(args)),
  want: (args) => remote.want(wantedSchema.parse(args)),
  hash: () => ({ hash: hash() }),
  stats: () => ({ received: remote.stats(), complaints }),
});
process.stdin.on('end', () => process.exit(0)).resume();
process.stdout.write('listening\n');
