// The store of a host that is in no cluster: there is nobody to tell, and nothing to keep but how often
// each family has forked of late. All else is counted from the VMs, tickets and snapshots that there
// are, and comes with each request, so it needs no file and outlives the agent. What only a host among
// others can be asked is refused with SF_NO_CLUSTER.

import { SnowforkError } from '@snowfork/sdk/api';
import type {
  ClusterStore,
  HostRecord,
  Reserved,
  ReserveRequest,
  StoredTicket,
} from './cluster-store.js';
import {
  type FamilyCounts,
  type FamilyLimits,
  type FamilyRecord,
  type FamilyRequest,
  isRested,
  NOTHING,
  type Weighed,
  weigh,
} from './family-record.js';

const HERE = 'here';
const PRESENT = new Set([HERE]);
const FAMILIES_MAX = 4096;

export class EmbeddedStore implements ClusterStore {
  readonly #families = new Map<string, FamilyRecord>();

  async reserve({ asked, hereSlots, placing, ofFamily }: ReserveRequest): Promise<Reserved> {
    if (placing.hosts !== undefined) throw noCluster('clones have no other hosts');
    const weighed = ofFamily && this.#weigh(ofFamily);
    const { clones = asked, reason } = weighed ?? {};
    const here = Math.min(clones, hereSlots);
    if (ofFamily !== undefined) this.#keep(ofFamily, weighed!.taken(here));
    if (weighed?.refusal !== undefined) throw weighed.refusal;
    const why = here < clones ? undefined : reason;
    return { here, elsewhere: [], ...(why === undefined ? {} : { reason: why }) };
  }

  async takeOfFamily(request: FamilyRequest): Promise<void> {
    const { taken, refusal } = this.#weigh(request);
    this.#keep(request, taken(0));
    if (refusal !== undefined) throw refusal;
  }

  heardOf(family: string): { here: FamilyCounts; elsewhere: FamilyCounts } {
    return { here: this.#families.get(family)?.hosts[HERE] ?? NOTHING, elsewhere: NOTHING };
  }

  tickets(): StoredTicket[] {
    return [];
  }

  hosts(): HostRecord[] {
    throw noCluster('it has no other hosts');
  }

  async setDraining(): Promise<void> {
    throw noCluster('no other host can take its clones');
  }

  async remove(): Promise<void> {
    throw noCluster('it has no other hosts');
  }

  isRemoved(): boolean {
    return false;
  }

  async useCertificate(): Promise<void> {
    throw noCluster('it needs no certificate');
  }

  async join(): Promise<void> {}
  async check(): Promise<void> {}
  onLost(): void {}
  onStarted(): void {}
  onReservations(): void {}
  async publishRoom(): Promise<void> {}
  async publish(): Promise<void> {}
  async close(): Promise<void> {}

  #weigh(request: FamilyRequest): Weighed {
    const before = this.#families.get(request.family) ?? { hosts: {} };
    return weigh(before, request, { here: HERE, present: PRESENT });
  }

  #keep({ family, limits, askedAt }: FamilyRequest, record: FamilyRecord): void {
    this.#families.set(family, record);
    if (this.#families.size > FAMILIES_MAX) this.#forgetRested(limits, askedAt);
  }

  #forgetRested(limits: FamilyLimits, now: number): void {
    for (const [family, record] of this.#families) {
      if (isRested(record, limits, now)) this.#families.delete(family);
    }
  }
}

function noCluster(what: string): SnowforkError {
  const mend = '`sf cluster init` makes one, `sf host join` joins one';
  return new SnowforkError('SF_NO_CLUSTER', `this host is in no cluster, so ${what}: ${mend}`);
}
