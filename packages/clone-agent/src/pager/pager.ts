// The main thread of the pager process: puts its parts together and carries out what the agent asks
// by the control socket. It answers what the serving threads pass on; it owns the registry and with
// it all descriptors of layers.

import { setTimeout as delay } from 'node:timers/promises';
import type { Command } from '@snowfork/memserver/control';
import { z } from 'zod';
import { DeferredReads } from './deferred-reads.js';
import { Filesystem } from './filesystem.js';
import { inSweeps, LIKELY_PAGES_MAX } from './first-touches.js';
import {
  decodeHeader,
  decodeRead,
  encodeInvalidateEntry,
  encodeInvalidateInode,
  newRequestHeader,
  Opcode,
} from './fuse-wire.js';
import { LatencyHistogram } from './histogram.js';
import { ROOT_NODE } from './nodes.js';
import { Registry } from './objects.js';
import { Openers } from './openers.js';
import { PageServer } from './page-server.js';
import { RemotePages, wantedSchema } from './remote-pages.js';
import { Counter, ServedObject } from './served-object.js';
import { FuseReplies } from './session.js';
import { StoreRequests } from './stores.js';
import { AnsweredRequests, mapTakenRequests } from './taken.js';
import { MAIN_THREAD } from './thread-data.js';
import { Threads } from './threads.js';

/** What was touched first of a family is pushed into the page cache at once; more of it would not pay. */
const REPLAYED_PAGES_MAX = 4096;

/** A host that is near answers in a fraction of it. */
const BRING_MS_MAX = 100;
const BRING_PAGES_MAX = 4096;

const snapshotArgument = z.object({ snapshot: z.string() });
const touches = z.array(z.number().int().nonnegative()).max(LIKELY_PAGES_MAX);
const bringArguments = snapshotArgument.extend({
  pages: z.array(z.number().int().nonnegative()).max(BRING_PAGES_MAX),
});
const touchedArguments = snapshotArgument.extend({ pages: touches });
/** `like`: snapshots whose clones touched first what clones of this one will, the most alike last. */
const readyArguments = snapshotArgument.extend({
  like: z.array(z.string()).max(16).default([]),
  /** Pages of the RAM that clones on other hosts touched first, in that order. */
  first: touches.default([]),
});

export interface PagerEvents {
  /** The mount has gone; there is nothing left to do. */
  gone(): void;
  /** The pager can't go on and must be started again. */
  failed(error: Error): void;
  complain(message: string): void;
}

export class Pager {
  readonly #threads: Threads;
  readonly #server: PageServer;
  readonly #registry: Registry;
  readonly #deferred: DeferredReads;
  readonly #filesystem: Filesystem;
  readonly #remote: RemotePages;
  /** Of requests that the serving threads have passed on. */
  readonly #answered: AnsweredRequests;
  readonly #events: PagerEvents;
  readonly #replays: boolean;

