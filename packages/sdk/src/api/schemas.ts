// Every message between the SDK, the CLI and the agent, as zod schemas; the types are inferred from
// them. The agent checks what it is asked, the SDK checks what it is told: zod stands at both edges.
// JSON over HTTP; times are milliseconds since the epoch or durations in milliseconds (`…Ms`), sizes
// are bytes (`…Bytes`), amounts of memory in pages of 4,096 bytes (`…Pages`).

import { z } from 'zod';
import { networkStatsSchema } from './network-stats.js';

/** Largest number of clones that one call may ask for. */
export const CLONES_MAX = 256;

const name = z.string().regex(/^[a-z0-9][a-z0-9._-]{0,62}$/, {
  error: 'a name is 1 to 63 of a-z 0-9 . _ - and begins with a letter or digit',
});
export const imageNameSchema = name;
const id = z.string().min(1).max(64);
const count = z
  .number()
  .int({ error: `the number of clones is a whole number from 1 to ${CLONES_MAX}` })
  .min(1, { error: `the number of clones is a whole number from 1 to ${CLONES_MAX}` })
  .max(CLONES_MAX, { error: `the number of clones is a whole number from 1 to ${CLONES_MAX}` });
export const cloneCountSchema = count;
const bytes = z.number().int().nonnegative();
const ms = z.number().nonnegative();

export const acceleratorSchema = z.enum(['kvm', 'tcg']);
export type Accelerator = z.infer<typeof acceleratorSchema>;

/** What a host must have to run a snapshot. */
export const machineSchema = z.object({
  qemuVersion: z.string(),
  machineType: z.string(),
  accelerator: acceleratorSchema,
  cpuModel: z.string(),
  memoryBytes: bytes,
  vcpus: z.number().int().min(1),
});
export type Machine = z.infer<typeof machineSchema>;

/** How the pages of a snapshot's RAM came out of the freeze. */
export const pageCountsSchema = z.object({
  totalPages: bytes,
  /** Anonymous in the frozen QEMU: what this VM wrote since it was cloned. */
  privatePages: bytes,
  /** Free in the guest's buddy allocator: zeros in every clone. */
  freePages: bytes,
  /** Private, and all zero. */
  zeroPages: bytes,
  /** Private, but equal to the last snapshot's: referenced. */
  referencedPages: bytes,
  /** Copied into this snapshot's own layer. */
  storedPages: bytes,
});
export type PageCounts = z.infer<typeof pageCountsSchema>;

/** The parent's side of a freeze, in milliseconds. */
export const freezeTimesSchema = z.object({
  /** From the call until the guest side said that it is quiet. */
  prepareMs: ms,
  /** From `stop` to `cont`: what the parent's users feel. */
  pauseMs: ms,
  /** Parts of the pause, by name. */
  parts: z.record(z.string(), ms),
});
export type FreezeTimes = z.infer<typeof freezeTimesSchema>;

export const snapshotSchema = z.object({
  id,
  /** Set on an image's snapshot. */
  image: z.string().optional(),
  /** The VM that was frozen; absent on an image's. */
  vm: id.optional(),
  /** The snapshot that VM was cloned from. */
  parent: id.optional(),
  createdAt: ms,
  machine: machineSchema,
  pages: pageCountsSchema,
  layers: z.number().int(),
  layerBytes: bytes,
  deviceStateBytes: bytes,
  /** How long its VM was paused for it. */
  freeze: freezeTimesSchema.optional(),
  /** Kept until deleted (a checkpoint or an image), not collected when its last clone ends. */
  kept: z.boolean(),
  /** Running VMs cloned from it. */
  users: z.array(id),
});
export type SnapshotInfo = z.infer<typeof snapshotSchema>;

/** How a VM came to its end. */
export const endSchema = z.discriminatedUnion('how', [
  z.object({ how: z.literal('exited'), value: z.unknown() }),
  z.object({ how: z.literal('killed'), reason: z.string() }),
  z.object({ how: z.literal('lost'), reason: z.string() }),
]);
export type End = z.infer<typeof endSchema>;

