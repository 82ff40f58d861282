// What all hosts of a cluster know of each other: who is there, how much room each has, which tickets
// have what of it, and what each family has. One interface: `etcd.ts` keeps it for a cluster,
// `embedded-store.ts` for a host by itself. Whoever asks for room on several hosts, or for what a
// family may have, gets it in one transaction, so that nothing is promised twice.

import { hostNameSchema, type Placing, sharedTicketSchema } from '@snowfork/sdk/api';
import { z } from 'zod';
import type { FamilyCounts, FamilyRequest } from './family-record.js';

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

/** Room of one host that a ticket of another has, and that no VM fills yet. */
export interface HostReservation {
  readonly ticket: string;
  /** The ticket's host. */
  readonly home: string;
  readonly slots: number;
  readonly bytesEach: number;
}

/** A ticket with slots on other hosts: what it has where, until all of these have settled. */
export const storedTicketSchema = sharedTicketSchema.extend({
  bytesEach: z.number().positive(),
});
export type StoredTicket = z.infer<typeof storedTicketSchema>;

export interface ReserveRequest {
  readonly ticket: string;
  readonly vm?: string;
  readonly family?: string;
  readonly asked: number;
  readonly bytesEach: number;
  readonly placing: Placing;
  /** That the asking host has for itself. */
  readonly hereSlots: number;
  /** A guest asks, and its family may have so much: what is granted counts at once. */
  readonly ofFamily?: FamilyRequest;
}

export interface HostSlots {
  readonly host: string;
  readonly slots: number;
}

export interface Reserved {
  /** On the asking host. */
  readonly here: number;
  readonly elsewhere: readonly HostSlots[];
  /** Why they are fewer than were asked for; where nobody has more room, the asking host knows. */
  readonly reason?: string;
}

/** What a host says of its families and tickets. */
export interface Holdings {
  readonly families: ReadonlyMap<string, FamilyCounts>;
  /** Families that ask for more at the moment: what they take is not counted yet, and stands. */
  readonly unsettled: ReadonlySet<string>;
  /** Its own that have slots on other hosts. */
  readonly tickets: readonly StoredTicket[];
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
  /** A host has come, or another agent on it. */
  onStarted(listener: (host: string) => void): void;
  /** What is promised of this host's room: called when it changes. */
  onReservations(listener: (reservations: readonly HostReservation[]) => void): void;
  /** What is left beside all that `onReservations` has told. */
  publishRoom(room: HostRoom): Promise<void>;
  setDraining(name: string, isDraining: boolean): Promise<void>;
  /** It can't come back. @throws SnowforkError SF_HOST_NOT_FOUND */
  remove(name: string): Promise<void>;
  /** Whether the host that had that name last was taken out. */
  isRemoved(name: string): boolean;
  /**
   * All slots, or as many as there are, for the ticket: in one transaction with what the family takes
   * and with the ticket's record. The record goes with this host, or when it is not told of any more.
   * @throws SnowforkError SF_LIMIT: the family may have none
   */
  reserve(request: ReserveRequest): Promise<Reserved>;
  /** What is asked for is taken at once. @throws SnowforkError SF_LIMIT: the family may not have it */
  takeOfFamily(request: FamilyRequest): Promise<void>;
  /** As last heard: what this host has told of the family, and what all others have together. */
  heardOf(family: string): { readonly here: FamilyCounts; readonly elsewhere: FamilyCounts };
  /** As last heard: such as have slots on several hosts. */
  tickets(): StoredTicket[];
  /** Told again and again; what it says of nothing is forgotten. */
  publish(holdings: Holdings): Promise<void>;
  /** Shown to the store from now on. */
  useCertificate(of: { certificate: string; privateKey: string }): Promise<void>;
  close(): Promise<void>;
}
