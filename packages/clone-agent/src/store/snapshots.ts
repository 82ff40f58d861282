// Every snapshot of this host and the layers they stand on: makes them, says who needs them, and
// collects what nobody needs. It owns `run/snapshots`, `run/layers` and their persistent twins; the
// pager reads those folders and is told when one is complete or gone. Knows nothing of QEMU.

import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import {
  decodePageMap,
  encodePageMap,
  HeldPages,
  KEY_BYTES,
  PAGE_BYTES,
  type PageMap,
} from '@snowfork/memserver';
import {
  type FreezeTimes,
  type Machine,
  type PageCounts,
  type SnapshotInfo,
  SnowforkError,
} from '@snowfork/sdk/api';
import type { LayerStack } from '../freeze/layer-stack.js';
import { type Descriptor, unpackDeviceState, unpackMap, unpackTouches } from './descriptor.js';
import { hostId, type Journal } from './journal.js';
import { heldPath, type Origin } from './origins.js';
import {
  type OwnObject,
  type Served,
  type SnapshotFile,
  snapshotFileSchema,
} from './snapshot-file.js';
import type { StateFolder } from './state-folder.js';

export interface Snapshot {
  file: SnapshotFile;
  readonly folder: string;
  /** Belongs to an image: lies on disk and outlives the agent. */
  readonly persistent: boolean;
  /** VMs whose RAM is mapped from it. */
  readonly users: Set<string>;
  /** Why it is needed besides: an unused ticket, the newest of a VM that goes on. */
  readonly holders: Set<string>;
  map: PageMap | undefined;
  freeze: FreezeTimes | undefined;
}

/** What a freeze found, to complete a snapshot that was begun. */
export interface FrozenMemory {
  readonly map: PageMap;
  readonly layers: string[];
  readonly pages: PageCounts;
  readonly layerBytes: number;
  readonly deviceStateBytes: number;
  readonly guest: SnapshotFile['guest'];
  /** Snapshots whose clones touched first what this one's will, the oldest first. */
  readonly like: readonly string[];
}

export interface SnapshotStoreEvents {
  /**
   * The pager may serve it now; `like`: older snapshots of the family, the oldest first; `first`: pages
   * that its clones touched first elsewhere.
   */
  ready(
    snapshot: string,
    of: { like?: readonly string[]; first?: readonly number[] },
  ): Promise<void>;
  /** Resolves when pages of its RAM are on this host that lie on others, or can't be for now. */
  bring(snapshot: string, pages: readonly number[]): Promise<void>;
  /** The pager must forget it. */
  dropped(snapshot: string): void;
  changed(snapshot: string): void;
}

/** At the end of the ids of snapshots that are disks and nothing else. */
const DISKS = '.disks';
const LATELY = 'lately';
const DISKS_KEPT_MS = 120_000;
/** Layers of many hosts meet. */
const LAYER_ID_BYTES = 8;
/** Several times what is known of: 0.4 MB. */
const DEVICE_STATE_BYTES_MAX = 2 * 1024 * 1024;

const NO_PAGES: PageCounts = {
  totalPages: 0,
  privatePages: 0,
  freePages: 0,
  zeroPages: 0,
  referencedPages: 0,
  storedPages: 0,
};

export class SnapshotStore {
  readonly #state: StateFolder;
  readonly #events: SnapshotStoreEvents;
  readonly #journal: Pick<Journal, 'next' | 'hostName'>;
  readonly #snapshots = new Map<string, Snapshot>();
  /** By id of disks that were taken in: when nobody needs them for long, they go. */
  readonly #lately = new Map<string, NodeJS.Timeout>();
  /** Of snapshots that were there at the start: what has numbered them may be gone. */
  #highest = 0;

  /** `journal`: gives numbers that no agent before this one has given. */
  constructor(
    state: StateFolder,
    events: SnapshotStoreEvents,
    journal: Pick<Journal, 'next' | 'hostName'>,
  ) {
    this.#state = state;
    this.#events = events;
    this.#journal = journal;
  }

  /**
   * Takes over the snapshots of images, and those of the agent before this one that are whole. What
   * was half-made goes: images that none is named after, freezes that have not ended.
   */
  load(named: ReadonlySet<string>): void {
    this.#loadImages(named);
    this.#loadRun();
  }

