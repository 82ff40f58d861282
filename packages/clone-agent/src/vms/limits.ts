// What the guests of one family may take: how many VMs and clones, how deep, how often, how much
// memory, for how long. A guest only asks. Here it is counted what this host has of each family, from
// the VMs, tickets and snapshots that there are, so that it outlives the agent; what a family may have
// more on all hosts together the store decides by that (`cluster/family-record.ts`). What hangs on one
// VM alone (generations, lifetimes) is refused here. What the host's owner asks for through the API is
// not limited, but counts; the lifetimes hold for every VM. Called by `families.ts`.

import fs from 'node:fs';
import { type GuestMethod, SnowforkError } from '@snowfork/sdk/api';
import { type FamilyCounts, type FamilyRequest, NOTHING, sumOf } from '../cluster/family-record.js';
import type { Settings } from '../settings.js';
import { hostOf, type Standing } from '../store/journal.js';
import type { Snapshot } from '../store/snapshots.js';
import { anonymousBytes } from './room.js';
import type { Ticket } from './tickets.js';
import type { RawEnd } from './vm.js';

/** Finished tickets of one family that are remembered: it must not crowd out those of others. */
export const TICKETS_OF_FAMILY_MAX = 512;
/** How late the end of a lifetime may be noticed. */
export const LIFETIME_LOOK_MS = 500;

/** What is looked at of a VM. */
export interface Member {
  readonly id: string;
  readonly family: string;
  readonly pid: number | undefined;
  readonly cloneId: number;
  readonly descent: { readonly standing?: Standing; readonly ticket?: string };
  readonly startedAt: number;
  readonly end: RawEnd | undefined;
  finish(end: RawEnd): void;
}

export interface LimitsContext {
  readonly settings: Settings;
  /** All VMs that are known, also those that have ended. */
  vms(): Iterable<Member>;
  tickets(): Iterable<Ticket>;
  forgetTicket(ticket: Ticket): void;
  snapshots(): Iterable<Snapshot>;
  layerPath(layer: string): string;
  /** This host's name in its cluster. */
  hostName(): string | undefined;
  isMember(host: string): boolean;
  /** What the store has of a family, as last heard. */
  heardOf(family: string): { readonly here: FamilyCounts; readonly elsewhere: FamilyCounts };
  /** Milliseconds since the epoch. */
  now(): number;
}

/** Requests that freeze the VM, start clones or keep room for them; all others cost nothing. */
const FORKING: ReadonlySet<GuestMethod> = new Set<GuestMethod>([
  'requestTicket',
  'clone',
  'fork',
  'checkpoint',
  'createClones',
]);
const FREEZING: ReadonlySet<GuestMethod> = new Set<GuestMethod>(['clone', 'fork', 'checkpoint']);

export class Limits {
  readonly #context: LimitsContext;
  readonly #settings: Settings;

  constructor(context: LimitsContext) {
    this.#context = context;
    this.#settings = context.settings;
  }

  /** Ends what has outlived its time, from now on. */
  watch(): void {
    const { familyLifetimeMs, vmLifetimeMs } = this.#settings;
    if (familyLifetimeMs === 0 && vmLifetimeMs === 0) return;
    setInterval(() => this.endOutlived(), LIFETIME_LOOK_MS).unref();
  }