/** From the call to a clone that answers, in milliseconds after the call. */
export const cloneTimesSchema = z.object({
  /** QEMU was at hand: from the warm pool, or started. */
  startedMs: ms,
  /** The device state is loaded. */
  loadedMs: ms,
  /** `cont`: the clone's processors run. */
  resumedMs: ms,
  /** Its guest side repaired its identity and answered; its programs run. */
  answeredMs: ms,
  /** The first request of one of its programs came; absent before that. */
  programMs: ms.optional(),
  /** Whether QEMU came from the warm pool. */
  warm: z.boolean(),
});
export type CloneTimes = z.infer<typeof cloneTimesSchema>;

/** Memory and pages of one VM. */
/** Pages of a VM's memory that its own faults brought, by where they came from. */
export const pagesBySourceSchema = z.object({
  /** Zero, or free in the guest when its snapshot was taken: they come from nowhere. */
  zero: bytes,
  /** Of layers of this host. */
  local: bytes,
  /** Of other hosts, and here before they were asked for. */
  replica: bytes,
  /** Of other hosts, and waited for. */
  demand: bytes,
});
export type PagesBySource = z.infer<typeof pagesBySourceSchema>;

export const vmStatsSchema = z.object({
  vm: id,
  /** Proportional set size of the whole QEMU process. */
  pssBytes: bytes,
  /** The same of the RAM mapping alone. */
  ramPssBytes: bytes,
  /** Pages of the RAM mapping that this VM touched. */
  touchedPages: bytes,
  /** Of these its own (written). */
  privatePages: bytes,
  /** Of these shared with siblings through the page cache. */
  sharedPages: bytes,
  /** Free in the guest when its snapshot was taken: never fetched. */
  freePages: bytes,
  /**
   * Where the touched pages came from; `cache`: it found them in the kernel's cache, as a sibling had
   * touched them before or they were pushed. Missing in `lastStats`.
   */
  pages: pagesBySourceSchema.extend({ cache: bytes }).optional(),
  cpuMs: ms,
});
export type VmStats = z.infer<typeof vmStatsSchema>;

export const vmSchema = z.object({
  id,
  image: z.string(),
  /** Where it runs; absent when the host is in no cluster. */
  host: z.string().optional(),
  snapshot: id,
  /** The VM that forked it. */
  parent: id.optional(),
  /** First VM of the family. */
  family: id,
  /** 1…m within its ticket; absent for a launched VM. */
  cloneId: z.number().int().optional(),
  ticket: id.optional(),
  state: z.enum(['starting', 'running', 'frozen', 'ended']),
  pid: z.number().int().optional(),
  startedAt: ms,
  endedAt: ms.optional(),
  end: endSchema.optional(),
  machine: machineSchema,
  times: cloneTimesSchema.optional(),
  /** As it was when the VM ended by `exit`. */
  lastStats: vmStatsSchema.optional(),
});
export type VmInfo = z.infer<typeof vmSchema>;

/** What became of one slot of a ticket. */
export const slotSchema = z.discriminatedUnion('status', [
  z.object({ cloneId: z.number().int(), vm: id.optional(), status: z.literal('running') }),
  z.object({
    cloneId: z.number().int(),
    vm: id.optional(),
    status: z.literal('exited'),
    value: z.unknown(),
  }),
  z.object({
    cloneId: z.number().int(),
    vm: id.optional(),
    status: z.literal('lost'),
    reason: z.string(),
  }),
]);
export type Slot = z.infer<typeof slotSchema>;

/** Room for `clones` ≤ `asked` clones. */
export const ticketSchema = z.object({
  id,
  vm: id.optional(),
  asked: z.number().int(),
  clones: z.number().int(),
  /** Why fewer than asked. */
  reason: z.string().optional(),
  used: z.boolean(),
});
export type TicketInfo = z.infer<typeof ticketSchema>;

export const forkResultSchema = z.object({
  ticket: ticketSchema,
  snapshot: snapshotSchema,
  freeze: freezeTimesSchema.optional(),
  /** One per clone of the ticket, settled: a VM that answers, or the error. */
  clones: z.array(
    z.discriminatedUnion('status', [
      z.object({ status: z.literal('fulfilled'), cloneId: z.number().int(), vm: vmSchema }),
      z.object({ status: z.literal('rejected'), cloneId: z.number().int(), error: z.unknown() }),
    ]),
  ),
});
export type ForkResult = z.infer<typeof forkResultSchema>;

