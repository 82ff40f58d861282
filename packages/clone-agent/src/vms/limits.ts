// What the guests of one family may take of the host: how many VMs and clones, how deep, how often,
// how much of its memory, for how long. A guest only asks; here it is refused. What the host's owner
// asks for through the API is not limited by this, but counts; the lifetimes hold for every VM. All
// is counted from the VMs, tickets and snapshots that there are, so that it outlives the agent; only
// the rate of forks is forgotten with it. Called by `families.ts`.

import fs from 'node:fs';
import { type GuestMethod, SnowforkError } from '@snowfork/sdk/api';
import type { Settings } from '../settings.js';
import type { Standing } from '../store/journal.js';
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
  readonly descent: { readonly standing?: Standing };
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

interface Bucket {
  forks: number;
  filledAt: number;
}

export class Limits {
  readonly #context: LimitsContext;
  readonly #settings: Settings;
  readonly #buckets = new Map<string, Bucket>();

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
    this.#takeFork(vm.family);
    if (method !== 'checkpoint') this.assertDepth(vm.descent.standing);
    if (FREEZING.has(method)) this.#assertLayers(vm.family);
    if (method === 'checkpoint') this.#assertCheckpoints(vm.family);
  }

  /** How many of the clones that a guest asks for its family may have. @throws SnowforkError SF_LIMIT. */
  grant(vm: Member, asked: number): { clones: number; reason?: string } {
    const { familyVmsMax, familyClonesMax } = this.#settings;
    const { running, promised, clonesEver } = this.#count(vm.family);
    const byRunning = familyVmsMax - running - promised;
    const byTotal = familyClonesMax - clonesEver - promised;
    const clones = Math.min(asked, Math.max(0, Math.min(byRunning, byTotal)));
    if (clones === asked) return { clones };
    if (byRunning <= byTotal) return this.granted(vm, { asked, clones });
    const reason = `the family of ${vm.id} may make ${familyClonesMax} clones (setting familyClonesMax)`;
    if (clones > 0) return { clones, reason };
    throw new SnowforkError('SF_LIMIT', reason, { details: { asked } });
  }

  /** Fewer than were asked for, as the family has too many VMs. @throws SnowforkError SF_LIMIT. */
  granted(
    vm: Pick<Member, 'id'>,
    { asked, clones }: { asked: number; clones: number },
  ): { clones: number; reason: string } {
    const most = `${this.#settings.familyVmsMax} VMs at a time (setting familyVmsMax)`;
    const reason = `the family of ${vm.id} may have ${most}`;
    if (clones > 0) return { clones, reason };
    throw new SnowforkError('SF_LIMIT', reason, { details: { asked } });
  }

  /** For the clones of a ticket, by their id; `origin` is what they are cloned from. */
  standings(origin: Standing | undefined, ticket: Ticket): (cloneId: number) => Standing {
    const { family } = ticket;
    if (origin === undefined || family === undefined) {
      const first = { generation: 0, ordinal: 0, since: this.#context.now() };
      return () => first;
    }
    const { clonesEver } = this.#count(family);
    const onTheirWay = this.#ticketsOf(family)
      .filter((other) => other.used && other !== ticket)
      .reduce((sum, { openSlots }) => sum + openSlots, 0);
    const generation = origin.generation + 1;
    const { since } = origin;
    return (cloneId) => ({ generation, ordinal: clonesEver + onTheirWay + cloneId, since });
  }

  /** What becomes of the value that a clone hands over. */
  result(
    vm: Pick<Member, 'family'>,
    ticket: Ticket,
    value: Buffer,
  ): { value: Buffer } | { reason: string } {
    const { familyResultsBytesMax } = this.#settings;
    const finished = this.#ticketsOf(vm.family);
    let heldBytes = finished.reduce((sum, { valueBytes }) => sum + valueBytes, 0);
    for (const old of finished) {
      if (heldBytes + value.length <= familyResultsBytesMax) break;
      if (old === ticket || !old.isJoined) continue;
      heldBytes -= old.valueBytes;
      this.#context.forgetTicket(old);
    }
    if (heldBytes + value.length <= familyResultsBytesMax) return { value };
    const most = `${familyResultsBytesMax} bytes (setting familyResultsBytesMax)`;
    return { reason: `the results of its family that nobody joined are over ${most}` };
  }

  /** Called when a family has a ticket more: the oldest finished ones go, those joined first. */
  forgetTickets(family: string): void {
    const finished = this.#ticketsOf(family).filter(({ done }) => done);
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

  /** A token bucket: `familyForksBurst` at once, then `familyForksPerSecond`. */
  #takeFork(family: string): void {
    const { familyForksBurst, familyForksPerSecond } = this.#settings;
    const now = this.#context.now();
    const bucket = this.#buckets.get(family) ?? { forks: familyForksBurst, filledAt: now };
    const earned = (Math.max(0, now - bucket.filledAt) / 1000) * familyForksPerSecond;
    bucket.forks = Math.min(familyForksBurst, bucket.forks + earned);
    bucket.filledAt = now;
    this.#buckets.set(family, bucket);
    if (this.#buckets.size > BUCKETS_MAX) this.#dropFullBuckets();
    if (bucket.forks < 1) {
      const retryAfterMs = Math.ceil(((1 - bucket.forks) / familyForksPerSecond) * 1000);
      const most = `${familyForksPerSecond} forks a second (setting familyForksPerSecond)`;
      const message = `a family may make ${most}: ask again in ${retryAfterMs} ms`;
      throw new SnowforkError('SF_LIMIT', message, { details: { retryAfterMs } });
    }
    bucket.forks--;
  }

  /** A bucket that is full again is as good as none. */
  #dropFullBuckets(): void {
    const { familyForksBurst, familyForksPerSecond } = this.#settings;
    const now = this.#context.now();
    for (const [family, { forks, filledAt }] of this.#buckets) {
      const earned = ((now - filledAt) / 1000) * familyForksPerSecond;
      if (forks + earned >= familyForksBurst) this.#buckets.delete(family);
    }
  }

  #assertCheckpoints(family: string): void {
    const { familyCheckpointsMax } = this.#settings;
    let checkpoints = 0;
    for (const { file } of this.#snapshotsOf(family)) if (file.kept) checkpoints++;
    if (checkpoints < familyCheckpointsMax) return;
    const most = `${familyCheckpointsMax} checkpoints (setting familyCheckpointsMax)`;
    throw new SnowforkError('SF_LIMIT', `a family may keep ${most}: delete some on the host`);
  }

  /** Freezes that are under way count with all that they may come to. */
  #assertLayers(family: string): void {
    const { familyLayersBytesMax } = this.#settings;
    const members = new Map([...this.#context.vms()].map((vm) => [vm.id, vm]));
    const layers = new Set<string>();
    let bytes = 0;
    for (const { file } of this.#snapshotsOf(family)) {
      const frozen = file.pending === undefined ? undefined : members.get(file.vm ?? '');
      if (frozen?.pid !== undefined) bytes += anonymousBytes(frozen.pid);
      for (const object of file.objects) {
        if ('layers' in object) for (const layer of object.layers) layers.add(layer);
      }
      bytes += file.deviceStateBytes + file.pages.totalPages * MAP_ENTRY_BYTES;
    }
    for (const layer of layers) bytes += storedBytes(this.#context.layerPath(layer));
    if (bytes < familyLayersBytesMax) return;
    const most = `${familyLayersBytesMax} bytes (setting familyLayersBytesMax)`;
    throw new SnowforkError('SF_LIMIT', `the snapshots of a family may take ${most}`);
  }

  /** `promised`: slots of tickets that no VM fills yet. */
  #count(family: string): { running: number; promised: number; clonesEver: number } {
    let running = 0;
    let clonesEver = 0;
    for (const vm of this.#context.vms()) {
      if (vm.family !== family) continue;
      if (vm.end === undefined) running++;
      clonesEver = Math.max(clonesEver, vm.descent.standing?.ordinal ?? 0);
    }
    let promised = 0;
    for (const ticket of this.#ticketsOf(family)) promised += ticket.openSlots;
    return { running, promised, clonesEver };
  }

  #ticketsOf(family: string): Ticket[] {
    return [...this.#context.tickets()].filter((ticket) => ticket.family === family);
  }

  #snapshotsOf(family: string): Snapshot[] {
    return [...this.#context.snapshots()].filter(({ file }) => file.family?.id === family);
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

const BUCKETS_MAX = 4096;
/** Of a snapshot's page map. */
const MAP_ENTRY_BYTES = 2;

/** On the tmpfs; a layer of an image is a link to the disk. */
function storedBytes(layerPath: string): number {
  const stat = fs.lstatSync(layerPath, { throwIfNoEntry: false });
  return stat === undefined || stat.isSymbolicLink() ? 0 : stat.blocks * BLOCK_BYTES;
}

const BLOCK_BYTES = 512;
