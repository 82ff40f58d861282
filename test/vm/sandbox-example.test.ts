// The example 03-sandbox, as a reader would run it: every piece of code has done its harm, to its own
// clone, and the VM that they were made of holds what it held.

import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import type { Host } from '@snowfork/sdk';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { describeVms, endAll } from '../fixtures/guests.js';
import { testHost, testState } from '../support/test-host.js';

/** For each piece, as enough for a busy machine. */
const PATIENCE_S = '10';
const program = path.resolve(import.meta.dirname, '../../examples/dist/03-sandbox/main.js');

describeVms('the example of a sandbox', () => {
  let host: Host;

  beforeAll(async () => {
    host = await testHost('minimal');
  });

  afterAll(async () => {
    if (host === undefined) return;
    await endAll(host);
    await host.close();
  });

  it('runs each piece apart, and loses nothing but clones', async () => {
    const env = { ...process.env, SNOWFORK_STATE: testState };
    const { stdout } = await promisify(execFile)('node', [program, PATIENCE_S], { env });
    const outcomes = Object.fromEntries(
      stdout.split('\n').map((line) => [line.slice(0, 20).trim(), line.slice(20).trim()]),
    );
    expect(outcomes).toMatchObject({
      'does its work': expect.stringContaining('it handed over "30"'),
      'forks VMs': expect.stringMatching(/^SF_TIMEOUT.*a caller of the API ended it/),
      'deletes all files': expect.stringMatching(
        /ended with 0, 5 bytes of output.*a caller of the API ended it/,
      ),
      'hands over garbage': expect.stringContaining('it handed over 300000 bytes'),
      'floods its output': expect.stringMatching(/^SF_TIMEOUT, \d{6,} bytes/),
      'kills its init': expect.stringContaining('the guest powered off, rebooted or panicked'),
      'writes to its port': expect.stringContaining('the guest broke the protocol'),
    });
    expect(stdout).toMatch(/vm\d+ holds what it held; 1 VM is left\n$/);
  });
});
