// Once for all VM tests: the agent and the images are made before the first, the agent is ended after
// the last. Called by vitest.

import { connect } from '@snowfork/sdk';
import { removeLeftApart, testHost, testState, whyNoVms } from './test-host.js';

export async function setup(): Promise<void> {
  if (whyNoVms() !== undefined) return;
  await removeLeftApart();
  const host = await testHost('minimal', 'node');
  await host.close();
}

export async function teardown(): Promise<void> {
  if (whyNoVms() !== undefined) return;
  const host = await connect({ stateFolder: testState, start: false }).catch(() => undefined);
  await host?.shutDown();
  await host?.close();
}