  endOutlived(): void {
    for (const vm of [...this.#context.vms()]) {
      if (vm.end !== undefined) continue;
      const reason = this.#outlived(vm);
      if (reason !== undefined) vm.finish({ how: 'killed', reason });
    }
  }

  /** A guest's request, before anything is done for it. @throws SnowforkError SF_LIMIT. */
  admit(vm: Member, method: GuestMethod): void {
    if (!FORKING.has(method)) return;
    const outlived = this.#outlived(vm);
    if (outlived !== undefined) throw new SnowforkError('SF_LIMIT', outlived);
    if (method !== 'checkpoint') this.assertDepth(vm.descent.standing);
  }

  /** What the store is asked for it: each of the requests that fork asks once. */
  request({ family }: Pick<Member, 'family'>, method: GuestMethod, clones = 0): FamilyRequest {
    return {
      ...{ family, clones, limits: this.#settings, askedAt: this.#context.now() },
      checkpoints: method === 'checkpoint' ? 1 : 0,
      freezes: FREEZING.has(method),
      counted: () => this.counted(family),
    };
  }

  /** What this host has of a family. */
  counted(family: string): FamilyCounts {
    return this.#count(family).get(family) ?? NOTHING;
  }

  /** What it has of each. */
  countedByFamily(): ReadonlyMap<string, FamilyCounts> {
    return this.#count();
  }

  /** For the clones of a ticket, by their id; `origin` is what they are cloned from. */
  standings(origin: Standing | undefined, ticket: Ticket): (cloneId: number) => Standing {
    const { family, home, slots } = ticket;
    if (home !== undefined && origin !== undefined) {
      // Home has counted.
      return (cloneId) => ({ ...origin, ordinal: origin.ordinal + cloneId });
    }
    if (origin === undefined || family === undefined) {
      const first = { generation: 0, ordinal: 0, since: this.#context.now() };
      return () => first;
    }
    const { clones } = this.#countVms(family).get(family) ?? NOTHING;
    ticket.ordinal = clones + slots.length;
    const { since } = origin;
    const generation = origin.generation + 1;
    return (cloneId) => ({ generation, ordinal: clones + cloneId, since });
  }

  /** What becomes of the value that a clone hands over. */
  result(
    vm: Pick<Member, 'family'>,
    ticket: Ticket,
    value: Buffer,
  ): { value: Buffer } | { reason: string } {
    const { familyResultsBytesMax } = this.#settings;
    const tickets = this.#ticketsOf(vm.family);
    const elsewhere = this.#context.heardOf(vm.family).elsewhere.resultsBytes;
    let heldBytes = tickets.reduce((sum, { valueBytes }) => sum + valueBytes, elsewhere);
    for (const old of tickets) {
      if (heldBytes + value.length <= familyResultsBytesMax) break;
      if (old === ticket || !old.isOver || !old.isJoined) continue;
      heldBytes -= old.valueBytes;
      this.#context.forgetTicket(old);
    }
    if (heldBytes + value.length <= familyResultsBytesMax) return { value };
    const most = `${familyResultsBytesMax} bytes (setting familyResultsBytesMax)`;
    return { reason: `the results of its family that nobody joined are over ${most}` };
  }

  /** Called when a family has a ticket more: the oldest finished ones go, those joined first. */
  forgetTickets(family: string): void {
    const finished = this.#ticketsOf(family).filter(({ isOver }) => isOver);
    let excess = finished.length - TICKETS_OF_FAMILY_MAX;
    for (const isJoined of [true, false]) {
      for (const ticket of finished) {
        if (excess <= 0) return;
        if (ticket.isJoined !== isJoined) continue;
        this.#context.forgetTicket(ticket);
        excess--;
      }
    }
  }

  /** Whether there may be clones of that. @throws SnowforkError SF_LIMIT. */
  assertDepth(origin: Standing | undefined): void {
    const { familyGenerationsMax } = this.#settings;
    if ((origin?.generation ?? 0) < familyGenerationsMax) return;
    const most = `${familyGenerationsMax} generations (setting familyGenerationsMax)`;
    throw new SnowforkError('SF_LIMIT', `a family may have ${most} after its first VM`);
  }

  #outlived({ id, startedAt, descent, family }: Member): string | undefined {
    const { familyLifetimeMs, vmLifetimeMs } = this.#settings;
    const now = this.#context.now();
    const since = descent.standing?.since ?? startedAt;
    if (familyLifetimeMs > 0 && now - since >= familyLifetimeMs) {
      return `the family ${family} may live for ${familyLifetimeMs} ms (setting familyLifetimeMs)`;
    }
    if (vmLifetimeMs > 0 && now - startedAt >= vmLifetimeMs) {
      return `${id} may live for ${vmLifetimeMs} ms (setting vmLifetimeMs)`;
    }
    return undefined;
  }

  /** Of all families, or of one. */
  #count(only?: string): Map<string, FamilyCounts> {
    const families = this.#countVms(only);
    const snapshots = new Map<string, Snapshot[]>();
    for (const snapshot of this.#context.snapshots()) {
      const family = snapshot.file.family?.id;
      if (family === undefined || family !== (only ?? family)) continue;
      const others = snapshots.get(family);
      if (others === undefined) snapshots.set(family, [snapshot]);
      else others.push(snapshot);
    }
    for (const [family, of] of snapshots) this.#add(families, family, this.#ofSnapshots(of));
    return families;
  }

  /** The same without what lies in snapshots, for which files are looked at. */
  #countVms(only?: string): Map<string, FamilyCounts> {
    const families = new Map<string, FamilyCounts>();
    for (const vm of this.#context.vms()) {
      if (vm.family === (only ?? vm.family)) this.#add(families, vm.family, this.#ofVm(vm));
    }
    for (const ticket of this.#context.tickets()) {
      const { family } = ticket;
      if (family === undefined || family !== (only ?? family)) continue;
      this.#add(families, family, this.#ofTicket(ticket));
    }
    return families;
  }

