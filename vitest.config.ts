import { defineConfig } from 'vitest/config';
import { limitMs } from './test/support/soak.js';

// Kinds of tests, from cheap to dear: `unit` needs no VM and no root; `sim` runs the memory server's
// protocol in a simulated network; `net` runs it between processes in network namespaces; `vm` runs real VMs, one file after another, as they share one agent
// and two cores.
export default defineConfig({
  test: {
    projects: [
      { test: { name: 'unit', include: ['test/unit/**/*.test.ts'], testTimeout: limitMs(30_000) } },
      { test: { name: 'sim', include: ['test/sim/**/*.test.ts'], testTimeout: limitMs(120_000) } },
      {
        test: {
          name: 'net',
          include: ['test/net/**/*.test.ts'],
          fileParallelism: false,
          testTimeout: limitMs(120_000),
        },
      },
      {
        test: {
          name: 'vm',
          include: ['test/vm/**/*.test.ts'],
          fileParallelism: false,
          globalSetup: ['test/support/vm-setup.ts'],
          testTimeout: limitMs(120_000),
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
