// A host that wants pages, as a process: `node puller-main.js ADDRESS SOCKET`. Does what a test
// says by the control socket, checks nothing itself. Ends when its standard input does.

import { createHash } from 'node:crypto';
import {
  type LostReason,
  type OriginClient,
  type OriginSink,
  PAGE_BYTES,
  PageNetwork,
} from '@snowfork/memserver';
import { PageAsker } from '@snowfork/memserver/asking';
import { listenForCommands } from '@snowfork/memserver/control';
import { z } from 'zod';

const connectSchema = z.object({
  address: z.string(),
  port: z.number(),
  key: z.base64().transform((text) => Buffer.from(text, 'base64')),
  group: z.object({ address: z.string(), port: z.number() }).optional(),
  lostAfterMs: z.number(),
});
const pullSchema = z.object({
  layer: z.number(),
  firstPage: z.number(),
  count: z.number(),
  /** Pages in demand at a time; 0: by prefetch. */
  atOnce: z.number(),
  /** As another thread asks. */
  isByAsker: z.boolean().default(false),
});

/** Keeps what came, as a host does. */
class Pages implements OriginSink {
  readonly held = new Map<string, Buffer>();
  readonly lost = new Map<string, LostReason>();
  came: () => void = () => undefined;

  onPage(layer: number, page: number, bytes: Buffer, offset: number): void {
    this.#keep(layer, page, Buffer.from(bytes.subarray(offset, offset + PAGE_BYTES)));
  }

  onZeroPage(layer: number, page: number): void {
    this.#keep(layer, page, Buffer.alloc(PAGE_BYTES));
  }

  onLost(layer: number, page: number, lost: LostReason): void {
    this.lost.set(`${layer}:${page}`, lost);
    this.came();
  }

  isHeld(layer: number, page: number): boolean {
    return this.held.has(`${layer}:${page}`);
  }

  #keep(layer: number, page: number, bytes: Buffer): void {
    this.held.set(`${layer}:${page}`, bytes);
    this.lost.delete(`${layer}:${page}`);
    this.came();
  }
}

const [localAddress, socketPath] = process.argv.slice(2) as [string, string];
const complaints: string[] = [];
const network = await PageNetwork.open({
  localAddress,
  complain: (message) => void complaints.push(message),
});
let pages = new Pages();
let client: OriginClient | undefined;

/** Resolves when all of them are here or lost. */
async function pull(of: z.infer<typeof pullSchema>): Promise<object> {
  const { layer, firstPage, count, atOnce, isByAsker } = of;
  const asker = new PageAsker(client!.asking);
  const isDone = (page: number): boolean =>
    pages.held.has(`${layer}:${page}`) || pages.lost.has(`${layer}:${page}`);
  let next = firstPage;
  let settled = firstPage;
  const end = firstPage + count;
  if (atOnce === 0) client!.prefetch(layer, firstPage, count);
  await new Promise<void>((resolve) => {
    const goOn = (): void => {
      while (settled < end && isDone(settled)) settled++;
      if (settled === end) resolve();
      if (atOnce === 0) return;
      next = Math.max(next, settled);
      for (; next < Math.min(settled + atOnce, end); next++) {
        if (isDone(next)) continue;
        client!.demand(layer, next, isByAsker && asker.ask(layer, next));
      }
    };
    pages.came = () => setImmediate(goOn);
    goOn();
  });
  pages.came = () => undefined;
  const hash = createHash('sha256');
  let held = 0;
  for (let page = firstPage; page < end; page++) {
    const bytes = pages.held.get(`${layer}:${page}`);
    if (bytes === undefined) continue;
    hash.update(bytes);
    held++;
  }
  return { held, hash: hash.digest('hex'), lost: Object.fromEntries(pages.lost) };
}

await listenForCommands(socketPath, {
  connect: async (args) => {
    const { lostAfterMs, group, ...origin } = connectSchema.parse(args);
    pages = new Pages();
    const sink = pages;
    const to = { ...origin, ...(group === undefined ? {} : { group }) };
    client = await network.connect(to, { sink, lostAfterMs });
  },
  disconnect: () => client?.close(),
  pull: (args) => pull(pullSchema.parse(args)),
  stats: () => {
    const { counts, delivery, outstanding } = client!;
    return { pid: process.pid, counts, delivery, outstanding, network: network.counts, complaints };
  },
});
process.stdin.on('end', () => process.exit(0)).resume();
process.stdout.write('listening\n');
