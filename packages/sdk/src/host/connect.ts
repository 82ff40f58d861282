// `connect()`: the way from nothing to a `Host`. Starts the agent when it is not there.

import { join, resolve } from 'node:path';
import { SnowforkError } from '../api/errors.js';
import { type Accelerator, hostInfoSchema } from '../api/schemas.js';
import { assertStateFolderLength, defaultStateFolder } from '../api/state-folder.js';
import { startAgent } from './agent-process.js';
import { Host } from './host.js';
import { apiPath, Transport } from './transport.js';
import { withDeadline } from './waits.js';

/** An agent that accepts the connection answers within this. */
const ANSWER_TIMEOUT_MS = 15_000;

export interface ConnectOptions {
  /** The agent's state folder; SNOWFORK_STATE or `defaultStateFolder()` when not given. */
  stateFolder?: string | undefined;
  /** Whether to start the agent when it is not there; true when not given. */
  start?: boolean | undefined;
  /** Forces QEMU's accelerator of an agent that this call starts; no effect on a running one. */
  accelerator?: Accelerator | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * The agent of this host, started when it is not there.
 *
 * ```ts
 * import { connect } from '@snowfork/sdk';
 * await using host = await connect();
 * await using vm = await host.launch('minimal');
 * console.log((await vm.exec('uname -a')).stdout);
 * ```
 *
 * @throws SnowforkError SF_AGENT_UNREACHABLE (with the last lines of agent.log when it was started
 * and failed; `details.running` is false when there is none and `start` is false), SF_PERMISSION,
 * SF_ABORTED, SF_BAD_REQUEST when the state folder's path is too long.
 */
export async function connect(options: ConnectOptions = {}): Promise<Host> {
  const { signal, start = true, accelerator } = options;
  const stateFolder = resolve(
    options.stateFolder || process.env.SNOWFORK_STATE || defaultStateFolder(),
  );
  const environment: Record<string, string> =
    accelerator === undefined ? {} : { SNOWFORK_ACCEL: accelerator };
  const startOne = async (signal: AbortSignal | undefined) => {
    if (await answers(transport, signal)) return;
    assertStateFolderLength(stateFolder);
    await startAgent({
      stateFolder,
      environment,
      answers: () => answers(transport, signal),
      signal,
    });
  };
  const socketPath = join(stateFolder, 'agent.sock');
  const transport = new Transport(socketPath, start ? startOne : undefined);
  try {
    if (!start && !(await answers(transport, signal))) {
      const message = `no agent is running for ${stateFolder}: start it with \`sf up\``;
      throw new SnowforkError('SF_AGENT_UNREACHABLE', message, { details: { running: false } });
    }
    if (start) await startOne(signal);
    return new Host(transport, stateFolder);
  } catch (error) {
    await transport.close();
    throw error;
  }
}

/** False when there is nobody; an agent that answers with nonsense or not at all throws. */
async function answers(transport: Transport, signal: AbortSignal | undefined): Promise<boolean> {
  const wait = { signal, timeoutMs: ANSWER_TIMEOUT_MS };
  try {
    await withDeadline(wait, 'the agent', (signal) =>
      transport.json({ method: 'GET', path: apiPath('host'), signal }, hostInfoSchema),
    );
    return true;
  } catch (error) {
    if (!(error instanceof SnowforkError)) throw error;
    // Also when the connection was cut: an agent that is going down is as good as none.
    if (error.code === 'SF_AGENT_UNREACHABLE') return false;
    if (error.code !== 'SF_TIMEOUT' || signal?.aborted) throw error;
    throw new SnowforkError(
      'SF_AGENT_UNREACHABLE',
      `the agent accepts connections on ${transport.socketPath} but does not answer: see agent.log`,
      { cause: error, details: { running: true } },
    );
  }
}
