// The open layers of the pager, one descriptor each however many snapshots stand on it. Opens and
// closes; reads nothing. Called by the registry alone, as descriptors belong to the main thread.

import fs from 'node:fs';
import path from 'node:path';
import type { Layer } from '@snowfork/memserver';
import { liesOnDisk } from './no-wait.js';

interface OpenLayer extends Layer {
  users: number;
}

export class LayerTable {
  readonly #folder: string;
  readonly #open = new Map<string, OpenLayer>();

  constructor(runFolder: string) {
    this.#folder = path.join(runFolder, 'layers');
  }

  /** All or none of them. @throws Error of the system when one can't be opened. */
  acquire(ids: readonly string[]): Layer[] {
    const acquired: Layer[] = [];
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
      fs.closeSync(layer.descriptor);
    }
  }

  #acquireOne(id: string): Layer {
    let layer = this.#open.get(id);
    if (layer === undefined) {
      const file = path.join(this.#folder, id);
      const onDisk = liesOnDisk(file);
      layer = { descriptor: fs.openSync(file, 'r'), onDisk, users: 0 };
      this.#open.set(id, layer);
    }
    layer.users += 1;
    return { descriptor: layer.descriptor, onDisk: layer.onDisk };
  }
}
