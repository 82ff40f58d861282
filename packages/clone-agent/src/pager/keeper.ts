// Keeps a pager alive: holds /dev/fuse open, mounts, starts the pager on the descriptor and starts
// another when one dies; faults wait meanwhile and find the same pages after. The agent talks to
// whichever pager lives through this.

import fs from 'node:fs';
import path from 'node:path';
import {
  hostStatsSchema,
  pagerObjectStatsSchema,
  receivedStatsSchema,
  replicaStatsSchema,
} from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { z } from 'zod';
import type { ProcessJournal } from '../store/processes.js';
import type { StateFolder } from '../store/state-folder.js';
import { KeptProcess } from '../system/kept-process.js';
import { adoptPager, PAGER_PEER, PAGER_SOCKET, type PagerProcess, startPager } from './client.js';
import { abortConnection, fuseConnection, mountFuse, openFuse } from './mount.js';

const count = z.number().int().nonnegative();
/** By process: pages of zeros, of local layers, of replicas, and of these those that it waited for. */
const readersSchema = z.record(z.string(), z.tuple([count, count, count, count]));
export type Readers = z.infer<typeof readersSchema>;
const statsSchema = hostStatsSchema.shape.pager.extend({
  objects: z.array(pagerObjectStatsSchema.extend({ readers: readersSchema })),
  received: z.array(receivedStatsSchema),
  replicas: replicaStatsSchema,
});
export type PagerStats = z.infer<typeof statsSchema>;
const bringSchema = z.object({ missing: z.number() });
const faultsSchema = z.object({ pages: z.array(z.number()) });

export interface PagerKeeperOptions {
  readonly state: StateFolder;
  readonly log: Logger;
  readonly journal: ProcessJournal;
  /** As `startPager` has it. */
  readonly replays?: boolean;
}

export class PagerKeeper {
  readonly #options: PagerKeeperOptions;
  readonly #fuseFd: number;
  readonly #pager: KeptProcess;

  /** @throws SnowforkError SF_PERMISSION when /dev/fuse cannot be opened or mounted, SF_INTERNAL. */
  static async start(options: PagerKeeperOptions): Promise<PagerKeeper> {
    const fd = openFuse();
    try {
      await mountFuse({ fd, mountPoint: options.state.mount });
      return await PagerKeeper.#keep(options, fd);
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
    return await PagerKeeper.#keep(options, adopted.fuseFd, adopted.process);
  }

  static async #keep(
    options: PagerKeeperOptions,
    fuseFd: number,
    adopted?: PagerProcess,
  ): Promise<PagerKeeper> {
    const { state, journal, log, replays = true } = options;
    const kept = {
      peer: PAGER_PEER,
      socketPath: path.join(state.run, PAGER_SOCKET),
      log,
      journal,
      start: () => startPager({ fuseFd, runFolder: state.run, replays }),
    };
    return new PagerKeeper(options, fuseFd, await KeptProcess.open(kept, adopted));
  }

  private constructor(options: PagerKeeperOptions, fuseFd: number, pager: KeptProcess) {
    this.#options = options;
    this.#fuseFd = fuseFd;
    this.#pager = pager;
  }

  /** So that nobody ends it for a left-over. */
  async pid(): Promise<number> {
    return await this.#pager.pid();
  }

  /**
   * The snapshot is complete: whoever waits for a page of it gets it. What clones of `like` touched
   * first is pushed to its own; what those of other hosts did (`first`) is fetched.
   */
  async ready(
    snapshot: string,
    of: { like?: readonly string[]; first?: readonly number[] },
  ): Promise<void> {
    await this.#pager.execute('ready', { snapshot, ...of });
  }

  /**
   * All pages of the snapshot are to be on this host, and to stay. Called until it returns that none
   * is missing: a pager that dies knows nothing of it.
   */
  async bringAll(snapshot: string): Promise<number> {
    return bringSchema.parse(await this.#pager.execute('bringAll', { snapshot })).missing;
  }

  /** Resolves when these pages of its RAM are on this host, or have not come for a while. */
  async bring(snapshot: string, pages: readonly number[]): Promise<void> {
    await this.#pager.execute('bring', { snapshot, pages });
  }

  /** Pages that clones of the snapshot have waited for, in that order, and then what was pushed beside them. */
  async faults(snapshot: string): Promise<number[]> {
    return faultsSchema.parse(await this.#pager.execute('faults', { snapshot })).pages;
  }

  /** Clones on another host have touched these, of what was pushed to them as well. */
  async touched(snapshot: string, pages: readonly number[]): Promise<void> {
    await this.#pager.execute('touched', { snapshot, pages });
  }

  /** The snapshot is gone; nothing waits for the pager to have heard it. */
  drop(snapshot: string): void {
    this.#pager.execute('drop', { snapshot }).catch((error: unknown) => {
      if (!this.#pager.isStopping) this.#options.log.warn({ snapshot, err: error }, 'drop');
    });
  }

  async stats(): Promise<PagerStats> {
    return statsSchema.parse(await this.#pager.execute('stats', {}));
  }

  /** Ends the pager and whatever still waits for a page. */
  async stop(): Promise<void> {
    const connection = await fuseConnection(this.#options.state.mount);
    await this.#pager.stop();
    if (connection !== undefined) await abortConnection(connection);
    fs.closeSync(this.#fuseFd);
  }
}
