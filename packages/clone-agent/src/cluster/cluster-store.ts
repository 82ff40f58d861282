// What all hosts of a cluster know of each other: who is there, how much room each has, and what of it
// is promised. One interface; `etcd.ts` keeps it. Whoever asks for room on several hosts gets it in one
// transaction, so that nothing is promised twice.

import { hostNameSchema, type Placing } from '@snowfork/sdk/api';
import { z } from 'zod';

export const hostRoomSchema = z.object({
  /** Memory for VMs more. */
  roomBytes: z.number().nonnegative(),
  /** How many VMs more there may be, whatever memory there is. */
  slots: z.number().int().nonnegative(),
  /** That run. */
  vms: z.number().int().nonnegative(),
});
export type HostRoom = z.infer<typeof hostRoomSchema>;

export const hostRecordSchema = z.object({
  id: z.string(),
  name: hostNameSchema,
  address: z.ipv4(),
  port: z.number().int(),
  version: z.string(),
  startedAt: z.number(),
  /** Of its memory server, at the same address. */
  pagesPort: z.number().int().optional(),
});
export type HostIdentity = z.infer<typeof hostRecordSchema>;

export interface HostRecord extends HostIdentity {
  readonly draining: boolean;
  readonly room: HostRoom;
}

/** Room of one host, promised to a ticket of another. */
export const reservationSchema = z.object({
  ticket: z.string(),
  /** The ticket's host: when it is lost, the room is nobody's. */
  holder: hostNameSchema,
  slots: z.number().int().positive(),
  bytesEach: z.number().positive(),
});
export type HostReservation = z.infer<typeof reservationSchema>;

export interface ReserveRequest {
  readonly ticket: string;
  readonly asked: number;
  readonly bytesEach: number;
  readonly placing: Placing;
  /** The host that asks, and the slots that it has for itself. */
  readonly here: string;
  readonly hereSlots: number;
}

/** VMs more for a family. */
export interface FamilyRequest {
  readonly family: string;
  /** The host that asks, and the VMs of its tickets, wherever they run. */
  readonly here: string;
  readonly counted: number;
  readonly asked: number;
  /** On all hosts together. */
  readonly max: number;
}

/** What a host has of each family. */
export interface FamilyCounts {
  readonly counts: ReadonlyMap<string, number>;
  /** Such as ask for more at the moment: what they take is not in `counts` yet, and stands. */
  readonly unsettled: ReadonlySet<string>;
}

export interface HostSlots {
  readonly host: string;
  readonly slots: number;
}

/** Every method throws SnowforkError SF_CLUSTER_UNAVAILABLE when the store does not answer. */
export interface ClusterStore {
  /**
   * This host is there, until `close` or until nothing is heard of it.
   * @throws SnowforkError SF_BAD_REQUEST: another has its name; SF_PERMISSION: it was removed
   */
  join(self: HostIdentity, room: HostRoom): Promise<void>;
  /** Whether the store has its majority. @throws SnowforkError SF_CLUSTER_UNAVAILABLE: it has none */
  check(): Promise<void>;
  /** As last heard: also when the store does not answer. */
  hosts(): HostRecord[];
  onLost(listener: (host: string) => void): void;
  /** What is promised of this host's room: called when it changes. */
  onReservations(listener: (reservations: readonly HostReservation[]) => void): void;
  /** What is left beside all that `onReservations` has told. */
  publishRoom(room: HostRoom): Promise<void>;
  setDraining(name: string, isDraining: boolean): Promise<void>;
  /** It can't come back. @throws SnowforkError SF_HOST_NOT_FOUND */
  remove(name: string): Promise<void>;
  /** All slots, or as many as there are. What is not used within a minute is given back. */
  reserve(request: ReserveRequest): Promise<{ granted: HostSlots[]; reason?: string }>;
  /** As many of them as the family may still have; they count at once. */
  takeOfFamily(request: FamilyRequest): Promise<number>;
  /** VMs by family, of this host's tickets. */
  publishFamilies(counts: FamilyCounts): Promise<void>;
  /** What a ticket has of a host is used, or not wanted. */
  release(ticket: string, host: string): Promise<void>;
  /** Shown to the store from now on, by this host's member of it too. */
  useCertificate(of: { certificate: string; privateKey: string }): Promise<void>;
  close(): Promise<void>;
}
