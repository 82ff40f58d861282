// A memory server and hosts that want its pages, as processes in network namespaces; and the files
// that they are served from. Used by the tests of pages over the network.

import type { ChildProcess } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  CHANNEL,
  MEMORY_SERVER_SOCKET,
  PAGE_BYTES,
  type ReceiverCounts,
  type ServerCounts,
} from '@snowfork/memserver';
import { expect } from 'vitest';
import { LineClient } from '../../packages/clone-agent/src/hypervisor/line-client.js';
import { type NetHost, NetHosts } from '../../packages/clone-agent/src/system/net-hosts.js';
import { eventually } from './eventually.js';

export const SERVER_PORT = 7700;
export const GROUP = { address: '239.77.0.1', port: 7701 };
const SERVER_MAIN = fileURLToPath(import.meta.resolve('@snowfork/memserver/main'));
const PULLER_MAIN = fileURLToPath(new URL('../dist/net/puller-main.js', import.meta.url));
const PEER = { peer: 'the process', errorCode: 'SF_INTERNAL', timeoutMs: 20_000 } as const;
/** As long as a test: what does not come ends the test, not the wait. */
const COMMAND = { timeoutMs: 280_000 };
export const SERVER = 0;

export interface Pulled {
  readonly held: number;
  readonly hash: string;
  readonly lost: Readonly<Record<string, string>>;
}

export interface PullerStats {
  readonly pid: number;
  readonly counts: ReceiverCounts;
  readonly delivery: number;
  readonly outstanding: { demand: number; prefetch: number; assemblies: number };
  readonly network: { datagramsUnknown: number; datagramsUnsent: number };
  readonly complaints: readonly string[];
}

/** A process with a control socket. */
export class ControlledProcess {
  readonly child: ChildProcess;
  readonly client: LineClient;

  static async start(
    host: NetHost,
    of: { command: readonly string[]; socket: string },
  ): Promise<ControlledProcess> {
    const child = host.spawn(process.execPath, of.command, { stdio: ['pipe', 'pipe', 'inherit'] });
    await Promise.race([
      once(child.stdout!, 'data'),
      once(child, 'exit').then(([code]) => {
        throw new Error(`${of.command[0]} ended with ${code}`);
      }),
    ]);
    return new ControlledProcess(child, await LineClient.connect(of.socket, PEER));
  }

  private constructor(child: ChildProcess, client: LineClient) {
    this.child = child;
    this.client = client;
  }

  async execute(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    return await this.client.execute(command, args, COMMAND);
  }

  async kill(): Promise<void> {
    this.client.close();
    this.child.kill('SIGKILL');
    await once(this.child, 'exit');
  }
}

/** The server is host 0, the others want its pages. */
export class PageHosts {
  readonly net: NetHosts;
  readonly key = randomBytes(32);
  server!: ControlledProcess;
  readonly pullers: ControlledProcess[] = [];
  /** The bytes of the one layer that is served. */
  readonly layer: Buffer;
  readonly folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-net-'));
  readonly #linkBytesPerSecond: number | undefined;

  static async start(of: {
    readonly pullers: number;
    readonly pageCount: number;
    readonly mtuBytes?: readonly number[];
    readonly linkBytesPerSecond?: number;
    readonly hasGroup?: boolean;
    /** So much of each page can't be packed. Without it none of it can. */
    readonly noiseBytes?: number;
    /** Hosts on which nothing runs; after the others. */
    readonly strangers?: number;
    /** `false`: they connect when `connect` is called. */
    readonly isConnected?: boolean;
  }): Promise<PageHosts> {
    const { mtuBytes = [], strangers = 0 } = of;
    const net = await NetHosts.create({ hosts: 1 + of.pullers + strangers, mtuBytes });
    const made = new PageHosts(net, of);
    try {
      await made.startServer();
      for (let host = 1; host <= of.pullers; host++) await made.#startPuller(host);
      if (of.isConnected !== false) await made.connect(of.hasGroup);
    } catch (error) {
      await made.stop();
      throw error;
    }
    return made;
  }

