// How many members the cluster's store is to have. That hosts bring it about `net/store-members` tests.

import { expect, test } from 'vitest';
import { isOneMoreWanted } from '../../packages/clone-agent/src/cluster/store-members.js';

test.each([
  // A second one alone would only be one more host that must not go.
  { voters: 1, others: 0, isWanted: false },
  { voters: 1, others: 1, isWanted: true },
  { voters: 2, others: 0, isWanted: true },
  { voters: 2, others: 5, isWanted: true },
  { voters: 3, others: 0, isWanted: false },
  { voters: 3, others: 5, isWanted: false },
])('to $voters members, with $others other hosts that could: $isWanted', (of) => {
  expect(isOneMoreWanted(of.voters, of.others)).toBe(of.isWanted);
});