/** Largest number of hosts that can be named. */
const HOSTS_MAX = 1024;
export const hostNameSchema = z.string().regex(/^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$/, {
  error: "a host's name is 1 to 32 of a-z 0-9 - and neither begins nor ends with -",
});
/** Where clones are to run, in a cluster. */
export const placingSchema = z.strictObject({
  /** Only on these hosts. */
  hosts: z.array(hostNameSchema).min(1).max(HOSTS_MAX).exactOptional(),
  /** `spread`: as evenly as there is room; `pack`: on as few hosts as there is room. */
  place: z.enum(['spread', 'pack']).exactOptional(),
});
export type Placing = z.infer<typeof placingSchema>;

export const launchRequestSchema = placingSchema.extend({ image: imageNameSchema });
export type LaunchRequest = z.infer<typeof launchRequestSchema>;
/** Of a VM, and of clones of a snapshot. */
export const forkRequestSchema = placingSchema.extend({ clones: count });
export type ForkRequest = z.infer<typeof forkRequestSchema>;
export const joinRequestSchema = z.strictObject({ timeoutMs: ms.optional() });
export const joinResultSchema = z.object({ slots: z.array(slotSchema) });
export const checkpointResultSchema = z.object({
  snapshot: snapshotSchema,
  freeze: freezeTimesSchema,
});
export type CheckpointResult = z.infer<typeof checkpointResultSchema>;

/** Pages that were on other hosts alone. */
export const detachResultSchema = z.object({ pages: z.number().int() });
export type DetachResult = z.infer<typeof detachResultSchema>;

export const buildRequestSchema = z.strictObject({
  name: imageNameSchema,
  /** Absolute path of the image's file on this host. */
  file: z.string().startsWith('/'),
  /** Overrides of the file. */
  memory: z.string().optional(),
  /** Build even when nothing changed. */
  force: z.boolean().optional(),
});
export type BuildRequest = z.infer<typeof buildRequestSchema>;
/** Sent while an image is built, as server-sent events named `progress`; then `done` or `error`. */
export const buildProgressSchema = z.object({
  step: z.string(),
  message: z.string(),
  elapsedMs: ms,
});
export type BuildProgress = z.infer<typeof buildProgressSchema>;
export const imageSchema = z.object({
  name: z.string(),
  snapshot: id,
  builtAt: ms,
  kernel: z.string(),
  machine: machineSchema,
  /** RAM layer and disk together, on disk. */
  storedBytes: bytes,
});
export type ImageInfo = z.infer<typeof imageSchema>;
export const buildResultSchema = z.object({ image: imageSchema, unchanged: z.boolean() });
export type BuildResult = z.infer<typeof buildResultSchema>;

export const execRequestSchema = z.strictObject({
  command: z.array(z.string().max(131_072)).min(1).max(1024),
  cwd: z.string().optional(),
  env: z.record(z.string(), z.string()).optional(),
  /** Keep standard input open for `…/stdin`; without it the command reads an empty input. */
  stdin: z.boolean().optional(),
});
export type ExecRequest = z.infer<typeof execRequestSchema>;
export const signalRequestSchema = z.strictObject({ signal: z.number().int().min(1).max(64) });
/** Server-sent events of a command: `started`, `stdout` and `stderr` (base64), `exit`, `error`. */
export const execStartedSchema = z.object({ exec: z.number().int(), pid: z.number().int() });
export const execExitSchema = z.object({
  code: z.number().int().nullable(),
  signal: z.number().int().nullable(),
});
export type ExecExit = z.infer<typeof execExitSchema>;

