// The other hosts, as the parts of the agent that make VMs see them: room there, calls to them, and
// pages for them. Puts together the cluster, this host's memory server and the pager; decides nothing.

import fs from 'node:fs';
import path from 'node:path';
import { type MemoryServerStats, SnowforkError } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { MemoryServerKeeper } from '../memserver/keeper.js';
import { PAGER_SOCKET } from '../pager/client.js';
import { NETWORK_FILE } from '../pager/remote-pages.js';
import type { Settings } from '../settings.js';
import type { ServedLayers, ServingHost } from '../store/describe.js';
import type { ProcessJournal } from '../store/processes.js';
import { linkSpeed } from '../system/link-speed.js';
import type { Others } from '../vms/families.js';
import type { Placed, PlacingRequest } from '../vms/placing.js';
import { commitBytes, type Room } from '../vms/room.js';
import type { Cluster } from './cluster.js';
import { type FamilyCounts, type FamilyRequest, NOTHING } from './family-record.js';

export interface OtherHostsContext {
  readonly cluster: Cluster;
  readonly runFolder: string;
  readonly settings: Settings;
  readonly log: Logger;
  readonly journal: ProcessJournal;
  faults(snapshot: string): Promise<readonly number[]>;
  touched(snapshot: string, pages: readonly number[]): Promise<void>;
  bringAll(snapshot: string): Promise<number>;
}

export class OtherHosts implements Others {
  readonly #context: OtherHostsContext;
  #memoryServer: Promise<MemoryServerKeeper> | undefined;

  constructor(context: OtherHostsContext) {
    this.#context = context;
  }

  /** This host is in a cluster now: its pages can be had, and those of others come here. */
  async open(): Promise<{ pagesPort: number }> {
    const { runFolder, settings, cluster } = this.#context;
    const { address } = cluster.file.host;
    const { originTimeoutMs, replicaBytesMax } = settings;
    const network = JSON.stringify({ address, originTimeoutMs, replicaBytesMax });
    fs.writeFileSync(path.join(runFolder, NETWORK_FILE), network, { mode: 0o600 });
    return { pagesPort: (await this.#server()).port };
  }

  async close(): Promise<void> {
    await (await this.#memoryServer)?.stop();
  }

  /** Undefined while nothing is served: the host is in no cluster. */
  async stats(): Promise<MemoryServerStats | undefined> {
    return await (await this.#memoryServer)?.stats();
  }

  /** So that nobody ends it for a left-over. */
  async pid(): Promise<number | undefined> {
    return await (await this.#memoryServer)?.pid();
  }

  readonly call: Others['call'] = (host, method, params, signal) =>
    this.#context.cluster.call(host, method, params, signal);

  isMember(host: string): boolean {
    return this.#context.cluster.isMember(host);
  }

  async serving(): Promise<ServingHost> {
    const { name, address } = this.#context.cluster.file.host;
    return { host: name, address, port: (await this.#server()).port };
  }

  /** Another host's memory server, when it has said where that is. */
  pagesOf(host: string): ServingHost | undefined {
    const record = this.#context.cluster.hosts().find(({ name }) => name === host);
    if (record?.pagesPort === undefined) return undefined;
    return { host, address: record.address, port: record.pagesPort };
  }

  async serve({ key, wants, ...of }: ServedLayers): Promise<void> {
    const socket = path.join(this.#context.runFolder, PAGER_SOCKET);
    await (await this.#server()).serve({
      ...of,
      key: Buffer.from(key, 'base64'),
      ...(wants === undefined ? {} : { wants: { ...wants, socket } }),
    });
  }

  /** The snapshot is gone. */
  async drop(snapshot: string): Promise<void> {
    // One that could not be started serves nothing.
    const server = await this.#memoryServer?.catch(() => undefined);
    server?.drop(snapshot);
  }

  bringAll(snapshot: string): Promise<number> {
    return this.#context.bringAll(snapshot);
  }

  faults(snapshot: string): Promise<readonly number[]> {
    return this.#context.faults(snapshot);
  }

  touched(snapshot: string, pages: readonly number[]): Promise<void> {
    return this.#context.touched(snapshot, pages);
  }

  readonly place = async (request: PlacingRequest, room: Room): Promise<Placed> => {
    const { asked, machine, extraBytes, ...of } = request;
    const own = room.reserve(asked, machine, extraBytes);
    const bytesEach = commitBytes(machine);
    try {
      const reserving = { ...of, asked, bytesEach, hereSlots: own.granted };
      const { here, elsewhere, reason } = await this.#context.cluster.store.reserve(reserving);
      own.release(own.granted - here);
      const total = elsewhere.reduce((sum, { slots }) => sum + slots, here);
      const why = reason ?? (total < asked ? own.reason : undefined);
      const granted = { granted: here, ...(why === undefined ? {} : { reason: why }) };
      return { ...granted, release: own.release, elsewhere, bytesEach };
    } catch (error) {
      own.release(own.granted);
      throw error;
    }
  };

  async takeOfFamily(request: FamilyRequest): Promise<void> {
    await this.#context.cluster.store.takeOfFamily(request);
  }

  heardOf(family: string): { here: FamilyCounts; elsewhere: FamilyCounts } {
    const { cluster } = this.#context;
    // Before the others can be spoken to, nothing was heard of them.
    if (cluster.name !== undefined && !cluster.isOpen) return { here: NOTHING, elsewhere: NOTHING };
    return cluster.store.heardOf(family);
  }

  #server(): Promise<MemoryServerKeeper> {
    this.#memoryServer ??= this.#openServer().catch((cause) => {
      this.#memoryServer = undefined;
      throw SnowforkError.from(cause);
    });
    return this.#memoryServer;
  }

  #openServer(): Promise<MemoryServerKeeper> {
    const { cluster, runFolder, log, journal, settings } = this.#context;
    const { address } = cluster.file.host;
    const bitsPerSecond = settings.linkBitsPerSecond ?? linkSpeed(address);
    const linkBytesPerSecond = bitsPerSecond === undefined ? undefined : bitsPerSecond / 8;
    const of = { runFolder, log, journal, address, linkBytesPerSecond, port: 0 };
    return MemoryServerKeeper.open(of);
  }
}
