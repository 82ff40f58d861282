// Describes a snapshot for a host that is to run clones of it: what it must have at once, and where
// the pages come from. Called when clones are started elsewhere; changes nothing but the snapshot's
// key, which is drawn the first time.

import fs from 'node:fs';
import path from 'node:path';
import { decodePageMap } from '@snowfork/memserver/pages';
import { type Descriptor, packMap } from './descriptor.js';
import { hostOf } from './journal.js';
import type { Origin } from './origins.js';
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

/** What the memory server must be told is `served`, before anybody hears of the descriptor. */
export function describeSnapshot(
  store: SnapshotStore,
  snapshot: Snapshot,
  of: {
    readonly serving: ServingHost;
    readonly faults: readonly number[];
    /** A host that fetches this snapshot too, for the one that it is described to. */
    neighbourOf(snapshot: string): ServingHost | undefined;
  },
): { descriptor: Descriptor; served: ServedLayers[] } {
  const { file } = snapshot;
  const { serving, faults, neighbourOf } = of;
  const owned = file.objects.map((object) => {
    const owner = store.ownerOf(snapshot, object);
    const own = owner.file.objects.find(({ name }) => name === object.name) as OwnObject;
    return { owner, own };
  });
  const owners = store.ownersOf(snapshot);
  const all = new Set(owned.flatMap(({ own }) => own.layers));
  const here = owners
    .map((owner) => originHere(store, owner, serving))
    .filter(({ layers }) => layers.length > 0)
    .map((origin): Origin => {
      const neighbour = neighbourOf(origin.snapshot);
      return { ...origin, ...(neighbour === undefined ? {} : { neighbour }) };
    });
  const elsewhere = owners.flatMap(({ file: { id, origins = [] } }) => {
    return origins.map(({ neighbour: _, ...origin }): Origin => {
      // This host and that one fetch it for themselves: all of it, or they could not serve it.
      const isWhole = origin.layers.every((layer) => all.has(layer));
      return isWhole ? { ...origin, neighbour: neighbourOf(id) ?? serving } : origin;
    });
  });
  const { id, image, vm, family, parent, createdAt, machine, pages, guest } = file;
  const descriptor: Descriptor = {
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
    deviceState: fs.readFileSync(store.deviceState(snapshot)),
    objects: owned.map(({ owner, own }) => {
      const map = decodePageMap(fs.readFileSync(path.join(owner.folder, own.map)));
      const { name, sizeBytes, layers } = own;
      const unchanged = name === RAM ? {} : { owner: idEverywhere(owner.file.id, serving) };
      return { name, sizeBytes, map: packMap(map), layers, ...unchanged };
    }),
    origins: [...new Map([...here, ...elsewhere].map((origin) => [origin.key, origin])).values()],
    faults: [...faults],
  };
  return { descriptor, served: here.map((origin) => servedLayers(store, origin)) };
}

/** What this host's memory server has to serve of a snapshot that was lent: its own objects. */
export function servedHere(
  store: SnapshotStore,
  snapshot: Snapshot,
  serving: ServingHost,
): ServedLayers {
  return servedLayers(store, originHere(store, snapshot, serving));
}

/** The snapshot's own objects, as far as their layers lie here whole. */
function originHere(store: SnapshotStore, snapshot: Snapshot, serving: ServingHost): Origin {
  const { id, objects } = snapshot.file;
  const all = new Set(objects.flatMap((object) => ('layers' in object ? object.layers : [])));
  const layers = [...all].filter((layer) => !store.isReplica(layer));
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
    layers: layers.map((layer) => ({ path: store.layerPath(layer) })),
  };
}

/** One that was made before the host was in a cluster has a name that others may have too. */
function idEverywhere(id: string, { host }: ServingHost): string {
  return hostOf(id) === undefined ? `${id}-${host}` : id;
}
