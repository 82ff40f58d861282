// A cluster for tests: hosts as network namespaces, an agent of its own in each, with the tests' images
// on the first host only. Whatever ends the tests, namespaces, processes and mounts go with them;
// folders that are left are removed at the next start.

import { type ChildProcess, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { connect, type Host } from '@snowfork/sdk';
import { type NetHost, NetHosts } from '../../packages/clone-agent/src/system/net-hosts.js';
import { eventually } from './eventually.js';
import { testHost, testState } from './test-host.js';

const root = path.resolve(fileURLToPath(import.meta.url), '../../..');
const AGENT = path.join(root, 'packages/clone-agent/dist/main.js');
const PREFIX = 'sfc-';
const SHARED = ['images', 'snapshots', 'layers', 'cache'];

export interface ClusterHost {
  readonly name: string;
  readonly net: NetHost;
  readonly state: string;
  readonly sf: Host;
  agent: ChildProcess;
}

export class ClusterHosts {
  readonly hosts: ClusterHost[] = [];
  readonly net: NetHosts;
  readonly #folder: string;
  readonly #settings: object;

  /** So many hosts that know nothing of each other yet; the first has the image `minimal`. */
  static async open(count: number, settings: object = {}): Promise<ClusterHosts> {
    await (await testHost('minimal')).close();
    clearAwayOld();
    const cluster = new ClusterHosts(await NetHosts.create({ hosts: count }), settings);
    try {
      for (const net of cluster.net.hosts) await cluster.#start(net);
      return cluster;
    } catch (error) {
      await cluster.close();
      throw error;
    }
  }

  /** The same, as hosts of one cluster. */
  static async join(count: number, settings: object = {}): Promise<ClusterHosts> {
    const cluster = await ClusterHosts.open(count, settings);
    const [first, ...others] = cluster.hosts;
    await first!.sf.initCluster({ name: 'test', ...selfOf(first!) });
    const { token, address } = await first!.sf.newToken();
    for (const other of others) {
      await other.sf.joinCluster({ at: address, token, ...selfOf(other) });
    }
    return cluster;
  }

  private constructor(net: NetHosts, settings: object) {
    this.net = net;
    this.#settings = settings;
    const parent = path.dirname(testState);
    this.#folder = fs.mkdtempSync(path.join(parent, `${PREFIX}${process.pid}-`));
  }

  /** An agent that has been killed is followed by another. */
  async startAgain(host: ClusterHost): Promise<void> {
    host.agent = this.#spawn(host.net, host.state);
    await eventually(async () => void (await host.sf.info()));
  }

  async close(): Promise<void> {
    for (const { sf } of this.hosts) await sf.shutDown().catch(() => {});
    for (const { sf } of this.hosts) await sf.close();
    await this.net.close();
    fs.rmSync(this.#folder, { recursive: true, force: true });
  }

  async #start(net: NetHost): Promise<void> {
    const state = path.join(this.#folder, net.name);
    fs.mkdirSync(state, { mode: 0o700 });
    if (this.hosts.length === 0) {
      execFileSync('cp', ['-al', ...SHARED.map((name) => path.join(testState, name)), state]);
    } else {
      // Saves the seconds of probing the accelerator.
      execFileSync('cp', ['-al', path.join(testState, 'cache'), state]);
    }
    fs.writeFileSync(path.join(state, 'settings.json'), JSON.stringify(this.#settings));
    const agent = this.#spawn(net, state);
    let sf!: Host;
    await eventually(async () => {
      sf = await connect({ stateFolder: state, start: false });
    });
    this.hosts.push({ name: net.name, net, state, sf, agent });
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
}

/** Who a host is to be in its cluster. */
export function selfOf({ name, net }: ClusterHost): { host: string; address: string } {
  return { host: name, address: net.address };
}

export function agentLog({ state }: ClusterHost): string {
  return fs.readFileSync(path.join(state, 'agent.log'), 'utf8');
}

/** The process of a host that was started with these words. */
export function processOf({ state }: ClusterHost, program: string): number {
  for (const pid of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    let line: string;
    try {
      line = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8');
    } catch {
      continue;
    }
    if (line.includes(program) && line.includes(state)) return Number(pid);
  }
  throw new Error(`no process of ${state} is ${program}`);
}

function clearAwayOld(): void {
  const parent = path.dirname(testState);
  for (const name of fs.readdirSync(parent)) {
    const pid = name.startsWith(PREFIX) ? name.slice(PREFIX.length).split('-')[0] : undefined;
    if (pid === undefined || fs.existsSync(`/proc/${pid}`)) continue;
    fs.rmSync(path.join(parent, name), { recursive: true, force: true });
  }
}
