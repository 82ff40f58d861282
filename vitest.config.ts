import { defineConfig } from 'vitest/config';

/** In a soak no test ends for its length. */
const limit = (ms: number) => (process.env.SNOWFORK_SOAK === '1' ? 24 * 3_600_000 : ms);

// Kinds of tests, from cheap to dear: `unit` needs no VM and no root; `sim` runs the memory server's
// protocol in a simulated network; `vm` runs real VMs, one file after another, as they share one agent
// and two cores.
export default defineConfig({
  test: {
    projects: [
      { test: { name: 'unit', include: ['test/unit/**/*.test.ts'], testTimeout: limit(30_000) } },
      { test: { name: 'sim', include: ['test/sim/**/*.test.ts'], testTimeout: limit(120_000) } },
      {
        test: {
          name: 'vm',
          include: ['test/vm/**/*.test.ts'],
          fileParallelism: false,
          globalSetup: ['test/support/vm-setup.ts'],
          testTimeout: limit(120_000),
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