  private constructor(
    net: NetHosts,
    of: { pageCount: number; linkBytesPerSecond?: number; noiseBytes?: number },
  ) {
    this.net = net;
    this.#linkBytesPerSecond = of.linkBytesPerSecond;
    this.layer = randomBytes(of.pageCount * PAGE_BYTES);
    const { noiseBytes = PAGE_BYTES } = of;
    for (let end = PAGE_BYTES; end <= this.layer.length; end += PAGE_BYTES) {
      this.layer.fill(0, end - PAGE_BYTES + noiseBytes, end);
    }
    fs.writeFileSync(path.join(this.folder, 'layer'), this.layer);
  }

  /** Also in the place of one that has died. */
  async startServer(): Promise<void> {
    const rate = this.#linkBytesPerSecond;
    this.server = await ControlledProcess.start(this.net.hosts[SERVER]!, {
      command: [
        SERVER_MAIN,
        ...['--run', this.folder],
        ...['--address', this.net.hosts[SERVER]!.address],
        ...['--port', String(SERVER_PORT)],
        ...(rate === undefined ? [] : ['--link-bytes-per-second', String(rate)]),
      ],
      socket: path.join(this.folder, MEMORY_SERVER_SOCKET),
    });
    await this.serve([{ path: path.join(this.folder, 'layer') }]);
  }

  async serve(layers: readonly { path: string; held?: string }[]): Promise<void> {
    const key = this.key.toString('base64');
    await this.server.execute('serve', { snapshot: 's1', key, group: GROUP, layers });
  }

  /** The layer's pages, to all pullers or those given; resolves when each has them or lost them. */
  async pull(of: {
    readonly atOnce: number;
    readonly pullers?: readonly number[];
    readonly firstPage?: number;
    readonly count?: number;
    /** As another thread than the receiver's asks. */
    readonly isByAsker?: boolean;
  }): Promise<Pulled[]> {
    const { firstPage = 0, count = this.layer.length / PAGE_BYTES, atOnce, isByAsker } = of;
    const pullers = of.pullers ?? this.pullers.keys();
    return await Promise.all(
      Array.from(pullers, async (index) => {
        const args = { layer: 0, firstPage, count, atOnce, isByAsker };
        return (await this.pullers[index]!.execute('pull', args)) as Pulled;
      }),
    );
  }

  /** What `pull` says of pages that all came right. */
  right(firstPage = 0, count = this.layer.length / PAGE_BYTES): Pulled {
    const bytes = this.layer.subarray(firstPage * PAGE_BYTES, (firstPage + count) * PAGE_BYTES);
    return { held: count, hash: createHash('sha256').update(bytes).digest('hex'), lost: {} };
  }

  async pullerStats(index: number): Promise<PullerStats> {
    return (await this.pullers[index]!.execute('stats')) as PullerStats;
  }

  async serverStats(): Promise<ServerCounts> {
    const stats = (await this.server.execute('stats')) as {
      snapshots: Record<string, ServerCounts>;
    };
    return stats.snapshots.s1!;
  }

  /** Where a busy machine is late with that, pages come by unicast at first. */
  async untilByGroup(): Promise<void> {
    for (const index of this.pullers.keys()) {
      await eventually(async () => {
        const { counts, delivery } = await this.pullerStats(index);
        expect(counts.received.group.datagrams).toBeGreaterThan(0);
        expect(delivery).toBe(BY_GROUP);
      });
    }
  }

  /** All pullers; the origin's group may be kept from them. */
  async connect(hasGroup = true): Promise<void> {
    const origin = {
      address: this.net.hosts[SERVER]!.address,
      port: SERVER_PORT,
      key: this.key.toString('base64'),
      ...(hasGroup ? { group: GROUP } : {}),
      lostAfterMs: 60_000,
    };
    for (const puller of this.pullers) await puller.execute('connect', origin);
  }

  async stop(): Promise<void> {
    for (const { client } of [this.server, ...this.pullers]) client?.close();
    await this.net.close();
    fs.rmSync(this.folder, { recursive: true, force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #startPuller(host: number): Promise<void> {
    const socket = path.join(this.folder, `puller${host}.sock`);
    const puller = await ControlledProcess.start(this.net.hosts[host]!, {
      command: [PULLER_MAIN, this.net.hosts[host]!.address, socket],
      socket,
    });
    this.pullers.push(puller);
  }
}

export const BY_GROUP = CHANNEL.group;
export const BY_UNICAST = CHANNEL.unicast;
