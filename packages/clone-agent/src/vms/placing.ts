// Where the clones of a ticket are to run: what may be asked for, and what comes of it. `cluster/`
// places them, on several hosts or on the one there is.

import type { Machine, Placing } from '@snowfork/sdk/api';
import type { FamilyRequest } from '../cluster/family-record.js';
import type { Reservation, Room } from './room.js';

export type { Placing };

export interface PlacingRequest {
  readonly ticket: string;
  readonly vm?: string;
  readonly family?: string;
  readonly asked: number;
  readonly machine: Machine;
  /** What the caller is about to use of this host besides. */
  readonly extraBytes: number;
  readonly placing: Placing;
  /** A guest asks, and its family may have so much. */
  readonly ofFamily?: FamilyRequest;
}

/** Slots here, and on other hosts. */
export interface Placed extends Reservation {
  readonly elsewhere: readonly { readonly host: string; readonly slots: number }[];
  /** Of one slot, at most. */
  readonly bytesEach: number;
}

/** `granted` of what it returns counts this host's slots alone. @throws SnowforkError */
export type Place = (request: PlacingRequest, room: Room) => Promise<Placed>;
