// Pages that lie on other hosts. Asks their memory servers for what a clone waits for, and for what it
// will want; puts into replicas whatever comes, for this host's clones or for others'. Lives on the
// pager's main thread. Every page that is waited for comes, or is reported lost with the reason.

import fs from 'node:fs';
import path from 'node:path';
import {
  CHANNEL,
  type LostReason,
  type OriginClient,
  type OriginSink,
  PAGE_BYTES,
  PageNetwork,
  type Reason,
  WAITING_PAGES_MAX,
} from '@snowfork/memserver';
import { z } from 'zod';
import type { Origin } from '../store/origins.js';
import type { AskableLayers } from './early-asks.js';
import { type Replica, Replicas } from './replicas.js';
import type { ServedObject } from './served-object.js';

/** What the agent writes when this host has joined a cluster; in the run folder. */
export const NETWORK_FILE = 'network.json';
export const networkSchema = z.object({
  /** Of this host: the interface that has it is used. */
  address: z.ipv4(),
  /** A page that has not come for so long is lost. */
  originTimeoutMs: z.number().positive(),
  /** Of pages of other hosts that are kept here. */
  replicaBytesMax: z.number().positive(),
});
/** Demands that the receiver would not take yet are tried again. */
const DEMAND_AGAIN_MS = 1;
/** Of the tmpfs that pages of other hosts may take: the rest is for what is frozen here. */
const REPLICA_SHARE = 1 / 2;
/** Pages asked for at a time when all are brought here. */
const BRING_PAGES = 4096;

const NOBODY: readonly Waiter[] = [];

const wantedRuns = z
  .array(z.tuple([z.int().nonnegative(), z.int().min(1).max(WAITING_PAGES_MAX)]))
  .max(WAITING_PAGES_MAX);
/** What a neighbour of this host wants: pages of a layer by the memory server's number, in runs. */
export const wantedSchema = z.object({
  key: z.string(),
  layer: z.int().nonnegative(),
  demand: wantedRuns,
  prefetch: wantedRuns,
});
type WantedPages = z.infer<typeof wantedSchema>;

/** A page of another host did not come. */
export class LostPageError extends Error {
  override readonly name = 'LostPageError';
}

/** Who waits for a page; one of the two is called, once. */
export interface PageListener {
  /** Its bytes have only just come: they are at `offset` until this returns, and perhaps nowhere after. */
  came?(bytes: Buffer, offset: number): void;
  /** The page is here, or it is not to be had. */
  settled(error?: LostPageError): void;
}

/** One who waits for a page of a replica, which may come from another's source too. */
interface Waiter {
  /** The object that it reads. */
  readonly nodeid: number;
  /** Where the page was asked for, for that object. */
  readonly source: Source;
  readonly listener: PageListener;
}

/** A snapshot's layers at one memory server. */
interface Source {
  readonly origin: Origin;
  /** By number; grows when a snapshot is opened that knows of more. */
  layers: readonly string[];
  client: Promise<OriginClient> | undefined;
  /** The same, when it is. */
  connected: OriginClient | undefined;
}

interface RemoteObject {
  readonly served: ServedObject;
  /** By number in the object's stack: the layer's name and where it comes from; sparse. */
  readonly layers: readonly (RemoteLayer | undefined)[];
}

interface RemoteLayer {
  readonly replica: Replica;
  readonly source: Source;
  /** The memory server's number of it. */
  readonly number: number;
}

export class RemotePages {
  readonly replicas: Replicas;
  readonly #runFolder: string;
  readonly #push: (nodeid: number, firstPage: number, count: number) => void;
  readonly #askable: (nodeid: number, layers: AskableLayers) => void;
  readonly #complain: (message: string) => void;
  readonly #objects = new Map<number, RemoteObject>();
  /** By node: replicas that nobody else need have. */
  readonly #kept = new Map<number, readonly Replica[]>();
  /** By key: snapshots that inherit layers share what serves them. */
  readonly #sources = new Map<string, Source>();
  /** By replica and page. */
  readonly #waiters = new Map<string, readonly Waiter[]>();
  #network: Promise<PageNetwork> | undefined;
  #settings: z.infer<typeof networkSchema> | undefined;
  #arrived: { readonly replica: Replica; readonly page: number }[] = [];

