// The open layers of the pager, one descriptor each however many snapshots stand on it. Opens and
// closes; reads nothing. Called by the registry alone, as descriptors belong to the main thread.

import fs from 'node:fs';
import path from 'node:path';
import { HeldPages, type MappedFile } from '@snowfork/memserver/pages';
import { heldPath } from '../store/origins.js';
import { liesOnDisk } from './no-wait.js';

/** An open layer, as it is told from thread to thread. */
export interface LayerHandle {
  readonly descriptor: number;
  readonly onDisk: boolean;
  /** Of a replica: where it is said which pages are here. */
  readonly held?: MappedFile;
}

interface OpenLayer {
  readonly handle: LayerHandle;
  readonly held: HeldPages | undefined;
  users: number;
}

export class LayerTable {
  readonly #folder: string;
  readonly #open = new Map<string, OpenLayer>();

  constructor(runFolder: string) {
    this.#folder = path.join(runFolder, 'layers');
  }

  /** All or none of them. @throws Error of the system when one can't be opened. */
  acquire(ids: readonly string[]): LayerHandle[] {
    const acquired: LayerHandle[] = [];
    try {
      for (const id of ids) acquired.push(this.#acquireOne(id));
    } catch (error) {
      this.release(ids.slice(0, acquired.length));
      throw error;
    }
    return acquired;
  }

  release(ids: readonly string[]): void {
    for (const id of ids) {
      const layer = this.#open.get(id);
      if (layer === undefined) throw new Error(`layer ${id} is not open`);
      layer.users -= 1;
      if (layer.users > 0) continue;
      this.#open.delete(id);
      fs.closeSync(layer.handle.descriptor);
      layer.held?.unmap();
    }
  }

  /** Which pages of an open replica are here; undefined for a layer that is whole. */
  held(id: string): HeldPages | undefined {
    return this.#open.get(id)?.held;
  }

  #acquireOne(id: string): LayerHandle {
    const layer = this.#open.get(id) ?? this.#openOne(id);
    layer.users += 1;
    return layer.handle;
  }

  #openOne(id: string): OpenLayer {
    const file = path.join(this.#folder, id);
    const descriptor = fs.openSync(file, 'r');
    try {
      const held = fs.existsSync(heldPath(file)) ? HeldPages.map(heldPath(file)) : undefined;
      held?.recover();
      const onDisk = liesOnDisk(file);
      const handle = { descriptor, onDisk, ...(held === undefined ? {} : { held: held.place }) };
      const layer = { handle, held, users: 0 };
      this.#open.set(id, layer);
      return layer;
    } catch (error) {
      fs.closeSync(descriptor);
      throw error;
    }
  }
}
