// The agent's settings: `settings.json` in the state folder over these defaults. Every bound that an
// owner of a host may want to move is here, and nothing else is.

import fs from 'node:fs';
import os from 'node:os';
import { acceleratorSchema, SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';
import { HOST_LIFETIME_MS } from './cluster/authority.js';
import { HOST_TIMEOUT_MS } from './cluster/host-lease.js';
import { kernelSchema } from './image/index.js';

const MiB = 1024 * 1024;

const atLeastOne = z.number().int().min(1);

/** For what guests ask for, by family: a VM that was launched, and all that came of it. */
const limitsSchema = z.strictObject({
  /** VMs of a family running at a time. */
  familyVmsMax: atLeastOne.default(512),
  /** Clones that a family makes, ever. */
  familyClonesMax: atLeastOne.default(1_000_000),
  /** Forks between the VM that was launched and the last of its descendants. */
  familyGenerationsMax: atLeastOne.default(64),
  /** Forks, checkpoints and tickets asked for, in the long run. */
  familyForksPerSecond: z.number().positive().default(10),
  /** So many of them at once. */
  familyForksBurst: atLeastOne.default(300),
  /** Values that clones have handed over and nobody has joined yet. */
  familyResultsBytesMax: atLeastOne.default(256 * MiB),
  /** Checkpoints that are kept. */
  familyCheckpointsMax: atLeastOne.default(256),
  /** Layers of all snapshots of a family; half of `layersBytesMax` by default. */
  familyLayersBytesMax: atLeastOne.optional(),
  /** After which all VMs of a family are ended; 0: never. */
  familyLifetimeMs: z.number().int().nonnegative().default(0),
  /** After which a VM is ended; 0: never. */
  vmLifetimeMs: z.number().int().nonnegative().default(0),
});

const settingsSchema = limitsSchema.extend({
  /**
   * How long a guest may take to become quiet for a fork, and to come back from it; by default longer
   * than a page of another host may take, or a clone that waits for one would not be lost for that.
   */
  guestTimeoutMs: z.number().int().min(100).max(600_000).default(40_000),
  /** QEMUs kept started for the next fork; each costs about 20 MiB. */
  warmPoolSize: z.number().int().min(0).max(256).default(8),
  /** Size of the tmpfs that holds layers; half of RAM by default. */
  layersBytesMax: z
    .number()
    .int()
    .min(16 * MiB)
    .default(Math.floor(os.totalmem() / 2 / MiB) * MiB),
  /** RAM that VMs are never promised. */
  reservedBytes: z
    .number()
    .int()
    .nonnegative()
    .default(Math.max(256 * MiB, Math.floor(os.totalmem() * 0.05))),
  /** Forces the accelerator that the probe would find. */
  accelerator: acceleratorSchema.optional(),
  /** The kernel of images that name none. */
  guestKernel: kernelSchema.optional(),
  /** First of the user ids that QEMUs run as; 0: they run as the agent's user. */
  vmUserFirst: z.number().int().min(0).max(2_000_000_000).default(1_900_000_000),
  /** A QEMU's limit of memory beside its guest's RAM. */
  vmMemoryExtraBytes: z
    .number()
    .int()
    .min(64 * MiB)
    .default(256 * MiB),
  /** A QEMU's limit of processor time beside its guest's processors. */
  vmCpusExtra: z.number().min(0.1).max(256).default(1),
  /** A page of another host that has not come for so long is lost, and its clones with it. */
  originTimeoutMs: z.number().int().min(1000).max(3_600_000).default(30_000),
  /** Without a sign of life for so long this host is lost to its cluster; etcd takes 2 s for the least. */
  hostTimeoutMs: z.number().int().min(2000).max(3_600_000).default(HOST_TIMEOUT_MS),
  /** Pages of other hosts that are kept here; an eighth of RAM by default. */
  replicaBytesMax: z
    .number()
    .int()
    .min(16 * MiB)
    .default(Math.floor(os.totalmem() / 8 / MiB) * MiB),
  /** What this host's link takes; by default what its driver says, else 10 Gbit/s. */
  linkBitsPerSecond: z.number().int().min(1_000_000).optional(),
  /** Of certificates that this host signs for hosts of its cluster; each is renewed by itself. */
  certificateLifetimeMs: z.number().int().min(10_000).default(HOST_LIFETIME_MS),
  /** This host may come to run a member of its cluster's store. */
  storeMember: z.boolean().default(true),
  /** Pages that a guest has free when it is frozen read as zeros in its clones, and never travel. */
  leaveOutFreePages: z.boolean().default(true),
  /** A freeze copies what was written since the one before, where the kernel can tell, not all that ever was. */
  trackWrites: z.boolean().default(true),
  /** What clones of a family touched first is brought to the next ones before they ask. */
  replayFirstTouches: z.boolean().default(true),
  /** VMs of this host, running at a time. */
  vmsMax: z.number().int().min(1).max(4096).default(1024),
});

type Stored = z.infer<typeof settingsSchema>;
export type Settings = Stored & { readonly familyLayersBytesMax: number };

/** @throws SnowforkError SF_BAD_REQUEST that names the file and the key. */
export function readSettings(file: string, environment: NodeJS.ProcessEnv): Settings {
  let stored: unknown = {};
  if (fs.existsSync(file)) {
    try {
      stored = JSON.parse(fs.readFileSync(file, 'utf8'));
    } catch (cause) {
      throw new SnowforkError('SF_BAD_REQUEST', `${file} is no JSON`, { cause });
    }
  }
  const { SNOWFORK_ACCEL: accelerator, SNOWFORK_GUEST_KERNEL: guestKernel } = environment;
  const forced = {
    ...(accelerator ? { accelerator } : {}),
    ...(guestKernel ? { guestKernel } : {}),
  };
  // What is no object is left for the schema to refuse.
  const merged = isObject(stored) ? { ...stored, ...forced } : stored;
  const parsed = settingsSchema.safeParse(merged);
  if (parsed.success) return withDerived(parsed.data);
  throw new SnowforkError('SF_BAD_REQUEST', `${file}: ${z.prettifyError(parsed.error)}`);
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function withDerived(stored: Stored): Settings {
  const half = Math.floor(stored.layersBytesMax / 2);
  return { ...stored, familyLayersBytesMax: stored.familyLayersBytesMax ?? half };
}