  constructor(of: {
    runFolder: string;
    /** Pages of a memory object have come that nobody waits for. */
    push(nodeid: number, firstPage: number, count: number): void;
    /** Pages of an open object can be asked for by other threads, too; until it is closed. */
    askable(nodeid: number, layers: AskableLayers): void;
    complain(message: string): void;
  }) {
    this.#runFolder = of.runFolder;
    this.#push = of.push;
    this.#askable = of.askable;
    this.#complain = of.complain;
    const { blocks, bsize } = fs.statfsSync(of.runFolder);
    const bytesMax = () =>
      Math.min(this.#readSettings().replicaBytesMax, blocks * bsize * REPLICA_SHARE);
    this.replicas = new Replicas(of.runFolder, () => Math.floor(bytesMax() / PAGE_BYTES));
  }

  /** An object with replicas among its layers can be read now. */
  open(
    served: ServedObject,
    { origins, layers }: { origins: readonly Origin[]; layers: readonly string[] },
  ): void {
    const remote = layers.map((id, index) => {
      const { held } = served.paged.layers[index]!;
      if (held === undefined) return undefined;
      const origin = origins.find((candidate) => candidate.layers.includes(id));
      const replica = this.replicas.acquire(id, held);
      if (origin === undefined) {
        // All that is needed of it is here, and nobody else may have it any more.
        held.pin();
        this.#kept.set(served.shared.nodeid, [
          ...(this.#kept.get(served.shared.nodeid) ?? []),
          replica,
        ]);
        return undefined;
      }
      return { replica, source: this.#source(origin), number: origin.layers.indexOf(id) };
    });
    const object = { served, layers: [undefined, ...remote] };
    this.#objects.set(served.shared.nodeid, object);
    this.#announce(object);
  }

  /** Nobody waits for pages of these objects any more: what they wait for is given up. */
  abandon(nodeids: readonly number[]): void {
    const error = new LostPageError('nobody needs it any more');
    for (const key of [...this.#waiters.keys()]) {
      this.#lose(key, ({ nodeid }) => nodeids.includes(nodeid), error);
    }
  }

  /** The object is read no more. */
  close(nodeid: number): void {
    const object = this.#objects.get(nodeid);
    if (object === undefined) return;
    this.abandon([nodeid]);
    this.#objects.delete(nodeid);
    for (const layer of object.layers)
      if (layer !== undefined) this.replicas.release(layer.replica);
    for (const replica of this.#kept.get(nodeid) ?? []) this.replicas.release(replica);
    this.#kept.delete(nodeid);
    this.#closeUnused();
  }

  /** Resolves when the pages are here. @throws LostPageError */
  async fetch(nodeid: number, firstPage: number, count: number): Promise<void> {
    const object = this.#objects.get(nodeid);
    if (object === undefined) throw new LostPageError('its snapshot is not open here');
    const waits: Promise<void>[] = [];
    for (let page = firstPage; page < firstPage + count; page += 1) {
      const layer = absentLayer(object, page);
      if (layer !== undefined) waits.push(this.#demand(nodeid, layer, page));
      else if (!object.served.atHand(page, 1)) waits.push(Promise.reject(noHostHas(object)));
    }
    await Promise.all(waits);
  }

  /**
   * The same for one page, without a promise: its clone stands still meanwhile. `isAsked`: another
   * thread has asked for it just now.
   * @returns false when it is not on another host
   */
  fetchOne(nodeid: number, page: number, isAsked: boolean, listener: PageListener): boolean {
    const object = this.#objects.get(nodeid);
    const layer = object === undefined ? undefined : absentLayer(object, page);
    if (layer === undefined) return false;
    this.#listen(layer, page, { nodeid, isAsked, listener });
    return true;
  }

  /** Asks for pages that nobody waits for, in this order; those that are here already are left out. */
  prefetch(nodeid: number, pages: readonly number[]): void {
    const object = this.#objects.get(nodeid);
    if (object === undefined) return;
    const layerOf = (page: number | undefined) =>
      page === undefined ? undefined : absentLayer(object, page);
    for (let at = 0; at < pages.length; ) {
      const first = pages[at]!;
      const layer = layerOf(first);
      let count = 1;
      while (pages[at + count] === first + count && layerOf(first + count) === layer) count += 1;
      at += count;
      if (layer !== undefined) this.#askAhead(layer, first, count);
    }
  }

  /** The same for a range. */
  prefetchRange(of: { nodeid: number; firstPage: number; count: number }): void {
    const { nodeid, firstPage, count } = of;
    this.prefetch(
      nodeid,
      Array.from({ length: count }, (_, index) => firstPage + index),
    );
  }

  #askAhead({ source, number }: RemoteLayer, firstPage: number, count: number): void {
    this.#client(source).then(
      (client) => client.prefetch(number, firstPage, count),
      () => {}, // said when it was tried
    );
  }

  /** What a neighbour of this host asks for of a replica; it looks for it when it has come. */
  async want({ key, layer, demand, prefetch }: WantedPages): Promise<void> {
    const source = this.#sources.get(key);
    if (source === undefined) return;
    const client = await this.#client(source);
    for (const [first, count] of demand) {
      for (let page = first; page < first + count; page += 1) {
        const replica = this.#replicaOf(source, layer, page);
        if (replica?.held.has(page) === false) client.demand(layer, page);
      }
    }
    // Each goes before those that are there.
    for (const [first, count] of prefetch.toReversed()) {
      client.prefetch(layer, first, count, { isFirst: true });
    }
  }

  /** Of each memory server: what came of it, and how. */
  stats(): object[] {
    return [...this.#sources.values()].flatMap(({ origin, connected }) => {
      const { host, snapshot, neighbour } = origin;
      if (connected === undefined) return [];
      const { counts } = connected;
      const by = connected.asksNeighbour ? { neighbour: neighbour?.host } : {};
      const delivery = connected.delivery === CHANNEL.group ? 'group' : 'unicast';
      return [{ host, snapshot, ...by, ...counts, now: { ...counts.now, delivery } }];
    });
  }

  /** Pages of an object that only other hosts have, by host. */
  dependsOn(nodeid: number): Record<string, number> {
    const hosts: Record<string, number> = {};
    const object = this.#objects.get(nodeid);
    if (object === undefined || object.layers.every((layer) => layer === undefined)) return hosts;
    const { paged } = object.served;
    for (let page = 0; page < paged.pageCount; ) {
      const run = paged.runLength(page, paged.pageCount - page);
      const layer = object.layers[paged.layerOf(page)];
      if (layer !== undefined) {
        const { host } = layer.source.origin;
        const absent = run - layer.replica.held.countHeld(page, run);
        if (absent > 0) hosts[host] = (hosts[host] ?? 0) + absent;
      }
      page += run;
    }
    return hosts;
  }

  /**
   * All pages of the object are to be here, and to stay: asks for some of those that are not, behind
   * whatever somebody waits for. Called again and again, until it returns that none is missing.
   */
  bringAll(nodeid: number): number {
    const object = this.#objects.get(nodeid);
    if (object === undefined) return 0;
    for (const layer of object.layers) layer?.replica.held.pin();
    const missing = this.#missing(object);
    this.prefetch(nodeid, missing.slice(0, BRING_PAGES));
    return missing.length;
  }

  #missing(object: RemoteObject): number[] {
    const missing: number[] = [];
    for (let page = 0; page < object.served.paged.pageCount; page += 1) {
      if (absentLayer(object, page) !== undefined) missing.push(page);
    }
    return missing;
  }

