import { defineConfig } from 'vitest/config';
import { limitMs } from './test/support/soak.js';

// Kinds of tests, from cheap to dear: `unit` needs no VM and no root; `sim` runs the memory server's
// protocol in a simulated network; `net` runs it between processes in network namespaces; `vm` and
// `apart` run real VMs, one file after another. Those of `vm` share one agent, which nothing else
// may use meanwhile; those of `apart` have agents of their own, and can run beside them.

/** Files of test/vm that ask the shared agent for VMs (`testHost`). */
const SHARED = [
  'broken-clones',
  'checkpoint',
  'connect',
  'examples',
  'exec',
  'guest-sdk',
  'identity',
  'inheritance',
  'nested',
  'python',
  'sandbox-example',
  'semantics',
  'versions',
].map((name) => `test/vm/${name}.test.ts`);

/** These only end what has failed anyway: a busy machine takes many times as long as a quiet one. */
const limits = {
  testTimeout: limitMs(300_000),
  hookTimeout: 300_000,
  expect: { poll: { timeout: 60_000 } },
};

/** One file after another, with the images built before the first. */
const vms = { ...limits, fileParallelism: false, globalSetup: ['test/support/vm-setup.ts'] };

export default defineConfig({
  test: {
    projects: [
      { test: { ...limits, name: 'unit', include: ['test/unit/**/*.test.ts'] } },
      { test: { ...limits, name: 'sim', include: ['test/sim/**/*.test.ts'] } },
      {
        test: {
          ...limits,
          name: 'net',
          include: ['test/net/**/*.test.ts'],
          fileParallelism: false,
        },
      },
      // One run of both has one after the other.
      { test: { name: 'vm', include: SHARED, ...vms, sequence: { groupOrder: 1 } } },
      {
        test: {
          name: 'apart',
          include: ['test/vm/**/*.test.ts'],
          exclude: SHARED,
          ...vms,
          sequence: { groupOrder: 2 },
        },
      },
    ],
  },
});
