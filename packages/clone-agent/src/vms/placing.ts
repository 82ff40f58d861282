// Where the clones of a ticket are to run: what may be asked for, and what a host without others makes
// of it. `cluster/` places on several hosts.

import type { Placing } from '@snowfork/sdk/api';
import { type Machine, SnowforkError } from '@snowfork/sdk/api';
import type { Reservation, Room } from './room.js';

export type { Placing };

export interface PlacingRequest {
  readonly ticket: string;
  readonly asked: number;
  readonly machine: Machine;
  /** What the caller is about to use of this host besides. */
  readonly extraBytes: number;
  readonly placing: Placing;
}

/** Slots here, and on other hosts. */
export interface Placed extends Reservation {
  readonly elsewhere: readonly { readonly host: string; readonly slots: number }[];
  /** Gives back what other hosts have reserved. */
  releaseElsewhere(): void;
}

/** `granted` of what it returns counts this host's slots alone. @throws SnowforkError */
export type Place = (request: PlacingRequest, room: Room) => Promise<Placed>;

export const placeHere: Place = async ({ asked, machine, extraBytes, placing }, room) => {
  if (placing.hosts !== undefined) {
    throw new SnowforkError(
      'SF_BAD_REQUEST',
      'this host is in no cluster, so clones have no other hosts: `sf cluster init` makes one',
    );
  }
  const here = room.reserve(asked, machine, extraBytes);
  return { ...here, elsewhere: [], releaseElsewhere: () => {} };
};
