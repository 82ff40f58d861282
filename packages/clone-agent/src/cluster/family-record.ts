// What a family has on each host, and what its guests may have more: the arithmetic of its limits,
// without a store. `etcd-families.ts` keeps a record of each family for all hosts of a cluster,
// `embedded-store.ts` for the one host there is; both change it by what is said here. What a host has
// itself it counts anew each time (`vms/limits.ts`); of the others it knows what they have told.

import { SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';

const count = z.number().int().nonnegative().default(0);

export const familyCountsSchema = z.object({
  /** Running, of tickets that the host has made, wherever they run; and such as were launched on it. */
  vms: count,
  /** Slots of its tickets that no fork has used yet. */
  promised: count,
  /** Clones that its tickets have made, ever: never less, and not forgotten with the host. */
  clones: count,
  /** What lies on it. */
  checkpoints: count,
  layersBytes: count,
  resultsBytes: count,
});
export type FamilyCounts = z.infer<typeof familyCountsSchema>;

export const NOTHING: FamilyCounts = familyCountsSchema.parse({});
const KINDS = Object.keys(NOTHING) as (keyof FamilyCounts)[];

const forksSchema = z.object({
  /** How many there may be at once. */
  left: z.number().nonnegative(),
  /** When that was so, in milliseconds since the epoch. */
  at: z.number(),
});
type Forks = z.infer<typeof forksSchema>;

export const familyRecordSchema = z.object({
  hosts: z.record(z.string(), familyCountsSchema),
  /** Absent: as many as there may be. */
  forks: forksSchema.exactOptional(),
});
export type FamilyRecord = z.infer<typeof familyRecordSchema>;

export interface FamilyLimits {
  readonly familyVmsMax: number;
  readonly familyClonesMax: number;
  readonly familyCheckpointsMax: number;
  readonly familyLayersBytesMax: number;
  readonly familyForksPerSecond: number;
  readonly familyForksBurst: number;
}

/** What a guest asks for. */
export interface FamilyRequest {
  readonly family: string;
  readonly limits: FamilyLimits;
  readonly clones: number;
  readonly checkpoints: number;
  /** It will store layers. */
  readonly freezes: boolean;
  /** In milliseconds since the epoch. */
  readonly askedAt: number;
  /** What this host has of the family now. Measures; asked only if the family may fork at all. */
  counted(): FamilyCounts;
}

export interface Weighed {
  /** So many of the clones that are asked for it may have. */
  readonly clones: number;
  /** Why they are fewer. */
  readonly reason?: string;
  /** It gets nothing; that it has asked counts. */
  readonly refusal?: SnowforkError;
  /** What is to be kept, when it gets so many of them. */
  taken(clones: number): FamilyRecord;
}

/** `present`: the hosts that are there. @throws SnowforkError SF_LIMIT: it asks too often. */
export function weigh(
  before: FamilyRecord,
  request: FamilyRequest,
  { here, present }: { here: string; present: ReadonlySet<string> },
): Weighed {
  const forks = takeFork(before.forks, request);
  const hosts = withOwn(before, { here, present, counts: request.counted() });
  const own = hosts[here] ?? NOTHING;
  const total = sumOf(Object.values(hosts));
  const taken = (clones: number, checkpoints: number) => {
    const promised = own.promised + clones;
    const counts = { ...own, promised, checkpoints: own.checkpoints + checkpoints };
    return { hosts: { ...hosts, [here]: counts }, forks };
  };
  const refuse = (reason: string): Weighed => {
    const refusal = new SnowforkError('SF_LIMIT', reason, { details: { asked: request.clones } });
    return { clones: 0, refusal, taken: () => taken(0, 0) };
  };
  const { familyLayersBytesMax, familyCheckpointsMax } = request.limits;
  if (request.freezes && total.layersBytes >= familyLayersBytesMax) {
    const most = `${familyLayersBytesMax} bytes (setting familyLayersBytesMax)`;
    return refuse(`the snapshots of a family may take ${most}`);
  }
  if (total.checkpoints + request.checkpoints > familyCheckpointsMax && request.checkpoints > 0) {
    const most = `${familyCheckpointsMax} checkpoints (setting familyCheckpointsMax)`;
    return refuse(`a family may keep ${most}: delete some on the host`);
  }
  const { clones, reason } = clonesLeft(total, request);
  if (reason !== undefined && clones === 0) return refuse(reason);
  return {
    ...{ clones, taken: (number) => taken(number, request.checkpoints) },
    ...(reason === undefined ? {} : { reason }),
  };
}

/** The record with what this host has now. */
export function told(
  before: FamilyRecord,
  own: { here: string; present: ReadonlySet<string>; counts: FamilyCounts },
): FamilyRecord {
  return { ...before, hosts: withOwn(before, own) };
}

/** There is nobody who could ask for more, and nothing to make such of. */
export function isOver({ hosts }: FamilyRecord): boolean {
  const { vms, promised, checkpoints } = sumOf(Object.values(hosts));
  return vms + promised + checkpoints === 0;
}

export function sumOf(counts: readonly FamilyCounts[]): FamilyCounts {
  const sum = { ...NOTHING };
  for (const one of counts) for (const kind of KINDS) sum[kind] += one[kind];
  return sum;
}

/** Nobody can tell it from a family that has not forked lately. */
export function isRested({ forks }: FamilyRecord, limits: FamilyLimits, now: number): boolean {
  return forks === undefined || refilled(forks, limits, now).left >= limits.familyForksBurst;
}

function withOwn(
  before: FamilyRecord,
  { here, present, counts }: { here: string; present: ReadonlySet<string>; counts: FamilyCounts },
): FamilyRecord['hosts'] {
  const others = Object.entries(before.hosts).filter(([host]) => host !== here);
  const hosts = others.map(([host, of]) => [host, present.has(host) ? of : ofLost(of)] as const);
  // It may have forgotten what it made, but others have not.
  const clones = Math.max(counts.clones, before.hosts[here]?.clones ?? 0);
  const all = [...hosts, [here, { ...counts, clones }] as const];
  const has = (of: FamilyCounts) => KINDS.some((kind) => of[kind] > 0);
  return Object.fromEntries(all.filter(([, of]) => has(of)));
}

/** Whatever it had is gone, but for what was made; of that it had not said the last. */
function ofLost({ clones, promised }: FamilyCounts): FamilyCounts {
  return { ...NOTHING, clones: clones + promised };
}

function clonesLeft(
  { vms, promised, clones: made }: FamilyCounts,
  { family, clones: asked, limits }: FamilyRequest,
): { clones: number; reason?: string } {
  const { familyVmsMax, familyClonesMax } = limits;
  const byRunning = familyVmsMax - vms - promised;
  const byTotal = familyClonesMax - made - promised;
  const clones = Math.min(asked, Math.max(0, Math.min(byRunning, byTotal)));
  if (clones === asked) return { clones };
  const reason =
    byRunning <= byTotal
      ? `may have ${familyVmsMax} VMs at a time (setting familyVmsMax)`
      : `may make ${familyClonesMax} clones (setting familyClonesMax)`;
  return { clones, reason: `the family of ${family} ${reason}` };
}

/** A token bucket: `familyForksBurst` at once, then `familyForksPerSecond`. */
function takeFork(before: Forks | undefined, { limits, askedAt }: FamilyRequest): Forks {
  const { familyForksBurst, familyForksPerSecond } = limits;
  const { left, at } = refilled(before ?? { left: familyForksBurst, at: askedAt }, limits, askedAt);
  if (left >= 1) return { left: left - 1, at };
  const retryAfterMs = Math.ceil(((1 - left) / familyForksPerSecond) * 1000);
  const most = `${familyForksPerSecond} forks a second (setting familyForksPerSecond)`;
  const message = `a family may make ${most}: ask again in ${retryAfterMs} ms`;
  throw new SnowforkError('SF_LIMIT', message, { details: { retryAfterMs } });
}

/** Its time goes forward only: hosts whose clocks differ earn nothing by asking in turns. */
function refilled({ left, at }: Forks, limits: FamilyLimits, now: number): Forks {
  const { familyForksBurst, familyForksPerSecond } = limits;
  const earned = (Math.max(0, now - at) / 1000) * familyForksPerSecond;
  return { left: Math.min(familyForksBurst, left + earned), at: Math.max(at, now) };
}
