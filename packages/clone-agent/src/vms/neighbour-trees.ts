// Which host asks which for the pages of a snapshot of this host, where multicast does not reach: a
// tree with this host at its root, so that what it sends does not grow with their number. Hosts that
// multicast reaches take no notice of it, and may be asked all the same. Kept in memory only: after
// an agent's death new hosts ask this one, and make a tree again. `RemoteClones` has one.

import type { ServingHost } from '../store/describe.js';

/** Hosts that ask one host: each costs it one copy. */
export const NEIGHBOURS_MAX = 2;

/** Of each host, in the order in which they came: whom it asks; undefined is this host. */
type Tree = Map<string, string | undefined>;

export class NeighbourTrees {
  readonly #bySnapshot = new Map<string, Tree>();
  readonly #pagesOf: (host: string) => ServingHost | undefined;

  /** `pagesOf`: another host as it serves pages; undefined when it is not known to. */
  constructor(pagesOf: (host: string) => ServingHost | undefined) {
    this.#pagesOf = pagesOf;
  }

  /** Whom the host is to ask for the snapshot's pages; undefined is this host. */
  parentOf(snapshot: string, host: string): ServingHost | undefined {
    const tree: Tree = this.#bySnapshot.get(snapshot) ?? new Map();
    this.#bySnapshot.set(snapshot, tree);
    if (!tree.has(host)) tree.set(host, this.#place(tree));
    const parent = tree.get(host);
    return parent === undefined ? undefined : this.#pagesOf(parent);
  }

  /** The host fetches the snapshot no more, or, where none is said, any: it is asked no more. */
  forget(host: string, snapshot?: string): void {
    for (const [id, tree] of this.#bySnapshot) {
      if (snapshot !== undefined && id !== snapshot) continue;
      tree.delete(host);
      // Those that asked it ask this host now.
      for (const [child, parent] of tree) if (parent === host) tree.set(child, undefined);
      if (tree.size === 0) this.#bySnapshot.delete(id);
    }
  }

  /** Snapshots that are gone. */
  keepOnly(isThere: (snapshot: string) => boolean): void {
    for (const id of this.#bySnapshot.keys()) if (!isThere(id)) this.#bySnapshot.delete(id);
  }

  /** The first, in the order in which they came, that is asked by fewer than it may be. */
  #place(tree: Tree): string | undefined {
    const mayBeAsked = (host: string | undefined) => {
      const askers = [...tree.values()].filter((parent) => parent === host);
      return askers.length < NEIGHBOURS_MAX;
    };
    if (mayBeAsked(undefined)) return undefined;
    return [...tree.keys()].find((host) => mayBeAsked(host) && this.#pagesOf(host) !== undefined);
  }
}