  #add(families: Map<string, FamilyCounts>, family: string, of: Partial<FamilyCounts>): void {
    // What nobody here remembers of its past, the store does.
    const past = () => ({ ...NOTHING, clones: this.#context.heardOf(family).here.clones });
    const before = families.get(family) ?? past();
    const clones = Math.max(before.clones, of.clones ?? 0);
    families.set(family, { ...sumOf([before, { ...NOTHING, ...of }]), clones });
  }

  #ofVm({ cloneId, descent, end }: Member): Partial<FamilyCounts> {
    // One that was launched is no clone, and its ticket no family's.
    if (cloneId === 0) return { vms: end === undefined ? 1 : 0 };
    const { standing, ticket = '' } = descent;
    const isOwn = [undefined, this.#context.hostName()].includes(hostOf(ticket));
    return isOwn ? { clones: standing?.ordinal ?? 0 } : {};
  }

  #ofTicket(ticket: Ticket): Partial<FamilyCounts> {
    const { home, used, runningSlots, ordinal = 0, valueBytes } = ticket;
    // Of a ticket of another host, that one counts, as long as it is there.
    if (home !== undefined && this.#context.isMember(home)) return {};
    const clones = home === undefined ? ordinal : 0;
    const slots = used ? { vms: runningSlots } : { promised: runningSlots };
    return { ...slots, clones, resultsBytes: valueBytes };
  }

  /** A layer counts where it lies, and once; freezes under way with all that they may come to. */
  #ofSnapshots(snapshots: readonly Snapshot[]): Partial<FamilyCounts> {
    const layers = new Set<string>();
    let layersBytes = 0;
    for (const { file } of snapshots) {
      const frozen = file.pending === undefined ? undefined : this.#pidOf(file.vm);
      if (frozen !== undefined) layersBytes += anonymousBytes(frozen);
      for (const object of file.objects) {
        if ('layers' in object) for (const layer of object.layers) layers.add(layer);
      }
      layersBytes += file.deviceStateBytes + file.pages.totalPages * MAP_ENTRY_BYTES;
    }
    for (const { file } of snapshots) {
      for (const origin of file.origins ?? []) for (const id of origin.layers) layers.delete(id);
    }
    for (const layer of layers) layersBytes += storedBytes(this.#context.layerPath(layer));
    return { layersBytes, checkpoints: snapshots.filter(({ file }) => file.kept).length };
  }

  #pidOf(id: string | undefined): number | undefined {
    for (const vm of this.#context.vms()) if (vm.id === id) return vm.pid;
    return undefined;
  }

  #ticketsOf(family: string): Ticket[] {
    return [...this.#context.tickets()].filter((ticket) => ticket.family === family);
  }
}

/**
 * Which of them to forget so that `max` are left, the oldest being first: those of the family that has
 * the most, so that it does not crowd out others.
 */
export function inExcess<T extends { readonly family: string }>(
  of: readonly T[],
  max: number,
): T[] {
  if (of.length <= max) return [];
  const families = new Map<string, T[]>();
  for (const one of of) {
    const others = families.get(one.family);
    if (others === undefined) families.set(one.family, [one]);
    else others.push(one);
  }
  const excess: T[] = [];
  while (of.length - excess.length > max) {
    const largest = [...families.values()].reduce((a, b) => (b.length > a.length ? b : a));
    excess.push(largest.shift()!);
  }
  return excess;
}

/** Of a snapshot's page map. */
const MAP_ENTRY_BYTES = 2;

/** On the tmpfs; a layer of an image is a link to the disk. */
function storedBytes(layerPath: string): number {
  const stat = fs.lstatSync(layerPath, { throwIfNoEntry: false });
  return stat === undefined || stat.isSymbolicLink() ? 0 : stat.blocks * BLOCK_BYTES;
}

const BLOCK_BYTES = 512;
