// A handle of one VM. It holds nothing but the id: what the VM is doing is asked of the agent.
// Made by `Host` and by forks.

import { SnowforkError } from '../api/errors.js';
import {
  type CheckpointResult,
  CLONES_MAX,
  checkpointResultSchema,
  cloneCountSchema,
  type DetachResult,
  detachResultSchema,
  type End,
  endSchema,
  type ForkResult,
  type FreezeTimes,
  forkResultSchema,
  type Placing,
  type SnapshotInfo,
  type TicketInfo,
  type VmInfo,
  type VmStats,
  vmSchema,
  vmStatsSchema,
} from '../api/schemas.js';
import { valueFromJson } from '../api/value.js';
import { type Command, CommandStream } from './command-stream.js';
import { type ConsoleSession, openConsole, readLogs } from './console.js';
import { type ExecOptions, type ExecResult, type ExecStdin, runCommand } from './exec.js';
import { connectThrough, type GuestConnection } from './guest-connection.js';
import { GuestProcess, type SpawnOptions } from './guest-process.js';
import { apiPath, type Transport } from './transport.js';
import { definedOf, type WaitOptions, withDeadline } from './waits.js';

export interface CloneOptions extends WaitOptions {
  /** In a cluster: only on these hosts. */
  readonly hosts?: readonly string[] | undefined;
  /**
   * In a cluster: `spread` puts clones as evenly on the hosts as these have room (the default), `pack`
   * on as few as possible, on this one first.
   */
  readonly place?: Placing['place'] | undefined;
}

/** What became of one clone: a VM that answers, or why there is none. */
export type SettledClone =
  | { readonly status: 'fulfilled'; readonly cloneId: number; readonly value: Vm }
  | { readonly status: 'rejected'; readonly cloneId: number; readonly reason: SnowforkError };

export interface ClonesResult {
  /** For `host.join`. `ticket.clones` may be fewer than asked for; `ticket.reason` says why. */
  readonly ticket: TicketInfo;
  readonly snapshot: SnapshotInfo;
  /** One per clone of the ticket, by `cloneId`. */
  readonly clones: readonly SettledClone[];
}

export interface ForkOutcome extends ClonesResult {
  /** How long the parent was paused, and why. */
  readonly freeze: FreezeTimes;
}

export class Vm {
  readonly id: string;
  /** What the agent said when this handle was made: image, parent, times from call to answer. */
  readonly initialInfo: VmInfo;
  readonly #transport: Transport;

  /** @internal by `Host` and forks only */
  constructor(transport: Transport, info: VmInfo) {
    this.#transport = transport;
    this.id = info.id;
    this.initialInfo = info;
  }

