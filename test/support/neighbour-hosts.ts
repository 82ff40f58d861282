// A host with a snapshot and hosts that fetch it, each with a memory server that serves what came to
// its neighbours: all as processes in network namespaces that multicast does not reach. Used by the
// tests of neighbours.

import { createHash, randomBytes } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  encodePageMap,
  HeldPages,
  MEMORY_SERVER_SOCKET,
  PAGE_BYTES,
  type ReceiverCounts,
  type ServerCounts,
} from '@snowfork/memserver';
import { PAGER_SOCKET } from '../../packages/clone-agent/src/pager/client.js';
import { NETWORK_FILE } from '../../packages/clone-agent/src/pager/remote-pages.js';
import { heldPath, type Origin } from '../../packages/clone-agent/src/store/origins.js';
import { type NetHost, NetHosts } from '../../packages/clone-agent/src/system/net-hosts.js';
import { ControlledProcess, GROUP, SERVER_PORT } from './page-hosts.js';

const SERVER_MAIN = fileURLToPath(import.meta.resolve('@snowfork/memserver/main'));
const FETCHER_MAIN = fileURLToPath(new URL('../net/fetcher-main.ts', import.meta.url));
/** 200 Mbit/s: what one machine does for all hosts at once without being late. */
const LINK_BYTES_PER_SECOND = 25_000_000;
const BITS = 8;
const REPLICA_BYTES_MAX = 2 ** 32;
const SNAPSHOT = 's1-alpha';
const LAYER = 'l1';

export interface Fetching {
  readonly host: NetHost;
  readonly server: ControlledProcess;
  readonly fetcher: ControlledProcess;
}

export interface NeighbourHostsOptions {
  readonly pageCount: number;
  /** Of each host but the first, whom it asks: the number of a host, 0 for the one that has it. */
  readonly asks: readonly number[];
  readonly originTimeoutMs?: number;
  readonly isMulticastBlocked?: boolean;
  /** Of each host but the first; more than any test has where nothing is said. */
  readonly replicaBytesMax?: readonly number[];
}

type Received = ReceiverCounts & {
  readonly neighbour?: string;
  readonly now: { readonly delivery: 'group' | 'unicast' };
};

/** Host 0 has the snapshot, the others fetch it. */
export class NeighbourHosts {
  readonly net: NetHosts;
  readonly layer: Buffer;
  /** By number; that of host 0 fetches nothing. */
  readonly fetching: Fetching[] = [];
  home!: ControlledProcess;
  readonly #options: NeighbourHostsOptions;
  readonly #key = randomBytes(32);
  readonly #folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-neighbours-'));

  static async start(options: NeighbourHostsOptions): Promise<NeighbourHosts> {
    const net = await NetHosts.create({
      hosts: 1 + options.asks.length,
      bitsPerSecond: LINK_BYTES_PER_SECOND * BITS,
    });
    const made = new NeighbourHosts(net, options);
    try {
      made.home = await made.#startHome();
      for (const index of options.asks.keys()) await made.#startFetching(index + 1);
      // All at once, as when a VM is forked over them.
      const all = made.fetching.map(({ fetcher }) => fetcher.execute('open'));
      await Promise.all(all);
    } catch (error) {
      await made.stop();
      throw error;
    }
    return made;
  }

  private constructor(net: NetHosts, options: NeighbourHostsOptions) {
    this.net = net;
    this.#options = options;
    this.layer = randomBytes(options.pageCount * PAGE_BYTES);
  }

