// Once for all VM tests: the agent and the images are made before the first, the agent is ended after
// the last. Called by vitest, for each project; `npm test` calls it before, as a program, and owns the
// agent then, which projects that run side by side share.

import { fileURLToPath } from 'node:url';
import { connect } from '@snowfork/sdk';
import { isSharedOwn, removeLeftApart, testHost, testState, whyNoVms } from './test-host.js';

export async function setup(): Promise<void> {
  if (whyNoVms() !== undefined) return;
  await removeLeftApart();
  const host = await testHost('minimal', 'node', 'python');
  await host.close();
}

export async function teardown(): Promise<void> {
  if (whyNoVms() !== undefined || !isSharedOwn()) return;
  const host = await connect({ stateFolder: testState, start: false }).catch(() => undefined);
  await host?.shutDown();
  await host?.close();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await setup();