/** What the pager served, per object. Latency buckets are powers of two of a microsecond. */
export const pagerObjectStatsSchema = z.object({
  snapshot: id,
  object: z.string(),
  reads: bytes,
  zeroPages: bytes,
  localPages: bytes,
  refusedReads: bytes,
  /** Zero pages pushed around the first touch of fresh memory. */
  storedPages: bytes,
  /** Pages pushed because clones of the family touch them first. */
  replayedPages: bytes,
  /** Pages of layers pushed ahead of a clone that goes through its memory. */
  aheadPages: bytes,
  /** Pages of other hosts that READs got here, and those of them that had to be waited for. */
  replicaPages: bytes,
  demandedPages: bytes,
  /** Pages that clones waited for first, on any host, as far as they are recorded. */
  firstTouches: bytes,
  /** Pages that only other hosts have, by host. */
  dependsOn: z.record(z.string(), bytes),
});
export type PagerObjectStats = z.infer<typeof pagerObjectStatsSchema>;
/** A ticket with slots on several hosts, as the cluster's store has it. */
export const sharedTicketSchema = z.object({
  id,
  /** The host that forked, or is to. */
  home: z.string(),
  vm: z.string().exactOptional(),
  family: z.string().exactOptional(),
  /** By host: those that no VM fills yet, and those whose VM runs. */
  slots: z.record(
    z.string(),
    z.object({ open: z.number().int().nonnegative(), running: z.number().int().nonnegative() }),
  ),
});

export const hostStatsSchema = z.object({
  memory: z.object({
    totalBytes: bytes,
    availableBytes: bytes,
    /** What all VMs may still grow by. */
    promisedBytes: bytes,
    /** What is left for new VMs. */
    roomBytes: bytes,
    layersBytes: bytes,
    layersBytesMax: bytes,
  }),
  pool: z.object({ size: z.number().int(), ready: z.number().int(), pssBytes: bytes }),
  pager: z.object({
    pid: z.number().int(),
    objects: z.array(pagerObjectStatsSchema),
    /** READs by how long clones waited for them: bucket b has those of less than 2^b µs. */
    latencyUsBuckets: z.array(bytes),
  }),
  /** Memory of each VM's QEMU; `vmStatsSchema` tells it page by page. */
  vms: z.array(
    z.object({
      vm: id,
      /** That it was cloned from. */
      snapshot: id,
      /** What it wrote, and QEMU's own. */
      ownBytes: bytes,
      /** What it only read, which it shares with its siblings, and QEMU's program. */
      sharedBytes: bytes,
      pages: pagesBySourceSchema,
    }),
  ),
  /** What the pages of each snapshot were found to be when it was frozen. */
  snapshots: z.array(z.object({ snapshot: id, pages: pageCountsSchema })),
  /** Of a host in a cluster. */
  network: networkStatsSchema.optional(),
  /** Of its cluster; the others are an affair of the host that has them. */
  tickets: z.array(sharedTicketSchema).optional(),
});
export type HostStats = z.infer<typeof hostStatsSchema>;

/** What became of what an agent left that was killed, or that a power cut ended. */
export const previousAgentSchema = z.object({
  /** VMs that go on. */
  adopted: z.array(id),
  /** VMs that ran and are lost. */
  lost: z.array(id),
  /** Tickets whose results are lost. */
  tickets: z.array(id),
  /** Processes that nobody needed any more, and that were ended. */
  killedProcesses: z.number().int(),
});
export type PreviousAgent = z.infer<typeof previousAgentSchema>;

export const hostInfoSchema = z.object({
  version: z.string(),
  pid: z.number().int(),
  startedAt: ms,
  stateFolder: z.string(),
  qemu: z.object({ path: z.string(), version: z.string(), accelerator: acceleratorSchema }),
  vms: z.number().int(),
  /** Set when the agent before this one did not end in order. */
  previous: previousAgentSchema.optional(),
});
export type HostInfo = z.infer<typeof hostInfoSchema>;

export const imageListSchema = z.object({ images: z.array(imageSchema) });
export const vmListSchema = z.object({ vms: z.array(vmSchema) });
export const snapshotListSchema = z.object({ snapshots: z.array(snapshotSchema) });

/** Body of every answer that is not 2xx, and data of the server-sent event `error`. */
export const apiErrorSchema = z.object({
  error: z.object({
    code: z.string(),
    message: z.string(),
    details: z.record(z.string(), z.unknown()),
  }),
});

/** Something changed; what it is now is asked for by its id. `dropped`: read everything again. */
export const watchEventSchema = z.object({ kind: z.string(), id: z.string() });
export type WatchEvent = z.infer<typeof watchEventSchema>;

/** The agent ends with this code when another agent holds the state folder already. */
export const AGENT_EXIT_TAKEN = 75;