  /** The layer's pages, to these hosts. */
  async fetch(
    hosts: readonly number[],
    of: { atOnce: number; firstPage?: number; count?: number },
  ): Promise<void> {
    const { atOnce, firstPage = 0, count = this.#options.pageCount } = of;
    const fetched = hosts.map((host) =>
      this.of(host).fetcher.execute('fetch', { atOnce, firstPage, count }),
    );
    await Promise.all(fetched);
  }

  of(host: number): Fetching {
    return this.fetching[host - 1]!;
  }

  get rightHash(): string {
    return createHash('sha256').update(this.layer).digest('hex');
  }

  /** Of all that a host has. @throws Error when a page is not here. */
  async hash(host: number): Promise<string> {
    return ((await this.of(host).fetcher.execute('hash')) as { hash: string }).hash;
  }

  async received(host: number): Promise<Received> {
    const stats = await this.of(host).fetcher.execute('stats');
    return (stats as { received: Received[] }).received[0]!;
  }

  async served(server: ControlledProcess): Promise<ServerCounts> {
    const stats = await server.execute('stats');
    return (stats as { snapshots: Record<string, ServerCounts> }).snapshots[SNAPSHOT]!;
  }

  /** As the agent does when nothing of the host needs the snapshot any more. */
  async letGo(host: number): Promise<void> {
    const key = this.#key.toString('base64');
    await this.of(host).server.execute('serve', { snapshot: SNAPSHOT, key, layers: [] });
  }

  async stop(): Promise<void> {
    const processes = this.fetching.flatMap(({ server, fetcher }) => [server, fetcher]);
    for (const { client } of [this.home, ...processes]) client?.close();
    await this.net.close();
    fs.rmSync(this.#folder, { recursive: true, force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #startHome(): Promise<ControlledProcess> {
    const run = this.#newFolder('home');
    const file = path.join(run, LAYER);
    fs.writeFileSync(file, this.layer);
    const server = await startServer(this.net.hosts[0]!, run);
    const key = this.#key.toString('base64');
    const layers = [{ path: file }];
    await server.execute('serve', { snapshot: SNAPSHOT, key, group: GROUP, layers });
    return server;
  }

  async #startFetching(index: number): Promise<void> {
    const host = this.net.hosts[index]!;
    if (this.#options.isMulticastBlocked !== false) await host.blockMulticast();
    const run = this.#newFolder(`host${index}`);
    const file = path.join(run, 'layers', LAYER);
    this.#writeSnapshot(run, index);
    const server = await startServer(host, run);
    const socket = path.join(run, PAGER_SOCKET);
    await server.execute('serve', {
      snapshot: SNAPSHOT,
      key: this.#key.toString('base64'),
      layers: [{ path: file, held: heldPath(file) }],
      wants: { snapshot: SNAPSHOT, socket },
    });
    const fetcher = await ControlledProcess.start(host, {
      command: ['--import', import.meta.resolve('tsx'), FETCHER_MAIN, run, SNAPSHOT],
      socket,
    });
    this.fetching.push({ host, server, fetcher });
  }

  /** As the agent leaves it to the pager when the snapshot has come. */
  #writeSnapshot(run: string, index: number): void {
    const { pageCount, originTimeoutMs = 60_000 } = this.#options;
    const replicaBytesMax = this.#options.replicaBytesMax?.[index - 1] ?? REPLICA_BYTES_MAX;
    const folder = path.join(run, 'snapshots', SNAPSHOT);
    const file = path.join(run, 'layers', LAYER);
    for (const made of [folder, path.dirname(file)]) fs.mkdirSync(made, { recursive: true });
    HeldPages.create(heldPath(file), pageCount);
    fs.writeFileSync(file, '');
    fs.truncateSync(file, pageCount * PAGE_BYTES);
    const entries = new Uint16Array(pageCount).fill(1);
    fs.writeFileSync(path.join(folder, 'ram.map'), encodePageMap({ entries, layerCount: 1 }));
    const sizeBytes = pageCount * PAGE_BYTES;
    const objects = [{ name: 'ram', sizeBytes, map: 'ram.map', layers: [LAYER] }];
    const origins = [this.#originFor(index)];
    const snapshot = { version: 1, number: 1, id: SNAPSHOT, objects, origins };
    fs.writeFileSync(path.join(folder, 'snapshot.json'), JSON.stringify(snapshot));
    const { address } = this.net.hosts[index]!;
    const network = { address, originTimeoutMs, replicaBytesMax };
    fs.writeFileSync(path.join(run, NETWORK_FILE), JSON.stringify(network));
  }

  #originFor(index: number): Origin {
    const placeOf = (host: number) => {
      const { name, address } = this.net.hosts[host]!;
      return { host: name, address, port: SERVER_PORT };
    };
    const asks = this.#options.asks[index - 1]!;
    return {
      ...placeOf(0),
      snapshot: SNAPSHOT,
      key: this.#key.toString('base64'),
      group: GROUP,
      layers: [LAYER],
      ...(asks === 0 ? {} : { neighbour: placeOf(asks) }),
    };
  }

  #newFolder(name: string): string {
    const folder = path.join(this.#folder, name);
    fs.mkdirSync(folder);
    return folder;
  }
}

async function startServer(host: NetHost, run: string): Promise<ControlledProcess> {
  return await ControlledProcess.start(host, {
    command: [
      SERVER_MAIN,
      ...['--run', run, '--address', host.address],
      ...['--port', String(SERVER_PORT)],
      ...['--link-bytes-per-second', String(LINK_BYTES_PER_SECOND)],
    ],
    socket: path.join(run, MEMORY_SERVER_SOCKET),
  });
}
