// Keeps a process alive: starts another when it dies, tells that one what the one before knew, and
// brings commands to whichever lives. Used by the keepers of the pager and of the memory server.

import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { LineClient } from '../hypervisor/line-client.js';
import type { ProcessJournal } from '../store/processes.js';
import type { ListeningProcess, Peer, ProcessExit } from './listening-process.js';

const CONNECT_TIMEOUT_MS = 10_000;
/** Between two attempts to start it, so that one that cannot start does not keep the host busy. */
const RESTART_DELAY_MS = 100;
const COMMAND_ATTEMPTS_MAX = 50;

export interface KeptProcessOptions {
  readonly peer: Peer;
  readonly socketPath: string;
  readonly log: Logger;
  readonly journal: ProcessJournal;
  readonly start: () => Promise<ListeningProcess>;
  /** Before any command goes to a process that was started in the place of one that died. */
  readonly restore?: (client: LineClient) => Promise<void>;
}

interface Living {
  readonly process: ListeningProcess;
  readonly client: LineClient;
}

export class KeptProcess {
  readonly #options: KeptProcessOptions;
  #living: Promise<Living>;
  #stopping = false;

  /** `adopted`: one that runs already. @throws SnowforkError SF_INTERNAL when it can't start. */
  static async open(options: KeptProcessOptions, adopted?: ListeningProcess): Promise<KeptProcess> {
    const kept = new KeptProcess(options, adopted);
    await kept.#living;
    return kept;
  }

  private constructor(options: KeptProcessOptions, adopted: ListeningProcess | undefined) {
    this.#options = options;
    this.#living = adopted === undefined ? this.#startOne(false) : this.#connect(adopted, false);
  }

  get isStopping(): boolean {
    return this.#stopping;
  }

  async pid(): Promise<number> {
    return (await this.#living).process.pid;
  }

  /** Commands can be repeated without harm: one that a death cut off goes to the next process. */
  async execute(command: string, args: Readonly<Record<string, unknown>>): Promise<unknown> {
    for (let attempt = 1; ; attempt++) {
      const { client } = await this.#living;
      try {
        return await client.execute(command, args);
      } catch (error) {
        const cutOff = client.lost.aborted && !this.#stopping;
        if (!cutOff || attempt === COMMAND_ATTEMPTS_MAX) throw SnowforkError.from(error);
        await delay(RESTART_DELAY_MS);
      }
    }
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    const living = await this.#living.catch(() => undefined);
    living?.client.close();
    await living?.process.stop();
  }

  async #startOne(isAgain: boolean): Promise<Living> {
    const process = await this.#options.start();
    this.#options.journal.add(process.pid);
    try {
      return await this.#connect(process, isAgain);
    } catch (error) {
      await process.stop();
      this.#options.journal.remove(process.pid);
      throw error;
    }
  }

  async #connect(process: ListeningProcess, isAgain: boolean): Promise<Living> {
    const { peer, socketPath, restore } = this.#options;
    const timeoutMs = CONNECT_TIMEOUT_MS;
    const client = await LineClient.connect(socketPath, { ...peer, timeoutMs });
    if (isAgain) await restore?.(client);
    void process.exited.then((exit) => this.#ended(process, client, exit));
    return { process, client };
  }

  #ended(process: ListeningProcess, client: LineClient, exit: ProcessExit): void {
    const { peer, journal, log } = this.#options;
    journal.remove(process.pid);
    client.close();
    if (this.#stopping) return;
    log.error({ exit }, `${peer.peer} died; starting another in its place`);
    this.#living = this.#startAgain();
    // Whoever says something to it is told; it may be nobody.
    this.#living.catch(() => {});
  }

  async #startAgain(): Promise<Living> {
    for (;;) {
      try {
        return await this.#startOne(true);
      } catch (error) {
        if (this.#stopping) throw error;
        this.#options.log.error({ err: error }, `${this.#options.peer.peer} does not start`);
        await delay(RESTART_DELAY_MS);
      }
    }
  }
}
