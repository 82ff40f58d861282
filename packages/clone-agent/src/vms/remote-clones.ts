// Clones on other hosts. At home, where the VM was frozen: has other hosts start the clones that are
// placed there, and settles their slots by what those say. There: takes the snapshot in, runs its part
// of the ticket, and tells home how each clone ended, until home has heard it. What another host still
// needs of a snapshot is kept for it. Either host may be killed at any time, and what they say to each
// other be lost or late: whoever comes back is asked. How clones are made is `families.ts`' affair.

import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError, type TicketInfo } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import type {
  CallPeer,
  CloneHandlers,
  CloneParams,
  StartedClone,
} from '../cluster/clone-methods.js';
import type { PageRuns } from '../freeze/process-memory.js';
import {
  describeSnapshot,
  type ServedLayers,
  type ServingHost,
  servedHere,
} from '../store/describe.js';
import { type Descriptor, unpackTouches } from '../store/descriptor.js';
import type { Standing } from '../store/journal.js';
import type { Snapshot, SnapshotStore } from '../store/snapshots.js';
import { NeighbourTrees } from './neighbour-trees.js';
import { Neighbours } from './neighbours.js';
import { KILLED_BY_TICKET, NEVER_STARTED, type Ticket, type Tickets } from './tickets.js';
import { TouchesHome } from './touches-home.js';
import type { Descent } from './vm.js';

/** How often more pages are asked for, when all are brought here. */
const BRING_LOOK_MS = 100;
/** Between two attempts to have a host hear something. */
const SAY_AGAIN_MS = [100, 300, 1000, 3000, 10_000] as const;
/** For so long in all: its agent may be away for a while. */
const SAY_MS = 3_600_000;
/** Tickets that were killed before their clones could be started here. */
const KILLED_EARLY_MAX = 1024;

/** A part of another host's ticket, to be run here. */
export interface TicketPart {
  readonly snapshot: Snapshot;
  readonly home: string;
  /** As the clones' programs see it. */
  readonly ticket: TicketInfo;
  readonly cloneIds: readonly number[];
  readonly descent: Descent;
  readonly standing: Standing;
}

/** The other hosts, and what this one has for them. */
export interface Peering {
  readonly call: CallPeer;
  /** This host as others reach its pages. @throws SnowforkError when it is in no cluster. */
  serving(): Promise<ServingHost>;
  serve(layers: ServedLayers): Promise<void>;
  /** Pages that clones of the snapshot waited for, in their order, and then what was pushed beside them. */
  faults(snapshot: string): Promise<readonly number[]>;
  /** Clones on another host have touched these, of what was pushed to them as well. */
  touched(snapshot: string, pages: readonly number[]): Promise<void>;
  /** More pages of the snapshot are asked for, to stay; returns how many are missing. */
  bringAll(snapshot: string): Promise<number>;
  drop(served: string): Promise<void>;
  pagesOf(host: string): ServingHost | undefined;
}

export interface RemoteClonesContext {
  readonly store: SnapshotStore;
  readonly tickets: Tickets;
  readonly log: Logger;
  readonly peering: Peering;
  readonly originTimeoutMs: number;
  startPart(part: TicketPart, signal: AbortSignal): Promise<StartedClone[]>;
  killTicket(ticket: Ticket): void;
  /** Pages that a clone of the snapshot has mapped which runs here; undefined when none does. */
  mappedOf(snapshot: Snapshot): PageRuns | undefined;
  /** What a VM of this host was cloned from. */
  baseOf(vm: string): Snapshot | undefined;
  settled(ticket: Ticket, cloneId: number, how: { value: Buffer } | { reason: string }): void;
}

export class RemoteClones {
  readonly #context: RemoteClonesContext;
  readonly handlers: CloneHandlers;
  readonly #touches: TouchesHome;
  readonly #neighbours: Neighbours;
  readonly #trees: NeighbourTrees;
  /** Snapshots of other hosts of which this one needs pages, as `host snapshot`. */
  #needed = new Set<string>();
  /** As `host ticket`: clones that the host is starting, of which its answer will say all. */
  readonly #starting = new Set<string>();
  /** Of other hosts, as `host ticket`; the oldest first. */
  readonly #killedEarly = new Set<string>();

