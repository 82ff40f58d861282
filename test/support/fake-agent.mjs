// The fake service as an agent's process, for tests that start one through SNOWFORK_AGENT. The mode
// `fail` dies with words in its log, as an agent does that cannot start; `taken` as one that comes
// second.

import { join } from 'node:path';
import { AGENT_EXIT_TAKEN } from '@snowfork/sdk/api';
import { register } from 'tsx/esm/api';

const mode = process.env.FAKE_AGENT_MODE;
if (mode === 'fail') {
  console.log(
    JSON.stringify({
      level: 60,
      msg: 'the agent could not start',
      err: { message: 'no room on the moon' },
    }),
  );
  process.exit(1);
}
if (mode === 'taken') process.exit(AGENT_EXIT_TAKEN);

register();
const { startServer } = await import('../../packages/clone-agent/src/api/server.ts');
const { FakeService } = await import('./fake-service.ts');
const socketPath = join(process.env.SNOWFORK_STATE, 'agent.sock');
let server;
// As the real one: the answer first, then the end.
const onShutDown = () => setImmediate(() => server.close().then(() => process.exit(0)));
const service = new FakeService({ onShutDown });
for (const image of ['flaky', 'slow'])
  await service.buildImage({ name: image }, () => {}, AbortSignal.abort()).catch(() => {});
server = await startServer({ service, socketPath, version: '0.1.0' });