  /**
   * Forks the running VM into `clones` (1 to 256) copies of itself; it goes on. Resolves when each
   * clone answers or has failed. In a cluster clones run on several hosts, as `options` say.
   *
   * ```ts
   * const { clones } = await vm.fork(8);
   * for (const clone of clones) {
   *   if (clone.status === 'fulfilled') await clone.value.exec('hostname');
   * }
   * ```
   *
   * @throws SnowforkError SF_BAD_REQUEST, SF_VM_NOT_FOUND, SF_VM_GONE, SF_GUEST_NOT_READY,
   * SF_NO_ROOM when there is room for none, SF_LAYERS_FULL (the VM is unharmed), SF_ABORTED,
   * SF_TIMEOUT.
   * @see Lagar-Cavilla et al., SnowFlock, EuroSys 2009
   */
  async fork(clones: number, options: CloneOptions = {}): Promise<ForkOutcome> {
    const result = await requestClones(this.#transport, ['vms', this.id, 'fork'], clones, options);
    if (result.freeze === undefined) {
      throw new SnowforkError('SF_INTERNAL', 'the agent forked without saying how long it took');
    }
    return { ...settleClones(this.#transport, result), freeze: result.freeze };
  }

  /**
   * Freezes the VM and keeps the snapshot until it is deleted; the VM goes on.
   * `host.createClones(result.snapshot, n)` makes VMs of it, any number of times.
   *
   * @throws SnowforkError as `fork`.
   */
  async checkpoint(options: WaitOptions = {}): Promise<CheckpointResult> {
    const path = apiPath('vms', this.id, 'checkpoint');
    return withDeadline(options, 'the checkpoint', (signal) =>
      this.#transport.json({ method: 'POST', path, signal }, checkpointResultSchema),
    );
  }

  /**
   * Runs a command to its end: a list of arguments, or a line for `/bin/sh -c`. An exit code other
   * than 0 is a result, no error. Aborting and `timeoutMs` kill the command.
   *
   * @throws SnowforkError SF_VM_NOT_FOUND, SF_VM_GONE, SF_GUEST_NOT_READY, SF_BAD_REQUEST when the
   * guest cannot start the command, SF_VALUE_TOO_LARGE above `maxBuffer`, SF_ABORTED, SF_TIMEOUT.
   */
  exec(
    command: Command,
    options: ExecOptions & { encoding: 'buffer' },
  ): Promise<ExecResult<Buffer>>;
  exec(command: Command, options?: ExecOptions & { encoding?: 'utf8' }): Promise<ExecResult>;
  exec(command: Command, options: ExecOptions = {}): Promise<ExecResult<string | Buffer>> {
    return runCommand(this.#transport, this.id, command, options);
  }

  /**
   * Starts a command and resolves when it runs; `stdin`, `stdout` and `stderr` are streams.
   *
   * @throws SnowforkError as `exec`; what happens later rejects `exit`.
   */
  async spawn(command: Command, options: SpawnOptions = {}): Promise<GuestProcess> {
    const { stdin = true, ...rest } = options;
    return new GuestProcess(
      await CommandStream.open(this.#transport, this.id, command, { ...rest, stdin }),
    );
  }

  /**
   * A byte stream to a server in the guest: a TCP port of its 127.0.0.1, or the absolute path of a
   * unix socket. Resolves when it is connected; `signal` and `timeoutMs` are for that time only.
   *
   * @throws SnowforkError as `exec`, and SF_BAD_REQUEST with the guest's words when nobody listens.
   */
  async connect(target: number | string, options: WaitOptions = {}): Promise<GuestConnection> {
    // The command goes on when the deadline of connecting no longer counts.
    const ended = new AbortController();
    return withDeadline(options, 'the connection', async (signal) => {
      const giveUp = () => ended.abort(signal.reason);
      if (signal.aborted) giveUp();
      signal.addEventListener('abort', giveUp, { once: true });
      const command = ['sf-guest', 'connect', String(target)];
      const relay = await this.spawn(command, { signal: ended.signal });
      try {
        return await connectThrough(relay, target);
      } catch (error) {
        await relay[Symbol.asyncDispose]();
        throw error;
      } finally {
        signal.removeEventListener('abort', giveUp);
      }
    });
  }

  /**
   * Writes a file in the guest, replacing it. `mode` such as 0o755; the guest's umask when not
   * given.
   *
   * @throws SnowforkError as `exec`, and SF_BAD_REQUEST with the guest's words when it cannot.
   */
  async writeFile(
    path: string,
    data: ExecStdin,
    { mode, ...options }: WaitOptions & { mode?: number } = {},
  ): Promise<void> {
    const script = 'cat > "$1" && if [ -n "$2" ]; then chmod "$2" "$1"; fi';
    const command = [
      '/bin/sh',
      '-c',
      script,
      'sh',
      path,
      mode === undefined ? '' : mode.toString(8),
    ];
    const { code, stderr } = await this.exec(command, { ...options, stdin: data });
    if (code === 0) return;
    throw new SnowforkError('SF_BAD_REQUEST', `the guest cannot write ${path}: ${stderr.trim()}`);
  }

  /** The serial console: what was written lately, then live. */
  async console(options: { signal?: AbortSignal } = {}): Promise<ConsoleSession> {
    return openConsole(this.#transport, this.id, options.signal);
  }

  /**
   * Output of commands that this VM inherited, and words of the guest side. `follow`: until its
   * end.
   */
  logs(options: { follow?: boolean; signal?: AbortSignal } = {}): AsyncIterable<Buffer> {
    return readLogs(this.#transport, this.id, options);
  }

  /** State as of now. @throws SnowforkError SF_VM_NOT_FOUND once an ended VM is forgotten. */
  async info(options: WaitOptions = {}): Promise<VmInfo> {
    const path = apiPath('vms', this.id);
    return withDeadline(options, 'the answer', async (signal) =>
      decodeVm(await this.#transport.json({ method: 'GET', path, signal }, vmSchema)),
    );
  }

  /** Memory in bytes and pages. @throws SnowforkError SF_VM_GONE, SF_VM_NOT_FOUND. */
  async stats(options: WaitOptions = {}): Promise<VmStats> {
    const path = apiPath('vms', this.id, 'stats');
    return withDeadline(options, 'the answer', (signal) =>
      this.#transport.json({ method: 'GET', path, signal }, vmStatsSchema),
    );
  }

  /** Resolves when the VM has ended, with the value that its program handed over if it did. */
  async wait(options: WaitOptions = {}): Promise<End> {
    const path = apiPath('vms', this.id, 'wait');
    return withDeadline(options, `waiting for ${this.id}`, async (signal) =>
      decodeEnd(
        await this.#transport.outlastingJson(() => ({ method: 'POST', path, signal }), endSchema),
      ),
    );
  }

  /**
   * Brings all pages that the VM may want of other hosts to its own, so that those may go.
   * @throws SnowforkError SF_VM_NOT_FOUND, SF_VM_GONE, SF_HOST_UNREACHABLE, SF_ABORTED, SF_TIMEOUT.
   */
  async detach(options: WaitOptions = {}): Promise<DetachResult> {
    const path = apiPath('vms', this.id, 'detach');
    return withDeadline(options, 'detaching the VM', (signal) =>
      this.#transport.json({ method: 'POST', path, signal }, detachResultSchema),
    );
  }

  /** Ends the VM at once. @throws SnowforkError SF_VM_NOT_FOUND. */
  async kill(): Promise<void> {
    await this.#transport.send({ method: 'DELETE', path: apiPath('vms', this.id) });
  }

  /** Kills it, if it still runs. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.kill();
    } catch (error) {
      const code = error instanceof SnowforkError ? error.code : undefined;
      if (code !== 'SF_VM_NOT_FOUND' && code !== 'SF_VM_GONE') throw error;
    }
  }
}

/** The request of a fork or of clones of a snapshot; the number is checked before it goes out. */
export async function requestClones(
  transport: Transport,
  path: readonly string[],
  clones: number,
  { hosts, place, ...options }: CloneOptions,
): Promise<ForkResult> {
  if (!cloneCountSchema.safeParse(clones).success) {
    const message = `the number of clones is a whole number from 1 to ${CLONES_MAX}, not ${clones}`;
    throw new SnowforkError('SF_BAD_REQUEST', message);
  }
  const json = { clones, ...definedOf({ hosts, place }) };
  return withDeadline(options, 'making clones', (signal) =>
    transport.json({ method: 'POST', path: apiPath(...path), json, signal }, forkResultSchema),
  );
}

export function settleClones(transport: Transport, result: ForkResult): ClonesResult {
  const clones = result.clones.map((clone): SettledClone => {
    const { cloneId } = clone;
    if (clone.status === 'fulfilled') {
      return { status: 'fulfilled', cloneId, value: new Vm(transport, decodeVm(clone.vm)) };
    }
    return { status: 'rejected', cloneId, reason: SnowforkError.fromJSON(clone.error) };
  });
  return { ticket: result.ticket, snapshot: result.snapshot, clones };
}

export function decodeVm(info: VmInfo): VmInfo {
  return info.end === undefined ? info : { ...info, end: decodeEnd(info.end) };
}

function decodeEnd(end: End): End {
  return end.how === 'exited' ? { ...end, value: valueFromJson(end.value) } : end;
}
