// What `npm test` repeats a few times, `npm run soak` repeats for hours. Used by tests.

const isSoak = process.env.SNOWFORK_SOAK === '1';

/** How often something is repeated. */
export function times(inTests: number, inSoak: number): number {
  return isSoak ? inSoak : inTests;
}

/** For tests that repeat. */
export const TIMEOUT_MS = times(300_000, 24 * 3_600_000);
