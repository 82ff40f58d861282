// Snapshots of other hosts in this one's store: what goes when a host goes.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  type Descriptor,
  packDeviceState,
  packMap,
  packTouches,
} from '../../packages/clone-agent/src/store/descriptor.js';
import { SnapshotStore } from '../../packages/clone-agent/src/store/snapshots.js';
import { stateFolder } from '../../packages/clone-agent/src/store/state-folder.js';

const PAGES = 16;
const PAGE_BYTES = 4096;
const DISKS = 's0-alpha.disks';

let root: string;
let store: SnapshotStore;
let dropped: string[];

beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-store-'));
  const state = stateFolder(root);
  const { runSnapshots, runLayers, imageSnapshots, imageLayers } = state;
  for (const folder of [runSnapshots, runLayers, imageSnapshots, imageLayers]) {
    fs.mkdirSync(folder, { recursive: true });
  }
  dropped = [];
  store = new SnapshotStore(state, {
    ready: async () => {},
    bring: async () => {},
    dropped: (id) => dropped.push(id),
    changed: () => {},
  });
});

afterEach(() => fs.rmSync(root, { recursive: true, force: true }));

function object(name: string, layer: string) {
  const map = packMap({ entries: new Uint16Array(PAGES).fill(1), layerCount: 1 });
  return { name, sizeBytes: PAGES * PAGE_BYTES, map, layers: [layer] };
}

function origin(host: string, snapshot: string, layer: string): Descriptor['origins'][number] {
  return {
    ...{ host, snapshot, layers: [layer], address: '10.0.0.1', port: 7000 },
    key: Buffer.alloc(32).toString('base64'),
    group: { address: '239.192.0.1', port: 7411 },
  };
}

/** A VM's snapshot on beta, whose disk is as it was on alpha. */
const descriptor: Descriptor = {
  ...{ version: 1, id: 's1-beta', createdAt: 0, faults: packTouches([]) },
  machine: {
    ...{ qemuVersion: '7.2.0', machineType: 'pc-q35-7.2', accelerator: 'tcg' },
    ...{ cpuModel: 'qemu64', memoryBytes: PAGES * PAGE_BYTES, vcpus: 1 },
  },
  pages: {
    ...{ totalPages: PAGES, privatePages: 0, freePages: 0, zeroPages: 0, referencedPages: 0 },
    storedPages: PAGES,
  },
  guest: { pending: [] },
  deviceState: packDeviceState(Buffer.alloc(0)),
  objects: [object('ram', 'l1'), { ...object('disk0', 'l0'), owner: 's0-alpha' }],
  origins: [origin('beta', 's1-beta', 'l1'), origin('alpha', 's0-alpha', 'l0')],
};

describe('disks of another host', () => {
  it('stay for a while when the snapshot that has them goes, as another may come', async () => {
    const snapshot = await store.takeIn(descriptor);
    store.collect(snapshot);
    expect(dropped).toEqual(['s1-beta']);
    const again = await store.takeIn(descriptor);
    expect(store.ownersOf(again).map(({ file }) => file.id)).toEqual(['s1-beta', DISKS]);
    store.hostLost('alpha');
    store.collect(again);
  });

  it('go at once when their host is lost, unless a snapshot needs them', async () => {
    const snapshot = await store.takeIn(descriptor);
    store.hostLost('beta');
    store.hostLost('alpha');
    expect(dropped).toEqual([]);
    store.collect(snapshot);
    expect(dropped).toEqual(['s1-beta', DISKS]);
    store.collect(await store.takeIn(descriptor));
    expect(dropped).toEqual(['s1-beta', DISKS, 's1-beta']);
    store.hostLost('beta');
    expect(dropped).toHaveLength(3);
    store.hostLost('alpha');
    expect(dropped.slice(3)).toEqual([DISKS]);
  });
});
