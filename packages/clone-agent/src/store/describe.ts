// Describes a snapshot for a host that is to run clones of it: what it must have at once, and where
// the pages come from. Called when clones are started elsewhere; changes nothing but the snapshot's
// key, which is drawn the first time.

import fs from 'node:fs';
import path from 'node:path';
import { decodePageMap } from '@snowfork/memserver/pages';
import { type Descriptor, packDeviceState, packMap, packTouches } from './descriptor.js';
import { hostOf } from './journal.js';
import { heldPath, type Origin } from './origins.js';
import type { OwnObject } from './snapshot-file.js';
import type { Snapshot, SnapshotStore } from './snapshots.js';

const RAM = 'ram';
/** Groups are told apart by their addresses. */
const GROUP_PORT = 7411;

/** This host's memory server, as others reach it. */
export interface ServingHost {
  readonly host: string;
  readonly address: string;
  readonly port: number;
}

/** What the memory server must be told before anybody asks it. */
export interface ServedLayers {
  readonly snapshot: string;
  readonly key: string;
  readonly group?: { readonly address: string; readonly port: number };
  readonly layers: readonly { readonly path: string; readonly held?: string }[];
  /** The layers' pages come when they are wanted, for this snapshot of the host. */
  readonly wants?: { readonly snapshot: string };
}

export interface SnapshotDescription {
  /** What the memory server must be told, before anybody hears of a descriptor. */
  readonly served: readonly ServedLayers[];
  /** `neighbourOf`: a host that fetches a snapshot too, for the one that this is for. */
  for(neighbourOf: (snapshot: string) => ServingHost | undefined): Descriptor;
}

/** Made once for all hosts that are to have it: what is large is packed here. */
export function describeSnapshot(
  store: SnapshotStore,
  snapshot: Snapshot,
  { serving, faults }: { readonly serving: ServingHost; readonly faults: readonly number[] },
): SnapshotDescription {
  const { file } = snapshot;
  const owned = file.objects.map((object) => {
    const owner = store.ownerOf(snapshot, object);
    const own = owner.file.objects.find(({ name }) => name === object.name) as OwnObject;
    return { owner, own };
  });
  const owners = store.ownersOf(snapshot);
  const layers = new Set(owned.flatMap(({ own }) => own.layers));
  const here = owners
    .map((owner) => originHere(store, owner, serving))
    .filter((origin) => origin.layers.length > 0);
  const { id, image, vm, family, parent, createdAt, machine, pages, guest } = file;
  const common: Omit<Descriptor, 'origins'> = {
    version: 1,
    id: idEverywhere(id, serving),
    ...(image === undefined ? {} : { image }),
    ...(vm === undefined ? {} : { vm }),
    ...(family === undefined ? {} : { family }),
    ...(parent === undefined ? {} : { parent }),
    createdAt,
    machine,
    pages,
    guest,
    deviceState: packDeviceState(fs.readFileSync(store.deviceState(snapshot))),
    objects: owned.map(({ owner, own }) => {
      const map = decodePageMap(fs.readFileSync(path.join(owner.folder, own.map)));
      const { name, sizeBytes, layers } = own;
      const unchanged = name === RAM ? {} : { owner: idEverywhere(owner.file.id, serving) };
      return { name, sizeBytes, map: packMap(map), layers, ...unchanged };
    }),
    faults: packTouches(faults),
  };
  return {
    served: here.map((origin) => servedLayers(store, origin)),
    for: (neighbourOf) => {
      const origins = originsOf({ here, owners, layers, serving }, neighbourOf);
      return { ...common, origins };
    },
  };
}

/** Where the pages come from: this host's own, and those that it gets from others itself. */
function originsOf(
  of: {
    readonly here: readonly Origin[];
    readonly owners: readonly Snapshot[];
    readonly layers: ReadonlySet<string>;
    readonly serving: ServingHost;
  },
  neighbourOf: (snapshot: string) => ServingHost | undefined,
): Origin[] {
  const here = of.here.map((origin): Origin => {
    const neighbour = neighbourOf(origin.snapshot);
    return { ...origin, ...(neighbour === undefined ? {} : { neighbour }) };
  });
  const elsewhere = of.owners.flatMap(({ file: { id, origins = [] } }) => {
    return origins.map(({ neighbour: _, ...origin }): Origin => {
      // This host and that one fetch it for themselves: all of it, or they could not serve it.
      const isWhole = origin.layers.every((layer) => of.layers.has(layer));
      return isWhole ? { ...origin, neighbour: neighbourOf(id) ?? of.serving } : origin;
    });
  });
  return [...new Map([...here, ...elsewhere].map((origin) => [origin.key, origin])).values()];
}

/** What this host's memory server has to serve of a snapshot that was lent: its own objects. */
export function servedHere(
  store: SnapshotStore,
  snapshot: Snapshot,
  serving: ServingHost,
): ServedLayers {
  return servedLayers(store, originHere(store, snapshot, serving));
}

/** The snapshot's own objects, as far as their pages lie here: all but those that come from other hosts. */
function originHere(store: SnapshotStore, snapshot: Snapshot, serving: ServingHost): Origin {
  const { id, objects } = snapshot.file;
  const all = new Set(objects.flatMap((object) => ('layers' in object ? object.layers : [])));
  const elsewhere = new Set((snapshot.file.origins ?? []).flatMap((origin) => origin.layers));
  const here = [...all].filter((layer) => !elsewhere.has(layer));
  // Those of a snapshot that was detached come last: hosts that it was lent to before count the others.
  const isReplica = (layer: string) => store.isReplica(layer);
  const layers = [...here.filter((layer) => !isReplica(layer)), ...here.filter(isReplica)];
  const { key, groupAddress } = store.served(snapshot);
  return {
    ...serving,
    snapshot: id,
    key,
    group: { address: groupAddress, port: GROUP_PORT },
    layers,
  };
}

function servedLayers(
  store: SnapshotStore,
  { snapshot, key, group, layers }: Origin,
): ServedLayers {
  return {
    snapshot,
    key,
    group,
    layers: layers.map((layer) => {
      const path = store.layerPath(layer);
      // Of a detached snapshot all that is needed is here, and is never let go.
      return store.isReplica(layer) ? { path, held: heldPath(path) } : { path };
    }),
  };
}

/** One that was made before the host was in a cluster has a name that others may have too. */
function idEverywhere(id: string, { host }: ServingHost): string {
  return hostOf(id) === undefined ? `${id}-${host}` : id;
}
