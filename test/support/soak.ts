// What `npm test` repeats a few times, `npm run soak` repeats for hours. Used by tests and by vitest's
// configuration.

const isSoak = process.env.SNOWFORK_SOAK === '1';
const DAY_MS = 24 * 3_600_000;

/** How often something is repeated. */
export function times(inTests: number, inSoak: number): number {
  return isSoak ? inSoak : inTests;
}

/** How long a test may take: in a soak none ends for its length. */
export function limitMs(inTests: number): number {
  return isSoak ? DAY_MS : inTests;
}
