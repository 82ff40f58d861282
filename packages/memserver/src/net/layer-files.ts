// The pages of a snapshot's layers, read from their files: whole layers of this host, and those of
// another host of which some pages are here (`held-pages.ts`). Opens and closes the files; one for
// each snapshot that is served.

import fs from 'node:fs';
import { ABSENT, HeldPages } from '../held-pages.js';
import { PAGE_BYTES } from '../page-map.js';
import type { PageSource } from '../server/page-loader.js';

/**
 * Others may be leaving just now: that takes a millisecond, unless the writer has to wait for a
 * processor, or for ever when it died.
 */
const READ_MS_MAX = 10;

export interface LayerFile {
  readonly path: string;
  /** The bitmap of the pages that are here; all are, when there is none. */
  readonly held?: string | undefined;
}

interface OpenLayer {
  readonly descriptor: number;
  readonly pageCount: number;
  readonly held: HeldPages | undefined;
}

export class LayerFiles implements PageSource {
  #layers: readonly OpenLayer[] = [];

  /** These from now on. @throws Error when one can't be opened: then nothing has changed. */
  set(files: readonly LayerFile[]): void {
    const opened: OpenLayer[] = [];
    try {
      for (const file of files) opened.push(openLayer(file));
    } catch (error) {
      opened.forEach(closeLayer);
      throw error;
    }
    this.#layers.forEach(closeLayer);
    this.#layers = opened;
  }

  get layerCount(): number {
    return this.#layers.length;
  }

  readPage(layer: number, page: number, target: Buffer, offset: number): boolean {
    const of = this.#layers[layer];
    if (of === undefined || page >= of.pageCount) return false;
    const { descriptor, held } = of;
    if (held === undefined) return readWhole(descriptor, page, target, offset);
    let endMs = Number.POSITIVE_INFINITY;
    while (held.has(page)) {
      const guard = held.guard(page, 1);
      if (guard !== ABSENT) {
        if (!readWhole(descriptor, page, target, offset)) return false;
        if (held.isStill(guard)) return true;
      }
      const nowMs = performance.now();
      endMs = Math.min(endMs, nowMs + READ_MS_MAX);
      if (nowMs >= endMs) return false;
    }
    return false;
  }

  /** One of a replica that is not here: its host fetches it when it is wanted. */
  isAwaited(layer: number, page: number): boolean {
    const of = this.#layers[layer];
    if (of?.held === undefined || page >= of.pageCount) return false;
    return of.held.guard(page, 1) === ABSENT;
  }

  close(): void {
    this.#layers.forEach(closeLayer);
    this.#layers = [];
  }
}

function openLayer({ path, held }: LayerFile): OpenLayer {
  const descriptor = fs.openSync(path, 'r');
  try {
    const pageCount = Math.ceil(fs.fstatSync(descriptor).size / PAGE_BYTES);
    return {
      descriptor,
      pageCount,
      held: held === undefined ? undefined : mapHeld(held, pageCount),
    };
  } catch (error) {
    fs.closeSync(descriptor);
    throw error;
  }
}

function mapHeld(path: string, pageCount: number): HeldPages {
  const held = HeldPages.map(path);
  if (held.pageCount >= pageCount) return held;
  held.unmap();
  throw new Error(`${path} is not for ${pageCount} pages`);
}

function closeLayer(layer: OpenLayer): void {
  fs.closeSync(layer.descriptor);
  layer.held?.unmap();
}

/** The last page of a layer need not be whole. `false` after the layer's end, and when it fails. */
function readWhole(descriptor: number, page: number, target: Buffer, offset: number): boolean {
  try {
    const taken = fs.readSync(descriptor, target, offset, PAGE_BYTES, page * PAGE_BYTES);
    if (taken < PAGE_BYTES) target.fill(0, offset + taken, offset + PAGE_BYTES);
    return taken > 0;
  } catch {
    return false;
  }
}
