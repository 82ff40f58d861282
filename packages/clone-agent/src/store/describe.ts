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
  readonly group: { readonly address: string; readonly port: number };
  readonly layers: readonly { readonly path: string }[];
}

export function describeSnapshot(
  store: SnapshotStore,
  snapshot: Snapshot,
  { serving, faults }: { serving: ServingHost; faults: readonly number[] },
): { descriptor: Descriptor; served: ServedLayers } {
  const { file } = snapshot;
  const owned = file.objects.map((object) => {
    const owner = store.ownerOf(snapshot, object);
    const own = owner.file.objects.find(({ name }) => name === object.name) as OwnObject;
    return { owner, own };
  });
  const all = [...new Set(owned.flatMap(({ own }) => own.layers))];
  const whole = all.filter((layer) => !store.isReplica(layer));
  const { key, groupAddress } = store.served(snapshot);
  const group = { address: groupAddress, port: GROUP_PORT };
  const here: Origin = { ...serving, snapshot: file.id, key, group, layers: whole };
  const elsewhere = owned.flatMap(({ owner }) => owner.file.origins ?? []);
  const { id, image, vm, family, parent, createdAt, machine, pages, guest } = file;
  const descriptor: Descriptor = {
    version: 1,
    // One that was made before the host was in a cluster has a name that others may have too.
    id: hostOf(id) === undefined ? `${id}-${serving.host}` : id,
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
      return { name: own.name, sizeBytes: own.sizeBytes, map: packMap(map), layers: own.layers };
    }),
    origins: [here, ...new Map(elsewhere.map((origin) => [origin.key, origin])).values()],
    faults: [...faults],
  };
  const layers = whole.map((layer) => ({ path: store.layerPath(layer) }));
  return { descriptor, served: { snapshot: id, key, group, layers } };
}
