// Who asks whom where multicast does not reach: a tree, whatever hosts come and go.

import { expect, test } from 'vitest';
import {
  NEIGHBOURS_MAX,
  NeighbourTrees,
} from '../../packages/clone-agent/src/vms/neighbour-trees.js';

const HOSTS = Array.from({ length: 40 }, (_, index) => `host${index}`);
const pagesOf = (host: string) => ({ host, address: '10.0.0.1', port: 7000 });

function parents(trees: NeighbourTrees, hosts = HOSTS): (string | undefined)[] {
  return hosts.map((host) => trees.parentOf('s1', host)?.host);
}

test('two hosts ask home, two ask each of those, and so on', () => {
  const trees = new NeighbourTrees(pagesOf);
  expect(parents(trees, HOSTS.slice(0, 8))).toEqual([
    ...[undefined, undefined, 'host0', 'host0', 'host1', 'host1', 'host2', 'host2'],
  ]);
});

test('nobody is asked by more than it may be, nor by one that came before it', () => {
  const asked = parents(new NeighbourTrees(pagesOf));
  for (const [index, parent] of asked.entries()) {
    expect(asked.filter((other) => other === parent).length).toBeLessThanOrEqual(NEIGHBOURS_MAX);
    if (parent !== undefined) expect(HOSTS.indexOf(parent)).toBeLessThan(index);
  }
});

test('a host asks the same one again, and each snapshot has a tree of its own', () => {
  const trees = new NeighbourTrees(pagesOf);
  expect(parents(trees)).toEqual(parents(trees));
  expect(trees.parentOf('s2', 'host9')).toBeUndefined();
});

test('who asked a host that is gone asks home, and nobody asks it again', () => {
  const trees = new NeighbourTrees(pagesOf);
  parents(trees, HOSTS.slice(0, 5));
  trees.forget('host0');
  expect(parents(trees, ['host2', 'host3', 'host4'])).toEqual([undefined, undefined, 'host1']);
  expect(parents(trees, HOSTS.slice(5))).not.toContain('host0');
});

test('a host that does not say where it serves pages is not asked', () => {
  const trees = new NeighbourTrees((host) => (host === 'host0' ? undefined : pagesOf(host)));
  expect(parents(trees)).not.toContain('host0');
});

test('of a snapshot that is gone nothing is kept', () => {
  const trees = new NeighbourTrees(pagesOf);
  parents(trees);
  trees.keepOnly((snapshot) => snapshot !== 's1');
  expect(parents(trees, ['host30', 'host31', 'host32'])).toEqual([undefined, undefined, 'host30']);
});
