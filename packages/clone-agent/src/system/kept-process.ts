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
  /** The last that `#living` has come to, until its process has ended. */
  #now: Living | undefined;
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
    // Also one that is being started.
    await this.#living.catch(() => {});
    const now = this.#now;
    now?.client.close();
    await now?.process.stop();
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
    const client = await this.#reach();
    if (isAgain) await this.#options.restore?.(client);
    const living = this.#keep({ process, client });
    void process.exited.then((exit) => this.#ended(process, exit));
    return living;
  }

  async #reach(): Promise<LineClient> {
    const { peer, socketPath } = this.#options;
    return await LineClient.connect(socketPath, { ...peer, timeoutMs: CONNECT_TIMEOUT_MS });
  }

  #keep(living: Living): Living {
    this.#now = living;
    const { lost } = living.client;
    const again = () => {
      if (this.#now !== living || this.#stopping) return;
      this.#living = this.#reachAgain(living.process);
      this.#living.catch(() => {});
    };
    if (lost.aborted) again();
    else lost.addEventListener('abort', again, { once: true });
    return living;
  }

  /** Only the connection was lost, if the process does not turn out to have ended. */
  async #reachAgain(process: ListeningProcess): Promise<Living> {
    const { peer, log } = this.#options;
    for (;;) {
      await delay(RESTART_DELAY_MS);
      const client = await this.#reach().catch((err: unknown) => {
        log.error({ err }, `${peer.peer} can't be reached`);
      });
      const isItsOwn = this.#now?.process === process && !this.#stopping;
      if (client !== undefined && isItsOwn) return this.#keep({ process, client });
      client?.close();
      if (this.#stopping) throw new SnowforkError(peer.errorCode, `${peer.peer} is being stopped`);
      // It has ended: whoever comes after it.
      if (!isItsOwn) return await this.#living;
    }
  }

  #ended(process: ListeningProcess, exit: ProcessExit): void {
    const { peer, journal, log } = this.#options;
    journal.remove(process.pid);
    const now = this.#now;
    this.#now = undefined;
    now?.client.close();
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
