// The store of snapshots: ids that are given once, those of other hosts, and what goes when a host goes.

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
import { Journal } from '../../packages/clone-agent/src/store/journal.js';
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
  store = openStore();
});

afterEach(() => fs.rmSync(root, { recursive: true, force: true }));

/** As an agent does when it starts. */
function openStore(): SnapshotStore {
  const state = stateFolder(root);
  const journal = new Journal(state.journal, (error) => {
    throw error;
  });
  journal.hostName = () => 'beta';
  const events = {
    ready: async () => {},
    bring: async () => {},
    dropped: (id: string) => dropped.push(id),
    changed: () => {},
  };
  const opened = new SnapshotStore(state, events, journal);
  opened.load(new Set());
  return opened;
}

function begin() {
  const objects = [{ name: 'ram', sizeBytes: PAGES * PAGE_BYTES, map: 'ram.map', layers: [] }];
  return store.begin({ machine: descriptor.machine, kept: false, persistent: false, objects });
}

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

it('gives no id twice, though the snapshot has gone and the agent is another', () => {
  const ids: string[] = [];
  for (let agent = 0; agent < 3; agent++) {
    const snapshot = begin();
    ids.push(snapshot.file.id);
    store.abandon(snapshot);
    store = openStore();
  }
  expect(ids).toEqual(['s1-beta', 's2-beta', 's3-beta']);
});

it('gives no id of a snapshot that is there, though its numbers are lost', () => {
  const { number } = begin().file;
  fs.rmSync(stateFolder(root).journal, { recursive: true });
  store = openStore();
  expect(begin().file.number).toBe(number + 1);
});

describe('a snapshot of another host', () => {
  it('is taken in once', async () => {
    const snapshot = await store.takeIn(descriptor);
    expect(await store.takeIn(descriptor)).toBe(snapshot);
  });

  it.each([
    ['its own memory', { id: 's1-beta', objects: [object('ram', 'l9'), descriptor.objects[1]!] }],
    [
      'another’s disk',
      {
        id: 's2-beta',
        objects: [object('ram', 'l9'), { ...object('disk0', 'l8'), owner: 's0-alpha' }],
      },
    ],
  ])('with the id of one that is here is refused, as %s is not the same', async (_, of) => {
    const other: Descriptor = { ...descriptor, ...of };
    const here = await store.takeIn(descriptor);
    here.users.add('vm3-beta');
    await expect(store.takeIn(other)).rejects.toMatchObject({
      code: 'SF_SNAPSHOT_IN_USE',
      message: expect.stringMatching(/has another snapshot s\S+, of a host that was set up anew/),
    });
    here.users.delete('vm3-beta');
    store.collect(here);
    store.hostLost('alpha');
    expect((await store.takeIn(other)).file.id).toBe(other.id);
    store.hostLost('alpha');
  });
});

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
