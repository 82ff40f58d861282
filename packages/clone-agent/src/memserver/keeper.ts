// Keeps a memory server alive: starts it, or takes over that of an agent that was killed, and
// starts another with the same port when it dies. That one serves what the one before did, so hosts
// that wait for a page ask again and get it. The agent says through this what is served.

import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { MEMORY_SERVER_SOCKET, type SnapshotToServe } from '@snowfork/memserver';
import { type MemoryServerStats, memoryServerStatsSchema } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { z } from 'zod';
import type { LineClient } from '../hypervisor/line-client.js';
import type { ProcessJournal } from '../store/processes.js';
import { KeptProcess } from '../system/kept-process.js';
import { findListening, startListening } from '../system/listening-process.js';
import { servedSchema } from './stats.js';

const PEER = { peer: 'the memory server', errorCode: 'SF_INTERNAL' } as const;
const ENTRY = fileURLToPath(import.meta.resolve('@snowfork/memserver/main'));
/** Reads of layers are its own thread's. */
const THREADPOOL_SIZE = 1;

export interface MemoryServerOptions {
  readonly runFolder: string;
  readonly log: Logger;
  readonly journal: ProcessJournal;
  /** IPv4, at which other hosts reach this one. */
  readonly address: string;
  /** 0: one that is free, and the same after a restart. */
  readonly port: number;
  /** What the link takes; 10 Gbit/s when nobody knows it. */
  readonly linkBytesPerSecond?: number | undefined;
}

const pingSchema = z.object({ address: z.string(), port: z.number() });

export class MemoryServerKeeper {
  readonly #kept: KeptProcess;
  readonly #log: Logger;
  readonly #served: Map<string, Readonly<Record<string, unknown>>>;
  /** Other hosts are told it. */
  readonly port: number;

  /**
   * Takes over the memory server that runs in this run folder at the same address and port, or
   * starts one. One that was taken over serves what it did: see `served`.
   * @throws SnowforkError SF_INTERNAL when it can't start, as when the port is taken.
   */
  static async open(options: MemoryServerOptions): Promise<MemoryServerKeeper> {
    const { runFolder, log, journal, address } = options;
    const socketPath = path.join(runFolder, MEMORY_SERVER_SOCKET);
    let { port } = options;
    const found = await findListening(socketPath, PEER);
    const ping = pingSchema.optional().parse(found?.ping);
    const isSame = ping?.address === address && (port === 0 || ping.port === port);
    if (found !== undefined && !isSame) await found.process.stop();
    const served = new Map<string, Readonly<Record<string, unknown>>>();
    const kept = await KeptProcess.open(
      {
        peer: PEER,
        socketPath,
        log,
        journal,
        start: () => startMemoryServer({ ...options, port }),
        restore: (client) => serveAll(client, served.values(), log),
      },
      isSame ? found?.process : undefined,
    );
    port = pingSchema.parse(await kept.execute('ping', {})).port;
    return new MemoryServerKeeper(kept, { log, served, port });
  }

  private constructor(
    kept: KeptProcess,
    of: {
      log: Logger;
      served: Map<string, Readonly<Record<string, unknown>>>;
      port: number;
    },
  ) {
    this.#kept = kept;
    this.#log = of.log;
    this.#served = of.served;
    this.port = of.port;
  }

  /** So that nobody ends it for a left-over. */
  async pid(): Promise<number> {
    return await this.#kept.pid();
  }

  /**
   * Serves a snapshot, until it is dropped. Again: with these layers; key and group stay.
   * @throws SnowforkError SF_INTERNAL when a layer can't be opened, or key or group are others.
   */
  async serve(of: SnapshotToServe): Promise<void> {
    const args = { ...of, key: of.key.toString('base64') };
    const before = this.#served.get(of.snapshot);
    // At first, as it may die right after its answer.
    this.#served.set(of.snapshot, args);
    try {
      await this.#kept.execute('serve', args);
    } catch (error) {
      if (before === undefined) this.#served.delete(of.snapshot);
      else this.#served.set(of.snapshot, before);
      throw error;
    }
  }

  /** The snapshot is gone; nothing waits for the memory server to have heard it. */
  drop(snapshot: string): void {
    this.#served.delete(snapshot);
    this.#kept.execute('drop', { snapshot }).catch((error: unknown) => {
      if (!this.#kept.isStopping) this.#log.warn({ snapshot, err: error }, 'drop');
    });
  }

  /** Also what was served for an agent before this one. */
  async served(): Promise<z.infer<typeof servedSchema>> {
    return servedSchema.parse(await this.#kept.execute('served', {}));
  }

  async stats(): Promise<MemoryServerStats> {
    return memoryServerStatsSchema.parse(await this.#kept.execute('stats', {}));
  }

  async stop(): Promise<void> {
    await this.#kept.stop();
  }
}

async function startMemoryServer(of: MemoryServerOptions) {
  const rate = of.linkBytesPerSecond;
  return await startListening({
    name: PEER.peer,
    args: [
      ENTRY,
      ...['--run', of.runFolder, '--address', of.address, '--port', String(of.port)],
      ...(rate === undefined ? [] : ['--link-bytes-per-second', String(rate)]),
    ],
    environment: { UV_THREADPOOL_SIZE: String(THREADPOOL_SIZE) },
  });
}

/** One that can't be served any more, as its layers are gone, does not keep the others waiting. */
async function serveAll(
  client: LineClient,
  served: Iterable<Readonly<Record<string, unknown>>>,
  log: Logger,
): Promise<void> {
  for (const args of served) {
    try {
      await client.execute('serve', args);
    } catch (error) {
      if (client.lost.aborted) throw error;
      log.error({ snapshot: args.snapshot, err: error }, 'serve');
    }
  }
}
