// The order in which a clone's likely pages are fetched.

import { expect, it } from 'vitest';
import { inSweeps } from '../../packages/clone-agent/src/pager/first-touches.js';

it('keeps the order of what was touched first', () => {
  expect(inSweeps([900, 30, 500])).toEqual([900, 30, 500]);
});

it('goes through the many in sweeps, each page once', () => {
  const touched = Array.from({ length: 9000 }, (_, index) => ((index * 7919) % 9001) * 20);
  const pages = inSweeps(touched);
  expect(pages.slice(0, 4096)).toEqual(touched.slice(0, 4096));
  const rest = pages.slice(4096);
  expect(rest).toEqual([...rest].sort((a, b) => a - b));
  expect(new Set(pages)).toEqual(new Set(touched));
  expect(pages.length).toBe(touched.length);
});
