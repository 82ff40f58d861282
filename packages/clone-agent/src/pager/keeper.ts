// Keeps a pager alive: holds /dev/fuse open, mounts, starts the pager on the descriptor and starts
// another when one dies; faults wait meanwhile and find the same pages after. The agent talks to
// whichever pager lives through this.

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type HostStats, hostStatsSchema, SnowforkError } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { z } from 'zod';
import { LineClient } from '../hypervisor/line-client.js';
import type { ProcessJournal } from '../store/processes.js';
import type { StateFolder } from '../store/state-folder.js';
import { adoptPager, PAGER_PEER, PAGER_SOCKET, type PagerProcess, startPager } from './client.js';
import { abortConnection, fuseConnection, mountFuse, openFuse } from './mount.js';

const CONNECT_TIMEOUT_MS = 10_000;
/** Between two attempts to start a pager, so that one that cannot start does not keep the host busy. */
const RESTART_DELAY_MS = 100;
const COMMAND_ATTEMPTS_MAX = 50;

const faultsSchema = z.object({ pages: z.array(z.number()) });

export interface PagerKeeperOptions {
  readonly state: StateFolder;
  readonly log: Logger;
  readonly journal: ProcessJournal;
}

interface LivingPager {
  readonly process: PagerProcess;
  readonly client: LineClient;
}

export class PagerKeeper {
  readonly #options: PagerKeeperOptions;
  readonly #fuseFd: number;
  #pager!: Promise<LivingPager>;
  #stopping = false;

  /** @throws SnowforkError SF_PERMISSION when /dev/fuse cannot be opened or mounted, SF_INTERNAL. */
  static async start(options: PagerKeeperOptions): Promise<PagerKeeper> {
    const fd = openFuse();
    try {
      await mountFuse({ fd, mountPoint: options.state.mount });
      const keeper = new PagerKeeper(options, fd);
      keeper.#pager = keeper.#startOne();
      await keeper.#pager;
      return keeper;
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
  }

  /**
   * Takes over the pager of an agent that was killed, with its mount and all that is served through it.
   * @returns undefined when it has gone too: then nobody can answer what its VMs wait for
   */
  static async adopt(options: PagerKeeperOptions): Promise<PagerKeeper | undefined> {
    const adopted = await adoptPager(path.join(options.state.run, PAGER_SOCKET));
    if (adopted === undefined) return undefined;
    const keeper = new PagerKeeper(options, adopted.fuseFd);
    keeper.#pager = keeper.#connect(adopted.process);
    await keeper.#pager;
    return keeper;
  }

  private constructor(options: PagerKeeperOptions, fuseFd: number) {
    this.#options = options;
    this.#fuseFd = fuseFd;
  }

  /** So that nobody ends it for a left-over. */
  async pid(): Promise<number> {
    return (await this.#pager).process.pid;
  }

  /**
   * The snapshot is complete: whoever waits for a page of it gets it. What clones of `like` touched
   * first is pushed to its own; what those of other hosts did (`first`) is fetched.
   */
  async ready(
    snapshot: string,
    of: { like?: readonly string[]; first?: readonly number[] },
  ): Promise<void> {
    await this.#execute('ready', { snapshot, ...of });
  }

  /** Pages that clones of the snapshot have waited for, in that order. */
  async faults(snapshot: string): Promise<number[]> {
    return faultsSchema.parse(await this.#execute('faults', { snapshot })).pages;
  }

  /** The snapshot is gone; nothing waits for the pager to have heard it. */
  drop(snapshot: string): void {
    this.#execute('drop', { snapshot }).catch((error: unknown) => {
      if (!this.#stopping) this.#options.log.warn({ snapshot, err: error }, 'drop');
    });
  }

  async stats(): Promise<HostStats['pager']> {
    return hostStatsSchema.shape.pager.parse(await this.#execute('stats', {}));
  }

  /** Ends the pager and whatever still waits for a page. */
  async stop(): Promise<void> {
    this.#stopping = true;
    const connection = await fuseConnection(this.#options.state.mount);
    const pager = await this.#pager.catch(() => undefined);
    pager?.client.close();
    await pager?.process.stop();
    if (connection !== undefined) await abortConnection(connection);
    fs.closeSync(this.#fuseFd);
  }

  async #startOne(): Promise<LivingPager> {
    const { state, journal } = this.#options;
    const process = await startPager({ fuseFd: this.#fuseFd, runFolder: state.run });
    journal.add(process.pid);
    return this.#connect(process);
  }

  async #connect(process: PagerProcess): Promise<LivingPager> {
    const { state, journal, log } = this.#options;
    const client = await LineClient.connect(path.join(state.run, PAGER_SOCKET), {
      ...PAGER_PEER,
      timeoutMs: CONNECT_TIMEOUT_MS,
    });
    void process.exited.then((exit) => {
      journal.remove(process.pid);
      client.close();
      if (this.#stopping) return;
      log.error({ exit }, 'the pager died; starting another on the same mount');
      this.#pager = this.#startAgain();
    });
    return { process, client };
  }

  async #startAgain(): Promise<LivingPager> {
    for (;;) {
      try {
        return await this.#startOne();
      } catch (error) {
        if (this.#stopping) throw error;
        this.#options.log.error({ err: error }, 'the pager does not start');
        await delay(RESTART_DELAY_MS);
      }
    }
  }

  /** Commands can be repeated without harm: one that a pager's death cut off goes to the next pager. */
  async #execute(command: string, args: Record<string, unknown>): Promise<unknown> {
    for (let attempt = 1; ; attempt++) {
      const { client } = await this.#pager;
      try {
        return await client.execute(command, args);
      } catch (error) {
        const cutOff = client.lost.aborted && !this.#stopping;
        if (!cutOff || attempt === COMMAND_ATTEMPTS_MAX) throw SnowforkError.from(error);
        await delay(RESTART_DELAY_MS);
      }
    }
  }
}