  #demand(nodeid: number, layer: RemoteLayer, page: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const settled = (error?: LostPageError) => (error === undefined ? resolve() : reject(error));
      this.#listen(layer, page, { nodeid, isAsked: false, listener: { settled } });
    });
  }

  #listen(
    layer: RemoteLayer,
    page: number,
    of: { nodeid: number; isAsked: boolean; listener: PageListener },
  ): void {
    const { replica, source } = layer;
    const { nodeid, isAsked, listener } = of;
    const key = keyOf(replica, page);
    const before = this.#waiters.get(key) ?? NOBODY;
    this.#waiters.set(key, [...before, { nodeid, source, listener }]);
    if (!before.some((waiter) => waiter.source === source)) this.#ask(layer, page, isAsked);
  }

  /** Until the source takes it, or nobody waits for the page by that source. */
  #ask({ replica, source, number }: RemoteLayer, page: number, isAsked: boolean): void {
    const key = keyOf(replica, page);
    const isOf = (waiter: Waiter) => waiter.source === source;
    const ask = (client: OriginClient) => {
      if (this.#waiters.get(key)?.some(isOf) !== true) return;
      if (!client.demand(number, page)) setTimeout(ask, DEMAND_AGAIN_MS, client);
    };
    const { connected } = source;
    if (connected !== undefined) {
      if (!isAsked || !connected.demand(number, page, true)) ask(connected);
      return;
    }
    this.#client(source).then(ask, (error: unknown) => {
      this.#lose(key, isOf, new LostPageError(`the network can't be used: ${String(error)}`));
    });
  }

  #source(origin: Origin): Source {
    const { key, layers } = origin;
    const known = this.#sources.get(key);
    if (known !== undefined) {
      // Of two lists one is the beginning of the other.
      if (layers.length > known.layers.length) known.layers = layers;
      return known;
    }
    const source: Source = { origin, layers, client: undefined, connected: undefined };
    this.#sources.set(key, source);
    this.#client(source).catch(() => {}); // said when it was tried
    return source;
  }

  #client(source: Source): Promise<OriginClient> {
    source.client ??= this.#connect(source).then(
      (client) => {
        source.connected = client;
        for (const object of this.#objects.values()) {
          if (object.layers.some((layer) => layer?.source === source)) this.#announce(object);
        }
        return client;
      },
      (error: unknown) => {
        // The next that wants it tries again.
        source.client = undefined;
        this.#complain(`${source.origin.host} can't be asked: ${String(error)}`);
        throw error;
      },
    );
    return source.client;
  }

  /** Tells other threads where its pages can be asked for, as far as that is known. */
  #announce({ served, layers }: RemoteObject): void {
    const askable = layers.map((layer) => {
      const terms = layer?.source.connected?.asking;
      return layer === undefined || terms === undefined
        ? undefined
        : { number: layer.number, terms };
    });
    const isAny = askable.some((layer) => layer !== undefined);
    if (isAny) this.#askable(served.shared.nodeid, askable);
  }

  async #connect(source: Source): Promise<OriginClient> {
    const { origin } = source;
    const { address, port, group, neighbour } = origin;
    const { originTimeoutMs } = this.#readSettings();
    const key = Buffer.from(origin.key, 'base64');
    const network = await this.#openNetwork();
    return await network.connect(
      { address, port, key, group, neighbour },
      { sink: this.#sinkOf(source), lostAfterMs: originTimeoutMs },
    );
  }

  #openNetwork(): Promise<PageNetwork> {
    const { address } = this.#readSettings();
    this.#network ??= PageNetwork.open({
      localAddress: address,
      complain: this.#complain,
    }).catch((error: unknown) => {
      this.#network = undefined;
      throw error;
    });
    return this.#network;
  }

  #readSettings(): z.infer<typeof networkSchema> {
    const file = path.join(this.#runFolder, NETWORK_FILE);
    this.#settings ??= networkSchema.parse(JSON.parse(fs.readFileSync(file, 'utf8')));
    return this.#settings;
  }

  #sinkOf(source: Source): OriginSink {
    const { origin } = source;
    const isOf = (waiter: Waiter) => waiter.source === source;
    /** What was asked for is of a layer that is known. */
    const wantedOf = (layer: number, page: number) => {
      if (source.layers[layer] === undefined) {
        this.#complain(`${origin.host}: ${origin.snapshot} is not known to have layer ${layer}`);
      }
      return this.#replicaOf(source, layer, page);
    };
    return {
      onPage: (layer, page, bytes, offset, reason) => {
        const replica = wantedOf(layer, page);
        if (replica === undefined || replica.held.has(page)) return;
        // A clone that waits for it comes first.
        const waiters = this.#take(replica, page);
        for (const { listener } of waiters) listener.came?.(bytes, offset);
        const others = waiters.filter(({ listener }) => listener.came === undefined);
        try {
          this.replicas.put(replica, page, bytes, offset);
        } catch (error) {
          const message = `a page of ${origin.snapshot} can't be kept: ${String(error)}`;
          this.#complain(message);
          tell(others, new LostPageError(message));
          return;
        }
        tell(others);
        this.#came(replica, page, reason);
      },
      onZeroPage: (layer, page, reason) => {
        const replica = wantedOf(layer, page);
        if (replica === undefined) return;
        replica.putZero(page);
        tell(this.#take(replica, page));
        this.#came(replica, page, reason);
      },
      onLost: (layer, page, lost) => {
        const replica = wantedOf(layer, page);
        if (replica === undefined) return;
        this.#lose(keyOf(replica, page), isOf, new LostPageError(lostWords(origin, lost)));
      },
      // What nobody here wants is as good as here.
      isHeld: (layer, page) => this.#replicaOf(source, layer, page)?.held.has(page) ?? true,
    };
  }

  /** Undefined for what is not used here, and for a page that no replica of it can have. */
  #replicaOf(source: Source, layer: number, page: number): Replica | undefined {
    const replica = this.replicas.find(source.layers[layer] ?? '');
    return replica !== undefined && page < replica.held.pageCount ? replica : undefined;
  }

  #came(replica: Replica, page: number, reason: Reason): void {
    if (reason === 'demand') return;
    if (this.#arrived.length === 0) setImmediate(() => this.#pushArrived());
    this.#arrived.push({ replica, page });
  }

  /** Who waits for the page, from now on nobody. */
  #take(replica: Replica, page: number): readonly Waiter[] {
    const key = keyOf(replica, page);
    const waiters = this.#waiters.get(key) ?? NOBODY;
    this.#waiters.delete(key);
    return waiters;
  }

  /** Some of those who wait for a page will not get it; the others go on. */
  #lose(key: string, isLost: (waiter: Waiter) => boolean, error: LostPageError): void {
    const waiters = this.#waiters.get(key) ?? NOBODY;
    const left = waiters.filter((waiter) => !isLost(waiter));
    if (left.length > 0) this.#waiters.set(key, left);
    else this.#waiters.delete(key);
    tell(waiters.filter(isLost), error);
  }

  /** Into the kernel's page cache with them, run by run, for every object that shows them. */
  #pushArrived(): void {
    const arrived = this.#arrived;
    this.#arrived = [];
    for (const { served, layers } of this.#objects.values()) {
      if (!served.isMemory) continue;
      const shows = ({ replica, page }: { replica: Replica; page: number }) =>
        layers[served.paged.layerOf(page)]?.replica === replica;
      const pages = arrived.filter(shows).map(({ page }) => page);
      pages.sort((a, b) => a - b);
      for (let at = 0; at < pages.length; ) {
        let count = 1;
        while (pages[at + count] === pages[at]! + count) count += 1;
        this.#push(served.shared.nodeid, pages[at]!, count);
        at += count;
      }
    }
  }

  /** Ends what serves no open object. */
  #closeUnused(): void {
    const used = new Set<Source>();
    for (const { layers } of this.#objects.values()) {
      for (const layer of layers) if (layer !== undefined) used.add(layer.source);
    }
    for (const [key, source] of this.#sources) {
      if (used.has(source)) continue;
      this.#sources.delete(key);
      source.client?.then(
        (client) => client.close(),
        () => {},
      );
    }
  }
}

/** The layer that has the page, when that is not here. */
function absentLayer({ served, layers }: RemoteObject, page: number): RemoteLayer | undefined {
  const layer = layers[served.paged.layerOf(page)];
  return layer === undefined || layer.replica.held.has(page) ? undefined : layer;
}

function keyOf(replica: Replica, page: number): string {
  return `${replica.id} ${page}`;
}

function tell(waiters: readonly Waiter[], error?: LostPageError): void {
  for (const { listener } of waiters) listener.settled(error);
}

function noHostHas({ served }: RemoteObject): LostPageError {
  return new LostPageError(`no host has the page of ${served.shared.snapshot} any more`);
}

function lostWords({ host, snapshot }: Origin, lost: LostReason): string {
  if (lost === 'absent') return `host ${host} has the page of ${snapshot} no more`;
  return `host ${host}, which has the page of ${snapshot}, does not answer`;
}
