// Node ids of the mount. They are computed from a snapshot's number, so that a pager that was started
// again agrees with the one that died and with what the kernel remembers.
//
//   1                       the root
//   number·16 + 1           the folder of a snapshot; numbers begin at 1
//   number·16 + 2 + index   an object of it

export const ROOT_NODE = 1;
export const OBJECTS_MAX = 14;
export const SNAPSHOT_NUMBER_MAX = 2 ** 32 - 1;
const NODES_PER_SNAPSHOT = 16;

export function snapshotNode(number: number): number {
  return number * NODES_PER_SNAPSHOT + 1;
}

export function objectNode(number: number, index: number): number {
  return number * NODES_PER_SNAPSHOT + 2 + index;
}

/** The snapshot's number; 0 for the root and for what is no node. */
export function numberOfNode(nodeid: number): number {
  return Math.floor(nodeid / NODES_PER_SNAPSHOT);
}

/** The object's index, negative for a folder. */
export function indexOfNode(nodeid: number): number {
  return (nodeid % NODES_PER_SNAPSHOT) - 2;
}
