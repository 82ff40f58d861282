// How fast a link is.

import { expect, it } from 'vitest';
import { linkSpeed } from '../../packages/clone-agent/src/system/link-speed.js';

it('is not known of the loopback, nor of an address that is not here', () => {
  expect(linkSpeed('127.0.0.1')).toBeUndefined();
  expect(linkSpeed('203.0.113.7')).toBeUndefined();
});
