// The entry of the memory server's process: `node main.js --run FOLDER --address A --port N`.
// Serves the pages of this host's snapshots to other hosts; knows layers' files and nothing of VMs.
// The agent starts it, tells it what to serve by the control socket, and starts another when it
// dies: it keeps nothing that could be lost. Ends on SIGTERM.

import path from 'node:path';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { newComplaints } from './complaints.js';
import { type Command, LISTENING_LINE, listenForCommands } from './control.js';
import { MEMORY_SERVER_SOCKET } from './net/names.js';
import { PageService } from './net/page-service.js';
import { LAYERS_MAX } from './page-map.js';
import { KEY_BYTES } from './wire/sealing.js';

/** 10 Gbit/s, where nobody says how fast the link is: receivers' reports slow it down. */
const LINK_BYTES_PER_SECOND = 1_250_000_000;

const portSchema = z.int().min(1).max(65_535);
const keySchema = z
  .base64()
  .transform((text) => Buffer.from(text, 'base64'))
  .refine((key) => key.length === KEY_BYTES, `a key has ${KEY_BYTES} bytes`);
const serveSchema = z.object({
  snapshot: z.string().min(1),
  key: keySchema,
  group: z.object({ address: z.ipv4(), port: portSchema }).optional(),
  layers: z.array(z.object({ path: z.string(), held: z.string().optional() })).max(LAYERS_MAX),
  wants: z.object({ socket: z.string(), snapshot: z.string() }).optional(),
});
const dropSchema = z.object({ snapshot: z.string() });
const optionsSchema = z.object({
  run: z.string(),
  address: z.ipv4(),
  port: z.coerce.number().int().min(0).max(65_535),
  'link-bytes-per-second': z.coerce.number().positive().default(LINK_BYTES_PER_SECOND),
});

function commandsOf(service: PageService, address: string): Readonly<Record<string, Command>> {
  return {
    ping: () => ({ pid: process.pid, address, port: service.port }),
    serve: (args) => service.serve(serveSchema.parse(args)),
    drop: (args) => ({ isDropped: service.drop(dropSchema.parse(args).snapshot) }),
    served: () => service.served,
    stats: () => service.counts,
  };
}

const { log, complain } = newComplaints('memory server');

async function main(): Promise<void> {
  const names = ['run', 'address', 'port', 'link-bytes-per-second'] as const;
  const options = Object.fromEntries(names.map((name) => [name, { type: 'string' as const }]));
  const { values } = parseArgs({ options });
  const { run, address, port, ...rest } = optionsSchema.parse(values);
  const linkBytesPerSecond = rest['link-bytes-per-second'];
  const service = await PageService.open({ address, port, linkBytesPerSecond, complain });
  // A terminal's Ctrl-C is for the agent; other hosts still need their pages.
  for (const signal of ['SIGINT', 'SIGHUP'] as const) process.on(signal, () => {});
  process.on('SIGTERM', () => process.exit(0));
  await listenForCommands(path.join(run, MEMORY_SERVER_SOCKET), commandsOf(service, address));
  process.stdout.on('error', () => {});
  process.stdout.write(`${LISTENING_LINE}\n`);
}

main().catch((error: unknown) => {
  const reason = error instanceof Error ? error.message : String(error);
  log(`did not start: ${reason}`);
  process.stdout.write(reason); // for whoever started it
  process.exit(1);
});
