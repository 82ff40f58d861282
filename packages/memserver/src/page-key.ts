// A page of a layer as one number, so that maps need no strings. Used by server and receiver.

const PAGES_PER_LAYER = 2 ** 32;

export function pageKey(layer: number, page: number): number {
  return layer * PAGES_PER_LAYER + page;
}