  constructor(
    of: { fuseDescriptor: number; runFolder: string; replays: boolean },
    events: PagerEvents,
  ) {
    this.#events = events;
    this.#replays = of.replays;
    const { complain } = events;
    this.#answered = new AnsweredRequests(mapTakenRequests(of.runFolder));
    const left = this.#answered.left();
    this.#threads = new Threads({
      ...of,
      failed: events.failed,
      heard: (word) => {
        if (word.kind === 'request') this.#take(Buffer.from(word.request), word);
        else if (word.kind === 'absent') this.#remote.prefetchRange(word);
        else if (word.kind === 'complaint') complain(word.message);
        else if (word.kind === 'gone') events.gone();
      },
    });
    const replies = new FuseReplies(of.fuseDescriptor, (request) =>
      this.#answered.answered(request),
    );
    const stores = new StoreRequests(this.#threads.storesMemory, MAIN_THREAD);
    const histogram = new LatencyHistogram(this.#threads.histogramMemory, MAIN_THREAD);
    this.#server = new PageServer({ replies, stores, complain });
    const server = this.#server;
    const push = (nodeid: number, firstPage: number, count: number) =>
      stores.offer(nodeid, firstPage, count, false);
    this.#remote = new RemotePages({
      runFolder: of.runFolder,
      push,
      askable: (nodeid, layers) => this.#threads.publishAskable(nodeid, layers),
      complain,
    });
    const remote = this.#remote;
    this.#registry = new Registry(of.runFolder, {
      complain,
      loaded: (object, layers) => {
        const served = new ServedObject(object, MAIN_THREAD);
        server.objects.set(object.nodeid, served);
        this.#threads.publishObject(object);
        remote.open(served, layers);
      },
    });
    const registry = this.#registry;
    const answered = (startedAt: number) =>
      histogram.count(performance.timeOrigin + performance.now() - startedAt);
    const { runFolder } = of;
    const parts = { server, registry, remote, replies };
    this.#deferred = new DeferredReads({ ...parts, answered, complain, runFolder });
    this.#filesystem = new Filesystem({
      registry,
      openers: new Openers(of.runFolder, process.getuid!()),
      replies,
      opened: (nodeid) => setImmediate(() => this.#loadEarly(nodeid)),
      forgotten: (nodeid) => server.objects.get(nodeid)?.forgetPushes(),
    });
    for (const { request, slot } of left) {
      this.#take(request, { startedAt: Date.now(), slot, isAsked: false });
    }
  }

  readonly commands: Readonly<Record<string, Command>> = {
    ping: () => ({ pid: process.pid }),
    ready: (args) => this.#ready(readyArguments.parse(args)),
    touched: (args) => this.#touched(touchedArguments.parse(args)),
    faults: (args) => this.#faults(snapshotArgument.parse(args).snapshot),
    bring: (args) => this.#bring(bringArguments.parse(args)),
    bringAll: (args) => this.#bringAll(snapshotArgument.parse(args).snapshot),
    want: async (args) => {
      // Nothing of it has been read here yet, as far as this process knows.
      this.#registry.loadAll(snapshotArgument.parse(args).snapshot);
      await this.#remote.want(wantedSchema.parse(args));
    },
    drop: (args) => this.#drop(snapshotArgument.parse(args).snapshot),
    stats: () => this.#stats(),
  };

  /** Resolves when no request is half answered by a serving thread. */
  async quiet(): Promise<void> {
    await this.#threads.quiet();
  }

  #take(
    request: Buffer,
    of: { startedAt: number; slot: number | undefined; isAsked: boolean },
  ): void {
    const { startedAt, slot, isAsked } = of;
    const header = newRequestHeader();
    try {
      decodeHeader(request, request.length, header);
      if (slot !== undefined) this.#answered.await(header, slot);
      if (header.opcode !== Opcode.read) {
        this.#filesystem.handle(header, request);
        return;
      }
      const wanted = { offset: 0, sizeBytes: 0 };
      decodeRead(request, request.length, wanted);
      this.#deferred.take({ header, wanted, startedAt, isAsked });
    } catch (error) {
      this.#events.complain(`a request that can't be served: ${String(error)}`);
    }
  }

  /** The first READ finds everything in place, and what clones touched before this pager was there. */
  #loadEarly(nodeid: number): void {
    try {
      if (this.#server.objects.has(nodeid)) return;
      this.#registry.load(nodeid);
      const { touches } = this.#server.objects.get(nodeid) ?? {};
      if (this.#replays && touches !== undefined) this.#push(nodeid, [...touches.pages()]);
    } catch (error) {
      this.#events.complain(`node ${nodeid} can't be served: ${String(error)}`);
    }
  }

  /** The freeze of a snapshot has ended: its content is there. */
  #ready({ snapshot, like, first }: z.infer<typeof readyArguments>): void {
    const objects = this.#registry.loadAll(snapshot);
    this.#deferred.retryParked();
    for (const { nodeid } of objects) {
      this.#replay(nodeid, like);
      if (first.length > 0) this.#fetchFirst(nodeid, first);
    }
  }

  /** What clones on other hosts waited for is fetched before those of this host ask. */
  #fetchFirst(nodeid: number, pages: readonly number[]): void {
    const object = this.#server.objects.get(nodeid);
    if (object === undefined || !object.isMemory) return;
    object.touches?.inherit(pages);
    this.#remote.prefetch(nodeid, inSweeps(pages));
  }

  /** Pages that the agent would read; it does not wait long for a host that does not answer. */
  async #bring({ snapshot, pages }: z.infer<typeof bringArguments>): Promise<void> {
    this.#registry.loadAll(snapshot);
    const object = this.#memoryOf(snapshot);
    if (object === undefined) return;
    const { nodeid } = object.shared;
    const fetched = pages.map((page) => this.#remote.fetch(nodeid, page, 1));
    await Promise.race([Promise.allSettled(fetched), delay(BRING_MS_MAX)]);
  }

  /** All pages of a snapshot are to be on this host, and to stay; says how many are not yet. */
  #bringAll(snapshot: string): { missing: number } {
    const objects = this.#registry.loadAll(snapshot);
    return { missing: objects.reduce((sum, { nodeid }) => sum + this.#remote.bringAll(nodeid), 0) };
  }

  /** What clones of a snapshot have touched, in that order, for those on other hosts. */
  #faults(snapshot: string): { pages: number[] } {
    return { pages: this.#memoryOf(snapshot)?.likelyTouches() ?? [] };
  }

  /** What clones on other hosts have touched. */
  #touched({ snapshot, pages }: z.infer<typeof touchedArguments>): void {
    this.#registry.loadAll(snapshot);
    const object = this.#memoryOf(snapshot);
    object?.touches?.confirm(pages.filter((page) => page < object.paged.pageCount));
  }

  #memoryOf(snapshot: string): ServedObject | undefined {
    return [...this.#server.objects.values()].find(
      ({ shared, isMemory }) => isMemory && shared.snapshot === snapshot,
    );
  }

  /**
   * What clones of the snapshot before waited for is pushed before these ask; it began with what was known
   * when it was made. Of those before it something is known when of itself nothing is.
   */
  #replay(nodeid: number, like: readonly string[]): void {
    const object = this.#server.objects.get(nodeid);
    if (object === undefined || !object.isMemory) return;
    for (const id of like.toReversed()) {
      this.#loadAgain(id);
      const pages = [...new Set(this.#memoryOf(id)?.touches?.pages())];
      if (pages.length === 0) continue;
      object.touches?.inherit(pages);
      this.#push(nodeid, pages.slice(-REPLAYED_PAGES_MAX));
      return;
    }
  }

  /** A pager before this one had it loaded, if it is there. */
  #loadAgain(snapshot: string): void {
    try {
      this.#registry.loadAll(snapshot);
    } catch {
      // It has gone, or is broken, which is said when it is read.
    }
  }

  #push(nodeid: number, pages: readonly number[]): void {
    const pushed = pages.slice(0, REPLAYED_PAGES_MAX).sort((a, b) => a - b);
    if (pushed.length > 0) this.#threads.replay(nodeid, pushed);
  }

  /** The snapshot goes: nothing of it stays open, and the kernel forgets its pages. */
  async #drop(id: string): Promise<void> {
    const dropped = this.#registry.dropped(id);
    const notifications = [encodeInvalidateEntry(ROOT_NODE, id)];
    if (dropped !== undefined) {
      const close = this.#registry.forget(id);
      for (const node of dropped.nodes) this.#server.objects.delete(node);
      this.#remote.abandon(dropped.nodes);
      await this.#deferred.drop(dropped.number);
      await this.#threads.dropObjects(dropped.nodes);
      for (const node of dropped.nodes) this.#remote.close(node);
      close();
      notifications.push(...dropped.nodes.map(encodeInvalidateInode));
    }
    await this.#threads.tellKernel(notifications);
  }

  #stats(): object {
    const objects = [...this.#server.objects.values()].map((object) => ({
      snapshot: object.shared.snapshot,
      object: object.shared.name,
      reads: object.total(Counter.reads),
      zeroPages: object.total(Counter.zeroPages),
      localPages: object.total(Counter.localPages),
      refusedReads: object.total(Counter.refusedReads),
      storedPages: object.total(Counter.storedPages),
      replayedPages: object.total(Counter.replayedPages),
      aheadPages: object.total(Counter.aheadPages),
      replicaPages: object.total(Counter.replicaPages),
      demandedPages: object.total(Counter.demandedPages),
      readers: Object.fromEntries(object.readers?.all() ?? []),
      firstTouches: object.touches?.size ?? 0,
      dependsOn: this.#remote.dependsOn(object.shared.nodeid),
    }));
    return {
      pid: process.pid,
      objects,
      received: this.#remote.stats(),
      replicas: { pages: this.#remote.replicas.pages, evicted: this.#remote.replicas.evicted },
      latencyUsBuckets: this.#threads.latencyUsBuckets(),
      droppedStores: this.#threads.droppedStores(),
      parkedReads: this.#deferred.parkedCount,
      refusedParkedReads: this.#deferred.refused,
    };
  }
}
