// Several agents on one machine: a host of `net-hosts.ts` and a state folder for each, with the images
// of another state folder on the first one, and a cluster of them if that is wanted. Used by the demo,
// tests and benches. Whatever ends their owner, processes, mounts and namespaces go with it; folders
// that are left then are removed by the next one.

import { type ChildProcess, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { connect, type Host } from '@snowfork/sdk';
import { type NetHost, NetHosts, type NetHostsOptions } from './net-hosts.js';

/** JavaScript, also when this runs from the sources. */
const AGENT = fileURLToPath(new URL('../../dist/main.js', import.meta.url));
const PREFIX = 'sf-hosts-';
/** Of images: how they were built, and their pages. */
const IMAGE_FOLDERS = ['images', 'snapshots', 'layers'];
/** Saves the seconds of probing the accelerator. */
const CACHE_FOLDER = 'cache';
const START_ATTEMPTS = 600;
const START_LOOK_MS = 100;

export interface NetClusterOptions extends NetHostsOptions {
  /** State folder of an agent that has built the images, which is not changed; without, there are none. */
  readonly imagesFrom?: string;
  /** The state folders are made in a folder here. */
  readonly parentFolder: string;
  /** Of the agents, as `settings.json` has them; the first host alone has the cluster's store. */
  readonly settings?: object;
}

export interface Member {
  readonly name: string;
  readonly net: NetHost;
  readonly state: string;
  readonly sf: Host;
  agent: ChildProcess;
}

export class NetCluster {
  readonly hosts: Member[] = [];
  readonly net: NetHosts;
  readonly #folder: string;
  readonly #options: NetClusterOptions;

  /** Agents that know nothing of each other yet. @throws SnowforkError as `NetHosts.create` */
  static async open(options: NetClusterOptions): Promise<NetCluster> {
    clearAwayOld(options.parentFolder);
    const cluster = new NetCluster(await NetHosts.create(options), options);
    try {
      for (const net of cluster.net.hosts) await cluster.#start(net);
      return cluster;
    } catch (error) {
      await cluster.close();
      throw error;
    }
  }

  /** The same, as hosts of one cluster. */
  static async join(options: NetClusterOptions): Promise<NetCluster> {
    const cluster = await NetCluster.open(options);
    try {
      const [first, ...others] = cluster.hosts;
      await first!.sf.initCluster({ name: 'hosts', ...selfOf(first!) });
      const { token, address } = await first!.sf.newToken();
      for (const other of others) {
        await other.sf.joinCluster({ at: address, token, ...selfOf(other) });
      }
      return cluster;
    } catch (error) {
      await cluster.close();
      throw error;
    }
  }

  private constructor(net: NetHosts, options: NetClusterOptions) {
    this.net = net;
    this.#options = options;
    this.#folder = fs.mkdtempSync(path.join(options.parentFolder, `${PREFIX}${process.pid}-`));
  }

  /** An agent that has been killed is followed by another. */
  async startAgain(host: Member): Promise<void> {
    host.agent = this.#spawn(host.net, host.state);
    await (await this.#connect(host.state, host.agent)).close();
  }

  async close(): Promise<void> {
    for (const { sf } of this.hosts) await sf.shutDown().catch(() => {});
    for (const { sf } of this.hosts) await sf.close();
    await this.net.close();
    fs.rmSync(this.#folder, { recursive: true, force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #start(net: NetHost): Promise<void> {
    const state = path.join(this.#folder, net.name);
    fs.mkdirSync(state, { mode: 0o700 });
    this.#copy([CACHE_FOLDER, ...(this.hosts.length === 0 ? IMAGE_FOLDERS : [])], state);
    const settings = { storeMember: false, ...this.#options.settings };
    fs.writeFileSync(path.join(state, 'settings.json'), JSON.stringify(settings));
    const agent = this.#spawn(net, state);
    const sf = await this.#connect(state, agent);
    this.hosts.push({ name: net.name, net, state, sf, agent });
  }

  /** By links where that can be: nobody writes to what is there. */
  #copy(names: readonly string[], state: string): void {
    const { imagesFrom } = this.#options;
    if (imagesFrom === undefined) return;
    const isOneDevice = fs.statSync(imagesFrom).dev === fs.statSync(state).dev;
    const sources = names.map((name) => path.join(imagesFrom, name)).filter(fs.existsSync);
    const how = isOneDevice ? ['-al'] : ['-a', '--reflink=auto'];
    if (sources.length > 0) execFileSync('cp', [...how, ...sources, state]);
  }

  #spawn(net: NetHost, state: string): ChildProcess {
    const log = fs.openSync(path.join(state, 'agent.log'), 'a');
    const owner = { SNOWFORK_STATE: state, SNOWFORK_OWNER: String(process.pid) };
    const agent = net.spawn(process.execPath, [AGENT], {
      cwd: '/',
      env: { ...process.env, ...owner },
      stdio: ['ignore', log, log],
    });
    fs.closeSync(log);
    return agent;
  }

  async #connect(stateFolder: string, agent: ChildProcess): Promise<Host> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await connect({ stateFolder, start: false });
      } catch (error) {
        if (attempt === START_ATTEMPTS || agent.exitCode !== null) throw error;
        await delay(START_LOOK_MS);
      }
    }
  }
}

/** Who a host is to be in its cluster. */
export function selfOf({ name, net }: Member): { host: string; address: string } {
  return { host: name, address: net.address };
}

/** Of a run that was killed: its processes and mounts went with it, its files did not. */
function clearAwayOld(parentFolder: string): void {
  for (const name of fs.readdirSync(parentFolder)) {
    const [pid] = name.startsWith(PREFIX) ? name.slice(PREFIX.length).split('-') : [];
    if (pid === undefined || fs.existsSync(`/proc/${pid}`)) continue;
    fs.rmSync(path.join(parentFolder, name), { recursive: true, force: true });
  }
}
