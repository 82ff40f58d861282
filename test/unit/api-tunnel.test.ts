// Which host a request to the API is about.

import { expect, it } from 'vitest';
import { hostOfPath } from '../../packages/clone-agent/src/cluster/api-tunnel.js';

it.each([
  ['/v1/vms/vm3-beta', 'beta'],
  ['/v1/tickets/t7-gamma-2?timeoutMs=5', 'gamma-2'],
  ['/v1/snapshots/s1%2Dbeta/clones', 'beta'],
  ['/v1/vms/vm3', undefined],
  ['/v1/vms', undefined],
  ['/v1/images/vm3-beta', undefined],
  // What is no id is answered here, as a mistake of the caller.
  ['/v1/vms/%zz', undefined],
  ['/v1/vms/%E0%A4%A/exec', undefined],
])('of %s is %s', (path, host) => {
  expect(hostOfPath(path)).toBe(host);
});
