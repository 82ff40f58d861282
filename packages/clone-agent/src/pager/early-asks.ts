// Asks for a page of another host from the serving thread whose READ wants it, before the main thread
// hears of it: the request is on its way while the word is. The main thread waits for the page, keeps
// it and asks again; nothing here does. One in each serving thread.

import { type AskingTerms, PageAsker } from '@snowfork/memserver/asking';
import type { ReadArguments } from './fuse-wire.js';
import { onePageOf, type ServedObject } from './served-object.js';

/** A layer of which pages can be asked for. */
export interface AskableLayer {
  /** The memory server's number of it. */
  readonly number: number;
  readonly terms: AskingTerms;
}

/** By number in the object's stack, as the page map has it; `undefined` for those that are here. */
export type AskableLayers = readonly (AskableLayer | undefined)[];

interface Askable {
  readonly number: number;
  readonly asker: PageAsker;
}

export class EarlyAsks {
  readonly #objects = new Map<number, readonly (Askable | undefined)[]>();

  /** Instead of what was known of the object. */
  know(nodeid: number, layers: AskableLayers): void {
    const askers = new Map<number, PageAsker>();
    const askable = layers.map((layer) => {
      if (layer === undefined) return undefined;
      const { number, terms } = layer;
      const asker = askers.get(terms.senderId) ?? new PageAsker(terms);
      askers.set(terms.senderId, asker);
      return { number, asker };
    });
    this.#objects.set(nodeid, askable);
  }

  forget(nodeid: number): void {
    this.#objects.delete(nodeid);
  }

  /** For a READ that has to wait: whether its page has been asked for. Of more pages none is. */
  ask({ shared, paged }: ServedObject, wanted: ReadArguments): boolean {
    const page = onePageOf(wanted);
    if (page === undefined) return false;
    const askable = this.#objects.get(shared.nodeid)?.[paged.layerOf(page)];
    return askable?.asker.ask(askable.number, page) ?? false;
  }
}
