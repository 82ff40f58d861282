// The registry of what the mount shows: snapshots and their objects by name and by node id. It knows
// nothing but what lies in the run folder, so a pager that is started again knows the same. Lives on
// the main thread; loads page maps and layers when they are first needed and publishes them.

import fs from 'node:fs';
import path from 'node:path';
import {
  decodePageMap,
  type MappedFile,
  ObjectError,
  PagedObject,
} from '@snowfork/memserver/pages';
import type { Origin } from '../store/origins.js';
import { LayerTable } from './layer-table.js';
import { indexOfNode, numberOfNode, objectNode, ROOT_NODE, snapshotNode } from './nodes.js';
import { isMemory, newSharedObject, type SharedObject } from './served-object.js';
import {
  isName,
  listSnapshots,
  type OwnObject,
  readSnapshotFile,
  type SnapshotFile,
  snapshotFolder,
} from './snapshot-file.js';
import { closeTouchRecord, openTouchRecord, touchRecordPath } from './touch-record.js';

export type NodeInfo =
  | { readonly kind: 'root' | 'snapshot'; readonly nodeid: number }
  | {
      readonly kind: 'object';
      readonly nodeid: number;
      readonly snapshot: string;
      readonly name: string;
      readonly sizeBytes: number;
    };

/** What came of the wish to read an object: its content is there, will be, or never. */
export type Loaded =
  | { readonly state: 'loaded' }
  | { readonly state: 'pending' }
  | { readonly state: 'missing' };

interface OpenObject {
  readonly layers: readonly string[];
  readonly touches: MappedFile | undefined;
}

interface KnownSnapshot {
  file: SnapshotFile;
  /** What is open of the loaded objects, by node id. */
  readonly loaded: Map<number, OpenObject>;
}

export interface RegistryEvents {
  /** An object can be read now; `layers`: their names, `origins`: who has those that are replicas. */
  loaded(
    object: SharedObject,
    of: { readonly layers: readonly string[]; readonly origins: readonly Origin[] },
  ): void;
  complain(message: string): void;
}

export class Registry {
  readonly #runFolder: string;
  readonly #events: RegistryEvents;
  readonly #layers: LayerTable;
  readonly #snapshots = new Map<string, KnownSnapshot>();
  readonly #idOfNumber = new Map<number, string>();

  constructor(runFolder: string, events: RegistryEvents) {
    this.#runFolder = runFolder;
    this.#events = events;
    this.#layers = new LayerTable(runFolder);
  }

  /** The entry `name` of a folder. */
  lookup(parent: number, name: string): NodeInfo | undefined {
    if (parent === ROOT_NODE) {
      const snapshot = isName(name) ? this.#snapshot(name) : undefined;
      if (snapshot === undefined) return undefined;
      return { kind: 'snapshot', nodeid: snapshotNode(snapshot.file.number) };
    }
    const snapshot = this.#snapshotOfNode(parent);
    if (snapshot === undefined || indexOfNode(parent) >= 0) return undefined;
    const index = snapshot.file.objects.findIndex((object) => object.name === name);
    return index < 0 ? undefined : objectInfo(snapshot.file, index);
  }

  /** What a node id stands for, also one that a dead pager gave out. */
  node(nodeid: number): NodeInfo | undefined {
    if (nodeid === ROOT_NODE) return { kind: 'root', nodeid };
    const snapshot = this.#snapshotOfNode(nodeid);
    if (snapshot === undefined) return undefined;
    const index = indexOfNode(nodeid);
    return index < 0 ? { kind: 'snapshot', nodeid } : objectInfo(snapshot.file, index);
  }