  #loadImages(named: ReadonlySet<string>): void {
    for (const id of fs.readdirSync(this.#state.imageSnapshots)) {
      const folder = path.join(this.#state.imageSnapshots, id);
      if (!named.has(id)) {
        fs.rmSync(folder, { recursive: true, force: true });
        continue;
      }
      this.#take(readSnapshotFile(folder), folder, true);
      link(folder, path.join(this.#state.runSnapshots, id));
    }
    const needed = this.#neededLayers();
    for (const id of fs.readdirSync(this.#state.imageLayers)) {
      const file = path.join(this.#state.imageLayers, id);
      if (needed.has(id)) link(file, path.join(this.#state.runLayers, id));
      else fs.rmSync(file, { force: true });
    }
  }

  #loadRun(): void {
    for (const entry of fs.readdirSync(this.#state.runSnapshots, { withFileTypes: true })) {
      const folder = path.join(this.#state.runSnapshots, entry.name);
      if (this.#snapshots.has(entry.name)) continue;
      const file = entry.isDirectory() ? tryReadSnapshotFile(folder) : undefined;
      if (file !== undefined && file.pending === undefined) {
        this.#take(file, folder, false);
        continue;
      }
      if (file !== undefined) this.#highest = Math.max(this.#highest, file.number);
      fs.rmSync(folder, { recursive: true, force: true });
      this.#events.dropped(entry.name);
    }
    const needed = this.#neededLayers();
    for (const name of fs.readdirSync(this.#state.runLayers)) {
      const id = name.split('.')[0]!;
      if (!needed.has(id)) this.#deleteLayer(id);
    }
  }

  #take(file: SnapshotFile, folder: string, persistent: boolean): void {
    this.#snapshots.set(file.id, newSnapshot(file, folder, persistent));
    this.#highest = Math.max(this.#highest, file.number);
  }

  #nextNumber(): number {
    return this.#journal.next('snapshot', this.#highest);
  }

  /** Deletes what nothing needs; when all that may need something has said so. */
  collectAll(): void {
    for (const snapshot of [...this.#snapshots.values()]) this.collect(snapshot);
  }

  /**
   * Makes a snapshot whose objects have their sizes and no content yet, so that QEMUs can be pointed
   * at it while the freeze goes on.
   * @throws SnowforkError SF_LAYERS_FULL.
   */
  begin(of: {
    machine: Machine;
    image?: string | undefined;
    vm?: string | undefined;
    family?: SnapshotFile['family'];
    parent?: string | undefined;
    kept: boolean;
    persistent: boolean;
    objects: SnapshotFile['objects'];
  }): Snapshot {
    if (!of.persistent) this.#assertRoomBesidePages(of.machine);
    const number = this.#nextNumber();
    const id = hostId('s', number, this.#journal.hostName());
    const file: SnapshotFile = {
      version: 1,
      pending: true,
      number,
      id,
      ...(of.image === undefined ? {} : { image: of.image }),
      ...(of.vm === undefined ? {} : { vm: of.vm }),
      ...(of.family === undefined ? {} : { family: of.family }),
      ...(of.parent === undefined ? {} : { parent: of.parent }),
      createdAt: Date.now(),
      kept: of.kept,
      machine: of.machine,
      pages: NO_PAGES,
      layerBytes: 0,
      deviceStateBytes: 0,
      objects: of.objects,
      guest: { pending: [] },
    };
    const folder = this.#makeFolder(id, of.persistent);
    const snapshot = newSnapshot(file, folder, of.persistent);
    for (const object of of.objects) {
      if ('layers' in object && object.layers.length === 1) writeWholeMap(folder, object);
    }
    writeSnapshotFile(snapshot);
    this.#snapshots.set(id, snapshot);
    return snapshot;
  }

  /** A name, the same on every host that will have it, and a path for a layer to be written. */
  newLayer(persistent: boolean): { id: string; path: string } {
    const id = `l${randomBytes(LAYER_ID_BYTES).toString('hex')}`;
    const inRun = path.join(this.#state.runLayers, id);
    if (!persistent) return { id, path: inRun };
    const onDisk = path.join(this.#state.imageLayers, id);
    fs.symlinkSync(onDisk, inRun);
    return { id, path: onDisk };
  }

  layerPath(id: string): string {
    return path.join(this.#state.runLayers, id);
  }

  /** The snapshot has its content now; whoever waits for a page of it gets it. */
  async complete(snapshot: Snapshot, frozen: FrozenMemory): Promise<void> {
    const ram = ramObject(snapshot);
    const { pending: _, ...file } = snapshot.file;
    snapshot.map = frozen.map;
    snapshot.file = {
      ...file,
      pages: frozen.pages,
      layerBytes: frozen.layerBytes,
      deviceStateBytes: frozen.deviceStateBytes,
      guest: frozen.guest,
      objects: file.objects.map((object) =>
        object.name === ram.name ? { ...ram, layers: frozen.layers } : object,
      ),
      ...this.#originsOf(frozen),
    };
    fs.writeFileSync(path.join(snapshot.folder, ram.map), encodePageMap(frozen.map));
    writeSnapshotFile(snapshot);
    await this.#events.ready(snapshot.file.id, { like: frozen.like });
    this.#events.changed(snapshot.file.id);
  }

  /** Of the layers that a freeze took over from snapshots of other hosts. */
  #originsOf({ layers, like }: FrozenMemory): { origins?: Origin[] } {
    const missing = new Set(layers.filter((layer) => this.isReplica(layer)));
    if (missing.size === 0) return {};
    const origins: Origin[] = [];
    for (const origin of like.flatMap((id) => this.#snapshots.get(id)?.file.origins ?? [])) {
      const gives = origin.layers.filter((layer) => missing.delete(layer));
      if (gives.length > 0) origins.push(origin);
    }
    return { origins };
  }

  /** Adds an object that is whole already, such as a disk: the file becomes its one layer. */
  addWholeObject(name: string, filePath: string): OwnObject {
    const layer = this.newLayer(true);
    fs.copyFileSync(filePath, layer.path, fs.constants.COPYFILE_FICLONE);
    const { size } = fs.statSync(layer.path);
    const sizeBytes = Math.ceil(size / PAGE_BYTES) * PAGE_BYTES;
    fs.truncateSync(layer.path, sizeBytes);
    return storedObject({ name, sizeBytes, layers: [layer.id] });
  }

  /**
   * Takes in a snapshot of another host. Its pages come when they are wanted: what of its layers is
   * not whole here becomes a replica, which holds nothing yet.
   * @throws SnowforkError SF_LAYERS_FULL, SF_BAD_REQUEST, SF_SNAPSHOT_IN_USE: another has its id here.
   */
  async takeIn(descriptor: Descriptor): Promise<Snapshot> {
    const own = descriptor.objects.filter(({ owner }) => owner === undefined);
    const known = this.#known(descriptor.id, own);
    if (known !== undefined) return known;
    const { id, image, vm, family, parent, createdAt, machine, pages, guest } = descriptor;
    const first = unpackTouches(descriptor.faults);
    const deviceState = unpackDeviceState(descriptor.deviceState);
    this.#assertRoomBesidePages(machine);
    const objects: SnapshotFile['objects'] = [];
    for (const { name, sizeBytes, owner } of descriptor.objects) {
      if (owner === undefined) continue;
      const disks = await this.#takeInDisks(owner, descriptor);
      objects.push({ name, sizeBytes, from: `${disks.file.id}/${name}` });
    }
    // Somebody else has taken it in meanwhile.
    const taken = this.#known(id, own);
    if (taken !== undefined) return taken;
    const file: SnapshotFile = {
      version: 1,
      number: this.#nextNumber(),
      id,
      ...(image === undefined ? {} : { image }),
      ...(vm === undefined ? {} : { vm }),
      ...(family === undefined ? {} : { family }),
      ...(parent === undefined ? {} : { parent }),
      createdAt,
      kept: false,
      machine,
      pages,
      layerBytes: 0,
      deviceStateBytes: deviceState.length,
      objects: [...own.map(storedObject), ...objects],
      guest,
    };
    const snapshot = this.#makeTaken(file, { descriptor, own, deviceState });
    await this.#events.ready(id, { first });
    this.#events.changed(id);
    return snapshot;
  }

  /**
   * Disks of another host's snapshot, for whatever has them unchanged: one path for all of it, so that
   * a QEMU that was started for one fits the next.
   */
  async #takeInDisks(owner: string, descriptor: Descriptor): Promise<Snapshot> {
    const id = owner.endsWith(DISKS) ? owner : `${owner}${DISKS}`;
    const objects = descriptor.objects.filter((object) => object.owner === owner);
    const known = this.#known(id, objects);
    if (known !== undefined) {
      this.#keepLately(known);
      return known;
    }
    const { createdAt, machine } = descriptor;
    const file: SnapshotFile = {
      ...{ version: 1, number: this.#nextNumber(), id, createdAt, kept: false, machine },
      ...{ pages: NO_PAGES, layerBytes: 0, deviceStateBytes: 0, guest: { pending: [] } },
      objects: objects.map(storedObject),
    };
    const disks = this.#makeTaken(file, { descriptor, own: objects });
    this.#keepLately(disks);
    await this.#events.ready(id, {});
    return disks;
  }

  /**
   * A snapshot of another host that is here already. A host whose state folder was removed gives its ids
   * again; layers have names that nobody gives twice.
   * @throws SnowforkError SF_SNAPSHOT_IN_USE: it is another one.
   */
  #known(id: string, objects: Descriptor['objects']): Snapshot | undefined {
    const known = this.find(id);
    if (known === undefined) return undefined;
    const isSame = objects.every(({ name, layers }) => {
      const own = known.file.objects.find((object) => object.name === name);
      return own !== undefined && 'layers' in own && isEqual(own.layers, layers);
    });
    if (isSame) return known;
    const users = [...known.users];
    const what = `this host has another snapshot ${id}, of a host that was set up anew since`;
    const remedy = users.length === 0 ? 'try again later' : `end ${users.join(', ')} first`;
    throw new SnowforkError('SF_SNAPSHOT_IN_USE', `${what}: ${remedy}`, {
      details: { users },
    });
  }

  #makeTaken(
    file: SnapshotFile,
    of: { descriptor: Descriptor; own: Descriptor['objects']; deviceState?: Buffer },
  ): Snapshot {
    const { descriptor, own, deviceState } = of;
    const maps = own.map(({ map }) => unpackMap(map));
    for (const { layers, sizeBytes } of own) {
      for (const layer of layers) this.#makeReplica(layer, sizeBytes);
    }
    const missing = new Set(own.flatMap(({ layers }) => layers.filter((id) => this.isReplica(id))));
    // Each layer from one, the first that gives it.
    const gives = ({ layers }: Origin) => layers.filter((id) => missing.delete(id)).length > 0;
    const origins = descriptor.origins.filter(gives);
    const folder = this.#makeFolder(file.id, false);
    const snapshot = newSnapshot({ ...file, origins }, folder, false);
    for (const [index, object] of own.entries()) {
      fs.writeFileSync(path.join(folder, mapName(object)), encodePageMap(maps[index]!));
    }
    if (deviceState !== undefined) {
      fs.writeFileSync(this.deviceState(snapshot), deviceState, { mode: 0o600 });
    }
    // Last: with it the snapshot is whole.
    writeSnapshotFile(snapshot);
    this.#snapshots.set(file.id, snapshot);
    return snapshot;
  }

  /** Of disks: the next snapshot that has them is likely to come soon. */
  #keepLately(disks: Snapshot): void {
    disks.holders.add(LATELY);
    const { id } = disks.file;
    clearTimeout(this.#lately.get(id));
    const timer = setTimeout(() => this.#letGo(disks), DISKS_KEPT_MS);
    this.#lately.set(id, timer.unref());
  }

  /** A host is gone: no snapshot will come whose disks can be read from there. */
  hostLost(host: string): void {
    for (const id of this.#lately.keys()) {
      const disks = this.#snapshots.get(id);
      const isItsOwn = disks?.file.origins?.some((origin) => origin.host === host);
      if (disks !== undefined && isItsOwn) this.#letGo(disks);
    }
  }

  #letGo(disks: Snapshot): void {
    const { id } = disks.file;
    clearTimeout(this.#lately.get(id));
    this.#lately.delete(id);
    disks.holders.delete(LATELY);
    this.collect(disks);
  }

  /** With what the snapshot is served to other hosts, the same for as long as it lives. */
  served(snapshot: Snapshot): Served {
    if (snapshot.file.served === undefined) {
      snapshot.file = { ...snapshot.file, served: newServed() };
      writeSnapshotFile(snapshot);
    }
    return snapshot.file.served!;
  }

  /** Another host needs pages of it, until `takeBack`. */
  lend(snapshot: Snapshot, host: string): void {
    const lentTo = snapshot.file.lentTo ?? [];
    if (lentTo.includes(host)) return;
    snapshot.file = { ...snapshot.file, lentTo: [...lentTo, host] };
    writeSnapshotFile(snapshot);
  }

  /** The host needs it no more. */
  takeBack(snapshot: Snapshot, host: string): void {
    const { lentTo } = snapshot.file;
    if (lentTo?.includes(host) !== true) return;
    snapshot.file = { ...snapshot.file, lentTo: lentTo.filter((other) => other !== host) };
    this.collect(snapshot);
    if (this.#snapshots.has(snapshot.file.id)) writeSnapshotFile(snapshot);
  }

  /** The snapshot, and those that objects of it are unchanged since. */
  ownersOf(snapshot: Snapshot): Snapshot[] {
    const owners = snapshot.file.objects.map((object) => this.ownerOf(snapshot, object));
    return [...new Set([snapshot, ...owners])];
  }

  /** The snapshot that an object of it is unchanged since, or itself. */
  ownerOf(snapshot: Snapshot, object: SnapshotFile['objects'][number]): Snapshot {
    if (!('from' in object)) return snapshot;
    return this.get(object.from.split('/')[0]!);
  }

  /** All of the snapshot's pages are here, and stay: no other host is asked for them any more. */
  detached(snapshot: Snapshot): void {
    const { origins: _, ...file } = snapshot.file;
    snapshot.file = file;
    writeSnapshotFile(snapshot);
    this.#events.changed(file.id);
  }

  /** Whether the layer lies on another host, and here only what came of it. */
  isReplica(layer: string): boolean {
    return fs.existsSync(heldPath(this.layerPath(layer)));
  }

  #makeReplica(layer: string, sizeBytes: number): void {
    const file = this.layerPath(layer);
    if (fs.existsSync(file)) return;
    HeldPages.create(heldPath(file), Math.ceil(sizeBytes / PAGE_BYTES));
    fs.writeFileSync(file, '', { mode: 0o600 });
    fs.truncateSync(file, sizeBytes);
  }

  /** Undoes `begin` after a freeze that failed. */
  abandon(snapshot: Snapshot): void {
    if (this.#snapshots.has(snapshot.file.id)) this.#delete(snapshot);
  }

  /** One that is complete. */
  find(id: string): Snapshot | undefined {
    const snapshot = this.#snapshots.get(id);
    return snapshot?.file.pending === undefined ? snapshot : undefined;
  }

  /** @throws SnowforkError SF_SNAPSHOT_NOT_FOUND. */
  get(id: string): Snapshot {
    const snapshot = this.find(id);
    if (snapshot !== undefined) return snapshot;
    throw new SnowforkError(
      'SF_SNAPSHOT_NOT_FOUND',
      `there is no snapshot ${id}: \`sf snapshot ls\` lists those that are kept`,
    );
  }

  all(): Iterable<Snapshot> {
    return this.#snapshots.values();
  }

  list(): SnapshotInfo[] {
    const complete = [...this.#snapshots.values()].filter(
      ({ file }) => file.pending === undefined && !file.id.endsWith(DISKS),
    );
    return complete.map((snapshot) => this.info(snapshot));
  }

  info(snapshot: Snapshot): SnapshotInfo {
    const { id, image, vm, parent, createdAt, machine, pages, kept } = snapshot.file;
    const { layerBytes, deviceStateBytes } = snapshot.file;
    return {
      id,
      ...(image === undefined ? {} : { image }),
      ...(vm === undefined ? {} : { vm }),
      ...(parent === undefined ? {} : { parent }),
      createdAt,
      machine,
      pages,
      kept,
      layers: ramObject(snapshot).layers.length,
      layerBytes,
      deviceStateBytes,
      ...(snapshot.freeze === undefined ? {} : { freeze: snapshot.freeze }),
      users: [...snapshot.users],
    };
  }

  pageMap(snapshot: Snapshot): PageMap {
    const file = path.join(snapshot.folder, ramObject(snapshot).map);
    snapshot.map ??= decodePageMap(fs.readFileSync(file));
    return snapshot.map;
  }

  /** Pages of a snapshot's RAM that lie on other hosts; some may still not be here after that. */
  async bring(snapshot: Snapshot, pages: readonly number[]): Promise<void> {
    await this.#events.bring(snapshot.file.id, pages);
  }

  /** The page map and the layers' paths of a snapshot's RAM. */
  memory(snapshot: Snapshot): LayerStack {
    const layers = ramObject(snapshot).layers.map((id) => {
      const path = this.layerPath(id);
      return this.isReplica(id) ? { id, path, held: heldPath(path) } : { id, path };
    });
    return { map: this.pageMap(snapshot), layers };
  }

  /** The RAM as QEMU maps it. */
  ramPath(snapshot: Snapshot): string {
    return path.join(this.#state.mount, snapshot.file.id, ramObject(snapshot).name);
  }

  /** The disk as QEMU opens it: with the snapshot that it has not changed since. */
  diskPath(snapshot: Snapshot): string {
    const disk = snapshot.file.objects.find((object) => object.name === 'disk0');
    const origin = disk !== undefined && 'from' in disk ? disk.from : `${snapshot.file.id}/disk0`;
    return path.join(this.#state.mount, origin);
  }

  deviceState(snapshot: Snapshot): string {
    return path.join(snapshot.folder, 'device');
  }

  /**
   * Deletes a kept snapshot.
   * @throws SnowforkError SF_SNAPSHOT_IN_USE, naming the users; SF_SNAPSHOT_NOT_FOUND.
   */
  remove(id: string): void {
    const snapshot = this.get(id);
    if (snapshot.file.image !== undefined && snapshot.file.kept) {
      throw new SnowforkError(
        'SF_SNAPSHOT_IN_USE',
        `${id} is the image ${snapshot.file.image}: \`sf image rm ${snapshot.file.image}\` removes it`,
        { details: { image: snapshot.file.image } },
      );
    }
    this.release(snapshot);
  }

  /** Ends the keeping of a snapshot, which deletes it. @throws SnowforkError SF_SNAPSHOT_IN_USE. */
  release(snapshot: Snapshot): void {
    const { id } = snapshot.file;
    const hosts = (snapshot.file.lentTo ?? []).map((host) => `host ${host}`);
    const needs = [...snapshot.users, ...snapshot.holders, ...hosts, ...this.#heirs(id)];
    if (needs.length > 0) {
      throw new SnowforkError(
        'SF_SNAPSHOT_IN_USE',
        `snapshot ${id} is in use by ${needs.join(', ')}: end them first`,
        { details: { users: needs } },
      );
    }
    this.#delete(snapshot);
  }

  /** Deletes the snapshot when nothing needs it any more; to be called when a need has ended. */
  collect(snapshot: Snapshot): void {
    const { id, kept, pending, lentTo = [] } = snapshot.file;
    if (kept || pending || !this.#snapshots.has(id)) return;
    if (snapshot.users.size > 0 || snapshot.holders.size > 0) return;
    if (lentTo.length > 0 || this.#heirs(id).length > 0) return;
    this.#delete(snapshot);
  }

  /** Snapshots that inherit an object of `id`. */
  #heirs(id: string): string[] {
    const heirs: string[] = [];
    for (const { file } of this.#snapshots.values()) {
      const inherits = file.objects.some((o) => 'from' in o && o.from.startsWith(`${id}/`));
      if (inherits) heirs.push(file.id);
    }
    return heirs;
  }

  /** So that neither a pause is begun that can't succeed, nor QEMU asked to write to a full disk. */
  #assertRoomBesidePages(machine: Machine): void {
    const { bavail, bsize } = fs.statfsSync(this.#state.run);
    const pageMapBytes = (machine.memoryBytes / PAGE_BYTES) * Uint16Array.BYTES_PER_ELEMENT;
    if (bavail * bsize >= DEVICE_STATE_BYTES_MAX + pageMapBytes) return;
    throw new SnowforkError(
      'SF_LAYERS_FULL',
      'the tmpfs for layers is full: delete snapshots or raise layersBytesMax',
    );
  }

  #makeFolder(id: string, persistent: boolean): string {
    const inRun = path.join(this.#state.runSnapshots, id);
    const folder = persistent ? path.join(this.#state.imageSnapshots, id) : inRun;
    fs.mkdirSync(folder, { mode: 0o700 });
    if (persistent) fs.symlinkSync(folder, inRun);
    return folder;
  }

  #delete(snapshot: Snapshot): void {
    const { id, objects } = snapshot.file;
    this.#snapshots.delete(id);
    if (snapshot.persistent) fs.rmSync(path.join(this.#state.runSnapshots, id), { force: true });
    fs.rmSync(snapshot.folder, { recursive: true, force: true });
    // After the folder: the pager would find it again.
    this.#events.dropped(id);
    const needed = this.#neededLayers();
    const own = objects.flatMap((object) => ('layers' in object ? object.layers : []));
    for (const layer of own) if (!needed.has(layer)) this.#deleteLayer(layer);
    this.#events.changed(id);
    this.#collectOrigins(objects);
  }

  /** A snapshot whose last heir has gone may be needless now. */
  #collectOrigins(objects: SnapshotFile['objects']): void {
    for (const object of objects) {
      const origin = 'from' in object && this.#snapshots.get(object.from.split('/')[0]!);
      if (origin) this.collect(origin);
    }
  }

  #deleteLayer(id: string): void {
    fs.rmSync(this.layerPath(id), { force: true });
    fs.rmSync(heldPath(this.layerPath(id)), { force: true });
    fs.rmSync(path.join(this.#state.imageLayers, id), { force: true });
  }

  #neededLayers(): Set<string> {
    const needed = new Set<string>();
    for (const { file } of this.#snapshots.values()) {
      for (const object of file.objects) {
        if ('layers' in object) for (const layer of object.layers) needed.add(layer);
      }
    }
    return needed;
  }
}

export function ramObject(snapshot: Snapshot): OwnObject {
  const ram = snapshot.file.objects.find((object) => object.name === 'ram');
  if (ram === undefined || !('layers' in ram)) throw new Error('a snapshot without RAM');
  return ram;
}

/** What is still said of a snapshot by a VM that has ended. */
export function goneSnapshot(id: string, machine: Machine): Snapshot {
  const file: SnapshotFile = {
    version: 1,
    number: 0,
    id,
    createdAt: 0,
    kept: false,
    machine,
    pages: NO_PAGES,
    layerBytes: 0,
    deviceStateBytes: 0,
    objects: [],
    guest: { pending: [] },
  };
  return newSnapshot(file, '', false);
}

function isEqual(one: readonly string[], other: readonly string[]): boolean {
  return one.length === other.length && one.every((id, index) => id === other[index]);
}

function storedObject(of: { name: string; sizeBytes: number; layers: string[] }): OwnObject {
  const { name, sizeBytes, layers } = of;
  return { name, sizeBytes, map: mapName(of), layers };
}

function mapName({ name }: { readonly name: string }): string {
  return `${name}.map`;
}

function readSnapshotFile(folder: string): SnapshotFile {
  const json = fs.readFileSync(path.join(folder, 'snapshot.json'), 'utf8');
  return snapshotFileSchema.parse(JSON.parse(json));
}

/** Undefined when the agent was killed before it had written it. */
function tryReadSnapshotFile(folder: string): SnapshotFile | undefined {
  try {
    return readSnapshotFile(folder);
  } catch {
    return undefined;
  }
}

/** The agent before this one may have made it. */
function link(target: string, at: string): void {
  fs.rmSync(at, { force: true });
  fs.symlinkSync(target, at);
}

function newSnapshot(file: SnapshotFile, folder: string, persistent: boolean): Snapshot {
  const none = { users: new Set<string>(), holders: new Set<string>() };
  return { file, folder, persistent, ...none, map: undefined, freeze: undefined };
}

/** A group of the organisation's scope (RFC 2365), which nobody else is likely to have drawn. */
function newServed(): Served {
  const [high, middle, low] = randomBytes(3);
  const groupAddress = `239.${192 + (high! & 3)}.${middle}.${low}`;
  return { key: randomBytes(KEY_BYTES).toString('base64'), groupAddress };
}

/** The page map of an object that lies in one layer, whole. */
function writeWholeMap(folder: string, object: OwnObject): void {
  const entries = new Uint16Array(object.sizeBytes / PAGE_BYTES).fill(1);
  fs.writeFileSync(path.join(folder, object.map), encodePageMap({ entries, layerCount: 1 }));
}

function writeSnapshotFile(snapshot: Snapshot): void {
  const file = path.join(snapshot.folder, 'snapshot.json');
  fs.writeFileSync(`${file}.new`, JSON.stringify(snapshot.file));
  fs.renameSync(`${file}.new`, file);
}