  constructor(context: RemoteClonesContext) {
    this.#context = context;
    this.#touches = new TouchesHome(context);
    const { store, log, peering } = context;
    this.#neighbours = new Neighbours({
      ...{ store, log },
      serve: (layers) => peering.serve(layers),
      drop: (served) => peering.drop(served),
    });
    this.#trees = new NeighbourTrees((host) => peering.pagesOf(host));
    this.handlers = {
      startClones: (params, host, signal) => this.#startPart(params, host, signal),
      settle: async (params, host) => this.#settle(params, host),
      clonesOf: async ({ ticket: id }, host) => {
        const ticket = context.tickets.find(id);
        const slots = ticket?.home === host ? ticket.slots : [];
        return { cloneIds: slots.map(({ cloneId }) => cloneId) };
      },
      killTicket: async ({ ticket: id }, host) => {
        const ticket = context.tickets.find(id);
        if (ticket === undefined) this.#refuse(id, host);
        else if (ticket.home === host) context.killTicket(ticket);
        return null;
      },
      describe: async ({ snapshot }, host) => {
        const describe = await this.#describe(context.store.get(snapshot), [host]);
        return { descriptor: describe(host) };
      },
      needs: async (_, host) => {
        const needed = [...this.#neededOrigins()].map((need) => need.split(' '));
        return { snapshots: needed.flatMap(([of, id]) => (of === host ? [id!] : [])) };
      },
      hold: async ({ snapshot }, host) => {
        context.store.lend(context.store.get(snapshot), host);
        return null;
      },
      touched: async ({ snapshot, pages }, host) => {
        const lent = context.store.find(snapshot);
        const isLent = lent?.file.lentTo?.includes(host) ?? false;
        if (isLent) await context.peering.touched(snapshot, unpackTouches(pages));
        return null;
      },
      detachFrom: async ({ host }, _, signal) => await this.detachFrom(host, signal),
      letGo: async ({ snapshot }, host) => {
        const lent = context.store.find(snapshot);
        this.#trees.forget(host, snapshot);
        if (lent !== undefined) this.#takeBack(lent, host);
        return null;
      },
    };
  }

  /** Has the other hosts of a ticket start its clones. Never rejects: each clone settles. */
  async start(
    snapshot: Snapshot,
    ticket: Ticket,
    of: { descent: Descent; standing: Standing; signal: AbortSignal },
  ): Promise<StartedClone[]> {
    const described = this.#describe(snapshot, [...ticket.slotsElsewhere.keys()]);
    const parts = [...ticket.slotsElsewhere].map(async ([host, slots]) => {
      const cloneIds = slots.map(({ cloneId }) => cloneId);
      const starting = `${host} ${ticket.id}`;
      this.#starting.add(starting);
      try {
        const descriptor = (await described)(host);
        return await this.#startOn(host, descriptor, ticket, { ...of, cloneIds });
      } catch (cause) {
        // It may have begun, and nobody would hear of what comes up.
        void this.#killOn(host, ticket);
        void this.#settleLoans(host);
        const error = SnowforkError.from(cause, 'SF_CLONE_FAILED');
        return cloneIds.map((cloneId) => ({ status: 'rejected' as const, cloneId, error }));
      } finally {
        this.#starting.delete(starting);
      }
    });
    const clones = (await Promise.all(parts)).flat();
    for (const clone of clones) {
      if (clone.status === 'fulfilled') ticket.attach(clone.cloneId, clone.vm.id);
      else {
        const { message } = SnowforkError.from(clone.error);
        ticket.settle(clone.cloneId, { reason: `it did not come up: ${message}` });
      }
    }
    ticket.save();
    return clones;
  }

  async #startOn(
    host: string,
    descriptor: Descriptor,
    ticket: Ticket,
    of: { descent: Descent; standing: Standing; cloneIds: number[]; signal: AbortSignal },
  ): Promise<StartedClone[]> {
    const { image, parent, family, launched } = of.descent;
    const { clones } = await this.#context.peering.call(
      host,
      'startClones',
      {
        descriptor,
        ticket: ticket.info(),
        cloneIds: of.cloneIds,
        descent: {
          image,
          ...(parent === undefined ? {} : { parent }),
          ...(family === undefined ? {} : { family }),
          ...(launched === undefined ? {} : { launched }),
        },
        standing: of.standing,
      },
      of.signal,
    );
    return clones.map((clone) =>
      clone.status === 'fulfilled'
        ? clone
        : { ...clone, error: SnowforkError.fromJSON(clone.error) },
    );
  }

  /** Ends a ticket's clones on other hosts, as soon as these can be reached. */
  kill(ticket: Ticket): void {
    for (const host of ticket.slotsElsewhere.keys()) void this.#killOn(host, ticket);
  }

  /** Also clones that are still to be started there. Never rejects. */
  async #killOn(host: string, { id }: Ticket): Promise<void> {
    const kill = () => this.#context.peering.call(host, 'killTicket', { ticket: id });
    await this.#untilHeard(kill, isThere).catch((error: unknown) => {
      this.#context.log.warn(
        { host, ticket: id, err: error },
        'its clones there end with the host',
      );
    });
  }

  /** Home has given up a ticket whose clones were not started yet: they are not to be. */
  #refuse(ticket: string, home: string): void {
    const [oldest] = this.#killedEarly;
    if (this.#killedEarly.size >= KILLED_EARLY_MAX) this.#killedEarly.delete(oldest!);
    this.#killedEarly.add(`${home} ${ticket}`);
  }

  /** Says something again and again, for an hour, until it is answered or an error is not endured. */
  async #untilHeard<T>(
    say: () => Promise<T>,
    isEndured: (error: SnowforkError) => boolean,
  ): Promise<T> {
    const until = performance.now() + SAY_MS;
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await say();
      } catch (cause) {
        const error = SnowforkError.from(cause);
        if (!isEndured(error) || performance.now() > until) throw error;
        const pauseMs = SAY_AGAIN_MS[Math.min(attempt, SAY_AGAIN_MS.length - 1)];
        await delay(pauseMs, undefined, { ref: false });
      }
    }
  }

  /** A snapshot of another host, to be cloned here. @throws SnowforkError */
  async fetch(host: string, snapshot: string): Promise<Snapshot> {
    const { descriptor } = await this.#context.peering.call(host, 'describe', { snapshot });
    const { snapshot: taken, held } = await this.#takeIn(descriptor, host);
    await held;
    this.#touches.began(snapshot, { snapshot: taken, origins: descriptor.origins, home: host });
    return taken;
  }

  /** A host is gone: what it was to run is lost, what was kept for it may go. */
  hostLost(host: string, reason: string): void {
    const { tickets, store } = this.#context;
    for (const ticket of tickets.all()) {
      for (const slot of ticket.slotsElsewhere.get(host) ?? []) {
        ticket.settle(slot.cloneId, { reason: `host ${host} is lost: ${reason}` });
      }
    }
    this.#trees.forget(host);
    store.hostLost(host);
    for (const snapshot of [...store.all()]) this.#takeBack(snapshot, host);
  }

  /**
   * An agent there has started, which knows nothing of what the one before it had when that one's pager
   * died as well: this host's clones there are asked for, and what of its snapshots is needed.
   */
  hostStarted(host: string): void {
    for (const ticket of this.#context.tickets.all()) {
      const isStarting = this.#starting.has(`${host} ${ticket.id}`);
      if (ticket.home !== undefined || !ticket.used || isStarting) continue;
      const slots = ticket.slotsElsewhere.get(host) ?? [];
      if (slots.some(({ status }) => status === 'running')) void this.#askFor(ticket, host);
    }
    void this.#settleLoans(host);
  }

  /**
   * After the death of an agent. Its clones elsewhere are asked for: those that were on their way then
   * did not come up. What clones of others touched first here is still to be told.
   */
  reconcile(): void {
    const hosts = new Set([...this.#context.store.all()].flatMap(({ file }) => file.lentTo ?? []));
    for (const ticket of this.#context.tickets.all()) {
      if (ticket.home !== undefined) this.#tellTouchesOf(ticket, ticket.home);
      else for (const host of ticket.slotsElsewhere.keys()) hosts.add(host);
    }
    for (const host of hosts) this.hostStarted(host);
  }

  #tellTouchesOf(ticket: Ticket, home: string): void {
    const running = ticket.slots.find(({ status, vm }) => status === 'running' && vm !== undefined);
    const snapshot = running && this.#context.baseOf(running.vm!);
    if (snapshot === undefined) return;
    const { origins = [] } = snapshot.file;
    this.#touches.began(ticket.id, { snapshot, origins, home });
  }

  /** A VM here is about to end. */
  ending({ base }: { readonly base: Snapshot }): void {
    this.#touches.ending(base);
  }

  async #askFor(ticket: Ticket, host: string): Promise<void> {
    const ask = () => this.#context.peering.call(host, 'clonesOf', { ticket: ticket.id });
    try {
      const { cloneIds } = await this.#untilHeard(ask, (error) => !ticket.done && isThere(error));
      for (const { cloneId } of ticket.slotsElsewhere.get(host) ?? []) {
        if (!cloneIds.includes(cloneId)) ticket.settle(cloneId, { reason: NEVER_STARTED });
      }
    } catch (error) {
      const isGone = !ticket.done && !isThere(SnowforkError.from(error));
      if (isGone) this.hostLost(host, 'the cluster has no such host');
    }
  }

  /**
   * Takes back what was lent to a host that does not need it: it never came, or went unsaid. What is just
   * on its way is lent again when it has come (`hold`), and kept for its ticket until then.
   */
  async #settleLoans(host: string): Promise<void> {
    const lent = [...this.#context.store.all()].filter(({ file }) => file.lentTo?.includes(host));
    if (lent.length === 0) return;
    const ask = () => this.#context.peering.call(host, 'needs', {});
    const answer = await this.#untilHeard(ask, isThere).catch(() => undefined);
    for (const snapshot of lent) {
      if (answer?.snapshots.includes(snapshot.file.id) === false) this.#takeBack(snapshot, host);
    }
  }

  #takeBack(snapshot: Snapshot, host: string): void {
    try {
      this.#context.store.takeBack(snapshot, host);
    } catch (error) {
      const { id } = snapshot.file;
      this.#context.log.error({ snapshot: id, err: error }, 'the next agent will take it for lent');
    }
  }

  /** What an agent before this one has lent is served on. */
  async serveAgain(): Promise<void> {
    const { store, log } = this.#context;
    for (const snapshot of store.all()) {
      if ((snapshot.file.lentTo ?? []).length === 0) continue;
      const serving = await this.#context.peering.serving();
      const served = servedHere(store, snapshot, serving);
      await this.#context.peering.serve(served).catch((error: unknown) => {
        log.error({ snapshot: snapshot.file.id, err: error }, 'it is not served on');
      });
    }
    this.#needed = this.#neededOrigins();
    await this.#neighbours.update();
  }

  /**
   * Brings all pages of snapshots here that other hosts still have to give, so that those may go.
   * @throws SnowforkError SF_HOST_UNREACHABLE when nothing came for as long as a page may take.
   */
  async detach(snapshots: Iterable<Snapshot>, signal: AbortSignal): Promise<{ pages: number }> {
    let pages = 0;
    for (const snapshot of [...snapshots]) {
      if ((snapshot.file.origins ?? []).length > 0) pages += await this.#bring(snapshot, signal);
    }
    this.release();
    return { pages };
  }

  /** Detaches whatever needs pages of that host. */
  async detachFrom(host: string, signal: AbortSignal): Promise<{ pages: number }> {
    const needs = ({ file }: Snapshot) => (file.origins ?? []).some((of) => of.host === host);
    return await this.detach([...this.#context.store.all()].filter(needs), signal);
  }

  async #bring(snapshot: Snapshot, signal: AbortSignal): Promise<number> {
    const { store, originTimeoutMs } = this.#context;
    const { id, origins = [] } = snapshot.file;
    const holder = `detaching ${id}`;
    snapshot.holders.add(holder);
    try {
      const first = await this.#context.peering.bringAll(id);
      let cameAt = performance.now();
      for (let missing = first; missing > 0; ) {
        await delay(BRING_LOOK_MS, undefined, { signal });
        const left = await this.#context.peering.bringAll(id);
        if (left < missing) cameAt = performance.now();
        missing = left;
        if (performance.now() - cameAt <= originTimeoutMs) continue;
        const hosts = [...new Set(origins.map(({ host }) => host))].join(', ');
        const message = `${missing} pages of ${id} did not come from ${hosts}`;
        throw new SnowforkError('SF_HOST_UNREACHABLE', message);
      }
      store.detached(snapshot);
      return first;
    } finally {
      snapshot.holders.delete(holder);
      store.collect(snapshot);
    }
  }

  /** After a snapshot of this host has gone: other hosts need not keep what only it needed. */
  release(): void {
    const needed = this.#neededOrigins();
    for (const need of this.#needed) {
      if (needed.has(need)) continue;
      const [host, snapshot] = need.split(' ') as [string, string];
      this.#context.peering.call(host, 'letGo', { snapshot }).catch((error: unknown) => {
        this.#context.log.warn({ host, snapshot, err: error }, 'it may be kept there for nothing');
      });
    }
    this.#needed = needed;
    this.#trees.keepOnly((id) => this.#context.store.find(id) !== undefined);
    void this.#neighbours.update();
  }

  #neededOrigins(): Set<string> {
    const needed = new Set<string>();
    for (const { file } of this.#context.store.all()) {
      for (const { host, snapshot } of file.origins ?? []) needed.add(`${host} ${snapshot}`);
    }
    return needed;
  }

  /** From now on the snapshot is served, and kept for the hosts; resolves to what each is told of it. */
  async #describe(
    snapshot: Snapshot,
    hosts: readonly string[],
  ): Promise<(host: string) => Descriptor> {
    const { store } = this.#context;
    for (const owner of store.ownersOf(snapshot)) {
      for (const host of hosts) store.lend(owner, host);
    }
    const [serving, faults] = await Promise.all([
      this.#context.peering.serving(),
      this.#context.peering.faults(snapshot.file.id),
    ]);
    const description = describeSnapshot(store, snapshot, { serving, faults });
    for (const layers of description.served) await this.#context.peering.serve(layers);
    return (host) => description.for((id) => this.#trees.parentOf(id, host));
  }

  /** `held`: home has heard that it is needed here. */
  async #takeIn(
    descriptor: Descriptor,
    home: string,
  ): Promise<{ snapshot: Snapshot; held: Promise<unknown> }> {
    const snapshot = await this.#context.store.takeIn(descriptor);
    this.#needed = this.#neededOrigins();
    void this.#neighbours.update();
    const owners = this.#context.store.ownersOf(snapshot);
    const held: Promise<unknown>[] = [];
    for (const { host, snapshot: id } of owners.flatMap(({ file }) => file.origins ?? [])) {
      const holding = this.#context.peering.call(host, 'hold', { snapshot: id });
      const heard = holding.catch((error: unknown) => {
        this.#context.log.warn({ host, snapshot: id, err: error }, 'its pages may be let go');
      });
      // It has lent it just now, but what this host let go before may have come after that.
      if (host === home) held.push(heard);
    }
    return { snapshot, held: Promise.all(held) };
  }

  async #startPart(
    params: CloneParams<'startClones'>,
    home: string,
    signal: AbortSignal,
  ): Promise<{ clones: StartedClone[] }> {
    const { descriptor, ticket, cloneIds, descent, standing } = params;
    const { snapshot, held } = await this.#takeIn(descriptor, home);
    let clones: StartedClone[];
    try {
      if (this.#killedEarly.delete(`${home} ${ticket.id}`)) {
        throw new SnowforkError('SF_CLONE_FAILED', KILLED_BY_TICKET.reason);
      }
      const part = { snapshot, home, ticket, cloneIds, descent, standing };
      this.#touches.began(ticket.id, { snapshot, origins: descriptor.origins, home });
      clones = await this.#context.startPart(part, signal);
    } catch (error) {
      this.#context.store.collect(snapshot);
      throw error;
    }
    await held;
    return {
      clones: clones.map((clone) =>
        clone.status === 'fulfilled'
          ? clone
          : { ...clone, error: SnowforkError.from(clone.error).toJSON() },
      ),
    };
  }

  #settle({ ticket: id, cloneId, how }: CloneParams<'settle'>, host: string): null {
    const ticket = this.#context.tickets.find(id);
    if (ticket === undefined || ticket.slot(cloneId)?.host !== host) return null;
    this.#context.settled(
      ticket,
      cloneId,
      'value' in how ? { value: Buffer.from(how.value) } : how,
    );
    return null;
  }

  /** Tells home how a clone of a part ended, until home has heard it. Never rejects. */
  async tellHome(ticket: Ticket, cloneId: number): Promise<void> {
    const { home } = ticket;
    const slot = ticket.slot(cloneId);
    if (home === undefined || slot === undefined || slot.status === 'running') return;
    if (ticket.slots.every(({ status }) => status !== 'running'))
      void this.#touches.tell(ticket.id);
    const how =
      slot.status === 'exited' ? { value: slot.value! } : { reason: slot.reason ?? 'it is lost' };
    const tell = () =>
      this.#context.peering.call(home, 'settle', { ticket: ticket.id, cloneId, how });
    await this.#untilHeard(tell, () => true).catch((error: unknown) => {
      this.#context.log.warn({ home, ticket: ticket.id, err: error }, 'home was not told');
    });
    slot.isTold = true;
    ticket.save();
    if (ticket.slots.every(({ isTold }) => isTold === true)) this.#context.tickets.forget(ticket);
  }
}

/** A host that does not answer may do so later, unless the cluster has none of that name. */
function isThere({ code }: SnowforkError): boolean {
  return code !== 'SF_HOST_NOT_FOUND';
}