  /** Makes an object readable. @throws Error when what lies on disk is broken. */
  load(nodeid: number): Loaded {
    const snapshot = this.#snapshotOfNode(nodeid);
    if (snapshot === undefined) return { state: 'missing' };
    if (snapshot.loaded.has(nodeid)) return { state: 'loaded' };
    const index = indexOfNode(nodeid);
    if (!this.#hasContent(snapshot, index)) this.#readAgain(snapshot);
    const object = snapshot.file.objects[index];
    if (object === undefined || 'from' in object) return { state: 'missing' };
    if (!this.#hasContent(snapshot, index)) return { state: 'pending' };
    this.#loadObject(snapshot, object, nodeid);
    return { state: 'loaded' };
  }

  /** Loads all objects of a snapshot that have their content. @throws Error when one is broken. */
  loadAll(id: string): NodeInfo[] {
    const snapshot = this.#snapshot(id);
    if (snapshot === undefined) throw new Error(`there is no snapshot ${id}`);
    const objects: NodeInfo[] = [];
    for (const index of snapshot.file.objects.keys()) {
      const info = objectInfo(snapshot.file, index);
      if (info === undefined) continue;
      const { state } = this.load(info.nodeid);
      if (state !== 'loaded') throw new Error(`${id} is still pending`);
      objects.push(info);
    }
    return objects;
  }

  /** What must be forgotten of a snapshot before `close`: its number and its objects' nodes. */
  dropped(id: string): { readonly number: number; readonly nodes: readonly number[] } | undefined {
    const snapshot = this.#snapshots.get(id);
    if (snapshot === undefined) return undefined;
    const { number, objects } = snapshot.file;
    return { number, nodes: objects.map((_, index) => objectNode(number, index)) };
  }

  /** Forgets a snapshot at once; the returned function closes its files, when nobody reads them. */
  forget(id: string): () => void {
    const snapshot = this.#snapshots.get(id);
    if (snapshot === undefined) return () => {};
    this.#snapshots.delete(id);
    this.#idOfNumber.delete(snapshot.file.number);
    return () => {
      for (const { layers, touches } of snapshot.loaded.values()) {
        this.#layers.release(layers);
        if (touches !== undefined) closeTouchRecord(touches);
      }
    };
  }

  #snapshot(id: string): KnownSnapshot | undefined {
    const known = this.#snapshots.get(id);
    if (known !== undefined) return known;
    const file = this.#read(id);
    if (file === undefined) return undefined;
    const other = this.#idOfNumber.get(file.number);
    if (other !== undefined) {
      this.#events.complain(`${id} and ${other} have the same number: ${id} is not served`);
      return undefined;
    }
    const snapshot: KnownSnapshot = { file, loaded: new Map() };
    this.#snapshots.set(id, snapshot);
    this.#idOfNumber.set(file.number, id);
    return snapshot;
  }

  #snapshotOfNode(nodeid: number): KnownSnapshot | undefined {
    const number = numberOfNode(nodeid);
    if (number === 0) return undefined;
    const id = this.#idOfNumber.get(number);
    if (id !== undefined) return this.#snapshots.get(id);
    // Given out before this process began: find it.
    for (const candidate of listSnapshots(this.#runFolder)) {
      const snapshot = this.#snapshot(candidate);
      if (snapshot?.file.number === number) return snapshot;
    }
    return undefined;
  }

  #read(id: string): SnapshotFile | undefined {
    try {
      return readSnapshotFile(this.#runFolder, id);
    } catch (error) {
      this.#events.complain(`${id} is not served: ${String(error)}`);
      return undefined;
    }
  }

  /** A freeze goes on: an object without a layer will get its content when `pending` has gone. */
  #hasContent(snapshot: KnownSnapshot, index: number): boolean {
    const object = snapshot.file.objects[index];
    if (object === undefined || 'from' in object) return false;
    return !snapshot.file.pending || object.layers.length > 0;
  }

  #readAgain(snapshot: KnownSnapshot): void {
    const file = this.#read(snapshot.file.id);
    if (file === undefined) return;
    // The kernel knows numbers and sizes already.
    const same =
      file.number === snapshot.file.number &&
      file.objects.length === snapshot.file.objects.length &&
      file.objects.every(({ name, sizeBytes }, index) => {
        const before = snapshot.file.objects[index]!;
        return before.name === name && before.sizeBytes === sizeBytes;
      });
    if (!same) throw new Error(`${file.id} changed its objects while it was pending`);
    snapshot.file = file;
  }

  #loadObject(snapshot: KnownSnapshot, object: OwnObject, nodeid: number): void {
    const { id } = snapshot.file;
    const { name, sizeBytes } = object;
    const file = path.join(snapshotFolder(this.#runFolder, id), object.map);
    const { entries, layerCount } = decodePageMap(fs.readFileSync(file));
    if (layerCount > object.layers.length) {
      throw new ObjectError(
        `${file} knows ${layerCount} layers, there are ${object.layers.length}`,
      );
    }
    const layers = this.#layers.acquire(object.layers);
    try {
      // Map and size fit each other, or this throws.
      new PagedObject({ entries, layers: [], sizeBytes });
    } catch (error) {
      this.#layers.release(object.layers);
      throw error;
    }
    const touches = isMemory(name) ? this.#openTouches(file, sizeBytes) : undefined;
    snapshot.loaded.set(nodeid, { layers: object.layers, touches });
    this.#events.loaded(
      newSharedObject({ nodeid, snapshot: id, name, sizeBytes, layers, entries, touches }),
      { layers: object.layers, origins: snapshot.file.origins ?? [] },
    );
  }

  #openTouches(mapPath: string, sizeBytes: number): MappedFile | undefined {
    const file = touchRecordPath(mapPath);
    try {
      return openTouchRecord(file, sizeBytes);
    } catch (error) {
      this.#events.complain(`what clones touch is not recorded: ${file}: ${String(error)}`);
      return undefined;
    }
  }
}

/** `undefined` for what is served under another name, and for what is not there. */
function objectInfo(file: SnapshotFile, index: number): NodeInfo | undefined {
  const object = file.objects[index];
  if (object === undefined || 'from' in object) return undefined;
  const { name, sizeBytes } = object;
  const nodeid = objectNode(file.number, index);
  return { kind: 'object', nodeid, snapshot: file.id, name, sizeBytes };
}
