// Two hosts as far as clones elsewhere need them: each with its store, tickets and `RemoteClones`, in this
// process. What they say to each other the test may lose, or hold back. Used by tests of `remote-clones`.

import fs from 'node:fs';
import path from 'node:path';
import { SnowforkError } from '@snowfork/sdk/api';
import { pino } from 'pino';
import type {
  CloneHandlers,
  CloneMethod,
  CloneParams,
  CloneResult,
  StartedClone,
} from '../../packages/clone-agent/src/cluster/clone-methods.js';
import { Journal } from '../../packages/clone-agent/src/store/journal.js';
import { type Snapshot, SnapshotStore } from '../../packages/clone-agent/src/store/snapshots.js';
import { stateFolder } from '../../packages/clone-agent/src/store/state-folder.js';
import { RemoteClones, type TicketPart } from '../../packages/clone-agent/src/vms/remote-clones.js';
import { type Ticket, Tickets } from '../../packages/clone-agent/src/vms/tickets.js';

export const PAGES = 16;
const PAGE_BYTES = 4096;
const machine = {
  ...{ qemuVersion: '7.2.0', machineType: 'pc-q35-7.2', accelerator: 'tcg' as const },
  ...{ cpuModel: 'qemu64', memoryBytes: PAGES * PAGE_BYTES, vcpus: 1 },
};

/** What becomes of a call, on its way there or back. */
export interface Wire {
  /** Before the other host hears it. @throws what the caller gets instead */
  there(method: CloneMethod): Promise<void>;
  /** After it has answered. */
  back(method: CloneMethod): Promise<void>;
}

export class AgentHalf {
  readonly name: string;
  readonly store: SnapshotStore;
  readonly tickets: Tickets;
  readonly remote: RemoteClones;
  /** Tickets of which the clones here were ended. */
  readonly killed: string[] = [];
  /** Starts a part's clones; here they are only told of. */
  startPart: (part: TicketPart) => Promise<StartedClone[]>;
  other: AgentHalf | undefined;
  wire: Wire = { there: async () => {}, back: async () => {} };

  constructor(root: string, name: string) {
    this.name = name;
    const state = stateFolder(path.join(root, name));
    const { runSnapshots, runLayers, imageSnapshots, imageLayers } = state;
    for (const folder of [runSnapshots, runLayers, imageSnapshots, imageLayers]) {
      fs.mkdirSync(folder, { recursive: true });
    }
    const journal = new Journal(state.journal, (error) => {
      throw error;
    });
    journal.hostName = () => name;
    this.tickets = new Tickets(journal);
    const events = {
      ready: async () => {},
      bring: async () => {},
      dropped: () => this.remote.release(),
      changed: () => {},
    };
    this.store = new SnapshotStore(state, events, journal);
    this.remote = new RemoteClones({
      store: this.store,
      tickets: this.tickets,
      log: pino({ level: 'silent' }),
      originTimeoutMs: 1000,
      peering: {
        call: (host, method, params, signal) => this.#call(host, method, params, signal),
        serving: async () => ({ host: name, address: '127.0.0.1', port: 1 }),
        serve: async () => {},
        faults: async () => [],
        touched: async () => {},
        bringAll: async () => 0,
        drop: async () => {},
        pagesOf: () => undefined,
      },
      startPart: (part) => this.startPart(part),
      killTicket: (ticket) => {
        this.killed.push(ticket.id);
        for (const { cloneId } of ticket.slots) ticket.settle(cloneId, { reason: 'killed' });
      },
      mappedOf: () => undefined,
      baseOf: () => undefined,
      settled: (ticket, cloneId, how) => ticket.settle(cloneId, how),
    });
    this.startPart = async (part) => this.run(part);
  }

  /** A snapshot as a freeze leaves it. */
  async freeze(): Promise<Snapshot> {
    const objects = [{ name: 'ram', sizeBytes: machine.memoryBytes, map: 'ram.map', layers: [] }];
    const begun = { machine, vm: `vm1-${this.name}`, kept: false, persistent: false, objects };
    const snapshot = this.store.begin(begun);
    const layer = this.store.newLayer(false);
    fs.writeFileSync(layer.path, Buffer.alloc(machine.memoryBytes));
    fs.writeFileSync(this.store.deviceState(snapshot), '');
    await this.store.complete(snapshot, {
      map: { entries: new Uint16Array(PAGES).fill(1), layerCount: 1 },
      layers: [layer.id],
      ...{ pages: { ...snapshot.file.pages, totalPages: PAGES }, layerBytes: 0 },
      ...{ deviceStateBytes: 0, guest: { pending: [] }, like: [] },
    });
    return snapshot;
  }

  /** A used ticket with so many slots on the other host. */
  ticket(slots: number): Ticket {
    const elsewhere = [{ host: this.other!.name, slots }];
    const placed = { granted: 0, release: () => {}, elsewhere, bytesEach: 1 };
    const ticket = this.tickets.create(`t1-${this.name}`, { vm: 'vm1', asked: slots }, placed);
    ticket.use();
    return ticket;
  }

  /** Forks onto the other host, holding the snapshot as long as that takes. */
  async fork(snapshot: Snapshot, ticket: Ticket): Promise<StartedClone[]> {
    snapshot.holders.add(ticket.id);
    const descent = { image: 'minimal' };
    const standing = { generation: 1, ordinal: 0, since: 0 };
    const signal = new AbortController().signal;
    const clones = await this.remote.start(snapshot, ticket, { descent, standing, signal });
    snapshot.holders.delete(ticket.id);
    this.store.collect(snapshot);
    return clones;
  }

  /** The part's clones run from now on, until each is settled with `end`. */
  run({ snapshot, home, ticket: { id }, cloneIds }: TicketPart): StartedClone[] {
    const room = { granted: cloneIds.length, release: () => {} };
    const ticket = this.tickets.takePart({ id, home }, cloneIds, room);
    ticket.onSettled = (cloneId) => void this.remote.tellHome(ticket, cloneId);
    snapshot.users.add(id);
    return cloneIds.map((cloneId) => {
      const vm = `vm${cloneId}-${this.name}`;
      ticket.attach(cloneId, vm);
      const info = { id: vm, image: 'minimal', machine, snapshot: snapshot.file.id };
      const more = { state: 'running' as const, startedAt: 0, cloneId, ticket: id, family: 'vm1' };
      return { status: 'fulfilled', cloneId, vm: { ...info, ...more } } as StartedClone;
    });
  }

  /** All clones of a part have ended, and nothing here needs their snapshot. */
  end(ticket: string, snapshot: string, value: Buffer): void {
    const part = this.tickets.get(ticket);
    for (const { cloneId } of part.slots) part.settle(cloneId, { value });
    const taken = this.store.get(snapshot);
    taken.users.delete(ticket);
    this.store.collect(taken);
  }

  get snapshots(): string[] {
    return [...this.store.all()].map(({ file }) => file.id);
  }

  async #call<M extends CloneMethod>(
    host: string,
    method: M,
    params: CloneParams<M>,
    signal = new AbortController().signal,
  ): Promise<CloneResult<M>> {
    const { other } = this;
    if (other?.name !== host) throw new SnowforkError('SF_HOST_NOT_FOUND', `there is no ${host}`);
    await this.wire.there(method);
    const handler = other.remote.handlers[method] as CloneHandlers[M];
    const result = await handler(structuredClone(params), this.name, signal);
    await this.wire.back(method);
    return result;
  }
}

export function unreachable(): SnowforkError {
  return new SnowforkError('SF_HOST_UNREACHABLE', 'the connection was lost');
}
