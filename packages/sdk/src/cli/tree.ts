// Families of VMs as trees, and as lines with box characters. Pure; called by `sf tree` and the
// demo.

import type { VmInfo } from '../api/schemas.js';
import { formatBytes, formatDuration, formatEnd } from './format.js';

export interface FamilyNode {
  readonly vm: VmInfo;
  /** Undefined for a VM that has ended. */
  readonly privateBytes: number | undefined;
  readonly children: readonly FamilyNode[];
}

/** One tree per VM whose parent is not among `vms`; children in the order of their start. */
export function familyTree(
  vms: readonly VmInfo[],
  privateBytes: ReadonlyMap<string, number>,
): FamilyNode[] {
  const known = new Set(vms.map((vm) => vm.id));
  const isRoot = (vm: VmInfo) => vm.parent === undefined || !known.has(vm.parent);
  const grow = (siblings: readonly VmInfo[]): FamilyNode[] =>
    [...siblings].sort(byStart).map((vm) => ({
      vm,
      privateBytes: privateBytes.get(vm.id),
      children: grow(vms.filter((child) => child.parent === vm.id)),
    }));
  return grow(vms.filter(isRoot));
}

/** One line per VM: id, image, state, private memory, age, how it ended. */
export function renderTree(families: readonly FamilyNode[], nowMs: number): string[] {
  const rows: { head: string; node: FamilyNode }[] = [];
  const walk = (node: FamilyNode, first: string, rest: string): void => {
    rows.push({ head: `${first}${node.vm.id}`, node });
    for (const [index, child] of node.children.entries()) {
      const last = index === node.children.length - 1;
      walk(child, `${rest}${last ? '└─ ' : '├─ '}`, `${rest}${last ? '   ' : '│  '}`);
    }
  };
  for (const family of families) walk(family, '', '');
  const headWidth = Math.max(0, ...rows.map(({ head }) => head.length));
  const imageWidth = Math.max(0, ...rows.map(({ node }) => node.vm.image.length));
  return rows.map(({ head, node }) => {
    const words = describe(node, nowMs);
    return `${head.padEnd(headWidth)}  ${node.vm.image.padEnd(imageWidth)}  ${words}`.trimEnd();
  });
}

function describe({ vm, privateBytes }: FamilyNode, nowMs: number): string {
  const age = formatDuration((vm.endedAt ?? nowMs) - vm.startedAt).padStart(7);
  const memory = (privateBytes === undefined ? '-' : formatBytes(privateBytes)).padStart(10);
  const end = vm.end === undefined ? '' : formatEnd(vm.end);
  const host = vm.host === undefined ? '' : `on ${vm.host}  `;
  return `${host}${vm.state.padEnd(8)} ${memory} ${age}  ${end}`;
}

function byStart(left: VmInfo, right: VmInfo): number {
  return left.startedAt - right.startedAt || (left.cloneId ?? 0) - (right.cloneId ?? 0);
}
