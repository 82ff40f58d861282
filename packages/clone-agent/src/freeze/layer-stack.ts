// Stacks of layers: which layer of which snapshot a page map's entry means. It owns the joining of two stacks in one
// numbering, the layers' open files during a freeze, and the renumbering when layers drop out. It writes no layer.
// Called by `freeze-memory.ts`.

import fs from 'node:fs';
import { ABSENT, HeldPages, LAYERS_MAX, type PageMap, ZERO_PAGE } from '@snowfork/memserver/pages';
import { SnowforkError } from '@snowfork/sdk/api';
import { PAGE_BYTES } from './process-memory.js';

/**
 * Layers that one VM's forks may stack above the snapshot it was cloned from. At the bound a freeze stores all private
 * pages afresh, and the older layers drop out of the stack.
 */
export const LAYERS_OF_ONE_VM_MAX = 64;

/** A layer's file on this host. */
export interface LayerFile {
  readonly id: string;
  readonly path: string;
  /** Of a layer that lies on another host: the file that says which of its pages are here. */
  readonly held?: string;
}

/** A page map and the layers that it counts, in their order: entry k is `layers[k − 1]`. */
export interface LayerStack {
  readonly map: PageMap;
  readonly layers: readonly LayerFile[];
}

/** The layers of two stacks, base's first; a map's entries become numbers of the joint stack. */
export interface JoinedStacks {
  readonly layers: readonly LayerFile[];
  /** The newest snapshot's entry for a page, or ZERO_PAGE where its layer shall not be referenced. */
  lastEntry(page: number): number;
  /** False when some of the newest snapshot's layers shall not be referenced. */
  readonly isLastWhole: boolean;
}

/** @throws SnowforkError when the stacks are not of an object of `pages` pages. */
export function joinStacks(base: LayerStack, last: LayerStack, pages: number): JoinedStacks {
  if (base.map.entries.length !== pages || last.map.entries.length !== pages) {
    throw new SnowforkError(
      'SF_INTERNAL',
      `page maps of another size than the RAM (${pages} pages)`,
    );
  }
  const layers = [...base.layers];
  const numbers = new Map(base.layers.map((layer, index) => [layer.id, index + 1]));
  const translated = new Uint16Array(last.layers.length + 1);
  const own = last.layers.filter((layer) => !numbers.has(layer.id)).length;
  const mayReferenceOwn = own < LAYERS_OF_ONE_VM_MAX;
  for (const [index, layer] of last.layers.entries()) {
    let number = numbers.get(layer.id);
    if (number === undefined && mayReferenceOwn) {
      number = layers.push(layer);
      numbers.set(layer.id, number);
    }
    translated[index + 1] = number ?? ZERO_PAGE;
  }
  if (layers.length >= LAYERS_MAX) {
    throw new SnowforkError('SF_INTERNAL', `a stack of ${layers.length} layers is too deep`);
  }
  const { entries } = last.map;
  const isLastWhole = mayReferenceOwn || own === 0;
  return { layers, isLastWhole, lastEntry: (page) => translated[entries[page]!]! };
}

/** Files of the layers of a stack, opened when first read and kept open for one freeze. */
export class LayerReaders {
  readonly #layers: readonly LayerFile[];
  readonly #fds: (number | undefined)[];
  readonly #replicas: (Replica | null | undefined)[];

  constructor(layers: readonly LayerFile[]) {
    this.#layers = layers;
    this.#fds = new Array(layers.length + 1);
    this.#replicas = new Array(layers.length + 1);
  }

  /** False when the layer is another host's: its pages can't be compared with, only fetched. */
  isReadable(entry: number): boolean {
    return this.#open(entry) >= 0;
  }

  /** Reads `count` pages of the layer from `page` on; nothing when it is another host's. */
  read(entry: number, page: number, count: number, target: Buffer, offset: number): void {
    const fd = this.#open(entry);
    if (fd < 0) return;
    const length = count * PAGE_BYTES;
    const read = fs.readSync(fd, target, offset, length, page * PAGE_BYTES);
    if (read !== length) {
      const { id } = this.#layers[entry - 1]!;
      throw new SnowforkError('SF_INTERNAL', `layer ${id} is cut short at page ${page}`);
    }
  }

  /** Reads a page of any layer, without a wait for another host; false when the page is not here. */
  readIfHere(entry: number, page: number, target: Buffer, offset: number): boolean {
    if (this.#layers[entry - 1]!.held === undefined) {
      if (!this.isReadable(entry)) return false;
      this.read(entry, page, 1, target, offset);
      return true;
    }
    const replica = this.#openReplica(entry);
    const guard = replica?.held.guard(page, 1) ?? ABSENT;
    if (replica === null || guard === ABSENT) return false;
    const read = fs.readSync(replica.fd, target, offset, PAGE_BYTES, page * PAGE_BYTES);
    return read === PAGE_BYTES && replica.held.isStill(guard);
  }

  close(): void {
    for (const replica of this.#replicas) {
      replica?.held.unmap();
      if (replica) fs.closeSync(replica.fd);
    }
    this.#replicas.fill(undefined);
    for (const fd of this.#fds) if (fd !== undefined && fd >= 0) fs.closeSync(fd);
    this.#fds.fill(undefined);
  }

  #open(entry: number): number {
    const known = this.#fds[entry];
    if (known !== undefined) return known;
    const layer = this.#layers[entry - 1]!;
    let fd = -1;
    try {
      if (layer.held === undefined) fd = fs.openSync(layer.path, 'r');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw layerFailure(error);
    }
    this.#fds[entry] = fd;
    return fd;
  }

  /** Null when it has gone. */
  #openReplica(entry: number): Replica | null {
    const known = this.#replicas[entry];
    if (known !== undefined) return known;
    const { path, held } = this.#layers[entry - 1]!;
    let replica: Replica | null = null;
    try {
      const pages = HeldPages.map(held!);
      replica = { held: pages, fd: fs.openSync(path, 'r') };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw layerFailure(error);
    }
    this.#replicas[entry] = replica;
    return replica;
  }
}

/** A layer of another host, as far as it is here. */
interface Replica {
  readonly held: HeldPages;
  readonly fd: number;
}

/** Takes out the layers that no page names, and renumbers the entries in place. */
export function dropUnusedLayers(
  entries: Uint16Array<ArrayBuffer>,
  layers: readonly LayerFile[],
): LayerStack {
  const isUsed = new Uint8Array(layers.length + 1);
  for (let page = 0; page < entries.length; page++) isUsed[entries[page]!] = 1;
  const kept = layers.filter((_, index) => isUsed[index + 1] === 1);
  if (kept.length < layers.length) {
    const renumbered = new Uint16Array(layers.length + 1);
    for (let entry = 1, number = 0; entry <= layers.length; entry++) {
      if (isUsed[entry] === 1) renumbered[entry] = ++number;
    }
    for (let page = 0; page < entries.length; page++) entries[page] = renumbered[entries[page]!]!;
  }
  return { map: { entries, layerCount: kept.length }, layers: kept };
}

export function layerFailure(error: unknown): SnowforkError {
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    const text =
      'the tmpfs for layers is full; the VM goes on unharmed: delete snapshots or raise layersBytesMax';
    return new SnowforkError('SF_LAYERS_FULL', text, { cause: error });
  }
  return new SnowforkError('SF_INTERNAL', `a layer could not be read or written: ${message}`, {
    cause: error,
  });
}
