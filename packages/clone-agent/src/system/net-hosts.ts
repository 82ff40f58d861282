// Several hosts on one machine: network namespaces, joined by a bridge in a namespace of its own.
// Never touches the machine's own network. Used by tests and benches; needs root, iproute2 and
// nftables.
//
// What a host's processes mount is theirs alone, and ends with them.
//
//   bridge ──┬── port0 ── eth0 of alpha  10.99.0.1
//            ├── port1 ── eth0 of beta   10.99.0.2
//            └── …
//
// A namespace has no name: the kernel ends it, with its interfaces, when its last process ends. So
// each has a holder, which waits for the end of its owner, however that ends, and then ends every
// process in its namespaces: nothing is left to be swept later. A VM has no network, but it has what its
// host mounts.

import assert from 'node:assert/strict';
import { type ChildProcess, execFile, type SpawnOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { promisify } from 'node:util';
import { SnowforkError } from '@snowfork/sdk/api';

const run = promisify(execFile);

const NAMES = [
  ...['alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta', 'eta', 'theta', 'iota', 'kappa'],
  ...['lambda', 'mu', 'nu', 'xi', 'omicron', 'pi', 'rho', 'sigma', 'tau', 'upsilon', 'phi'],
  ...['chi', 'psi', 'omega'],
];
export const NET_HOSTS_MAX = NAMES.length;
const PROGRAMS = ['ip', 'nft', 'tc', 'unshare', 'nsenter', 'find'];
const PROGRAM_FOLDERS = ['/usr/sbin', '/usr/bin', '/sbin', '/bin'];
const MTU_BYTES = 1500;
const BRIDGE_MTU_BYTES = 9000;
/** A limited link sends in bursts of at most this time, and queues as a small switch does. */
const BURST_S = 0.001;
const BURST_BYTES_MIN = 16 * 1024;
const QUEUE_S = 0.005;
const QUEUE_BYTES_MIN = 256 * 1024;
/** Of a share of datagrams that is lost. */
const PARTS = 1_000_000;
const CLOSE_MS = 15_000;

/**
 * What a holder does: it waits for the end of its standard input, then kills by number whatever has
 * one of its namespaces, until there is nothing. The list of processes is made before `find` runs, so that
 * it does not find itself.
 */
const HOLDER = `
net=$(stat -L -c %i /proc/$$/ns/net)
mounts=$(stat -L -c %i /proc/$$/ns/mnt)
echo
cat >/dev/null
for round in $(seq 200); do
  set -- /proc/[0-9]*/ns/net /proc/[0-9]*/ns/mnt
  left=
  for found in $(find -L "$@" -maxdepth 0 '(' -inum $net -o -inum $mounts ')' 2>/dev/null); do
    pid=\${found#/proc/}
    pid=\${pid%%/*}
    if [ $pid != $$ ] && kill -9 $pid 2>/dev/null; then left=1; fi
  done
  if [ -z "$left" ]; then exit 0; fi
  sleep 0.05
done
`;

export interface NetCounters {
  readonly bytesReceived: number;
  readonly packetsReceived: number;
  readonly bytesSent: number;
  readonly packetsSent: number;
}

export interface NetHostsOptions {
  readonly hosts: number;
  /** Of each host's interface, or of each in turn; 1,500 where nothing is said, at most 9,000. */
  readonly mtuBytes?: number | readonly number[];
  /** Of each host's link; as fast as the machine where nothing is said. */
  readonly bitsPerSecond?: number;
}

/** Why there can be none on this machine, or undefined. */
export function whyNoNetHosts(): string | undefined {
  if (process.getuid?.() !== 0) return 'network namespaces need root';
  const isThere = (program: string): boolean =>
    PROGRAM_FOLDERS.some((folder) => fs.existsSync(`${folder}/${program}`));
  const missing = PROGRAMS.filter((program) => !isThere(program));
  if (missing.length === 0) return undefined;
  return `${missing.join(', ')} is missing: apt-get install iproute2 nftables`;
}

export class NetHosts {
  readonly #bridge: Namespace;
  readonly #hosts: NetHost[] = [];

  /** @throws SnowforkError SF_INTERNAL when this machine can have none; then nothing is left. */
  static async create(options: NetHostsOptions): Promise<NetHosts> {
    const { hosts, bitsPerSecond } = options;
    assert(hosts >= 1 && hosts <= NET_HOSTS_MAX, `1 to ${NET_HOSTS_MAX} hosts`);
    const reason = whyNoNetHosts();
    if (reason !== undefined) throw new SnowforkError('SF_INTERNAL', reason);
    const net = new NetHosts(await Namespace.open());
    try {
      await net.#makeBridge();
      for (let index = 0; index < hosts; index++) {
        const mtuBytes = Array.isArray(options.mtuBytes)
          ? options.mtuBytes[index]
          : options.mtuBytes;
        const host = await net.#addHost(mtuBytes ?? MTU_BYTES);
        if (bitsPerSecond !== undefined) await host.limit(bitsPerSecond);
      }
      return net;
    } catch (cause) {
      await net.close();
      throw new SnowforkError('SF_INTERNAL', `no hosts: ${String(cause)}`, { cause });
    }
  }

  private constructor(bridge: Namespace) {
    this.#bridge = bridge;
  }

  get hosts(): readonly NetHost[] {
    return this.#hosts;
  }

  /** Ends all processes of all hosts, then the network. */
  async close(): Promise<void> {
    await Promise.all(this.#hosts.map((host) => host.namespaceHeld.close()));
    await this.#bridge.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #makeBridge(): Promise<void> {
    const mtu = ['mtu', String(BRIDGE_MTU_BYTES)];
    const type = ['type', 'bridge', 'mcast_snooping', '0', 'stp_state', '0'];
    await this.#bridge.run('ip', 'link', 'add', 'bridge', ...mtu, ...type);
    await this.#bridge.run('ip', 'link', 'set', 'bridge', 'up');
  }

  async #addHost(mtuBytes: number): Promise<NetHost> {
    const bridge = this.#bridge;
    const index = this.#hosts.length;
    const namespace = await Namespace.open();
    const host = new NetHost({ index, namespace, bridge });
    this.#hosts.push(host);
    const end = ['mtu', String(BRIDGE_MTU_BYTES), 'type', 'veth'];
    const peer = ['name', 'eth0', 'mtu', String(mtuBytes), 'netns', String(namespace.pid)];
    await bridge.run('ip', 'link', 'add', `port${index}`, ...end, 'peer', ...peer);
    await bridge.run('ip', 'link', 'set', `port${index}`, 'master', 'bridge', 'up');
    const address = [`${host.address}/24`, 'broadcast', '+', 'dev', 'eth0'];
    await namespace.run('ip', 'address', 'add', ...address);
    await namespace.run('ip', 'link', 'set', 'lo', 'up');
    await namespace.run('ip', 'link', 'set', 'eth0', 'up');
    await namespace.run('ip', 'route', 'add', '224.0.0.0/4', 'dev', 'eth0');
    return host;
  }
}

/** Made by {@link NetHosts.create}. */
export class NetHost {
  readonly name: string;
  /** IPv4, of `eth0`. */
  readonly address: string;
  /** For `nsenter --net=…`, for as long as the hosts are open. */
  readonly namespace: string;
  /** @internal */
  readonly namespaceHeld: Namespace;
  readonly #bridge: Namespace;
  readonly #port: string;
  #lostParts = 0;
  #isMulticastBlocked = false;

  constructor(of: { index: number; namespace: Namespace; bridge: Namespace }) {
    this.name = NAMES[of.index]!;
    this.address = `10.99.0.${of.index + 1}`;
    this.namespace = of.namespace.path;
    this.namespaceHeld = of.namespace;
    this.#bridge = of.bridge;
    this.#port = `port${of.index}`;
  }

  /** Starts a program here; it and its children are killed when the hosts end, or their owner. */
  spawn(program: string, args: readonly string[], options: SpawnOptions = {}): ChildProcess {
    const { cwd = process.cwd(), ...rest } = options;
    return spawn('nsenter', [...this.namespaceHeld.enter(String(cwd)), program, ...args], rest);
  }

  /** Runs a program here to its end. @returns what it wrote. */
  async run(program: string, ...args: readonly string[]): Promise<string> {
    return await this.namespaceHeld.run(program, ...args);
  }

  /** Of the link, each way for itself; in the place of the limit before. */
  async limit(bitsPerSecond: number): Promise<void> {
    assert(bitsPerSecond > 0);
    const bytesPerSecond = bitsPerSecond / 8;
    const bucket = [
      ...['rate', `${Math.round(bitsPerSecond)}bit`],
      ...['burst', `${Math.max(BURST_BYTES_MIN, Math.round(bytesPerSecond * BURST_S))}b`],
      ...['limit', `${Math.max(QUEUE_BYTES_MIN, Math.round(bytesPerSecond * QUEUE_S))}b`],
    ];
    const replace = (device: string): string[] => ['qdisc', 'replace', 'dev', device, 'root'];
    await this.namespaceHeld.run('tc', ...replace('eth0'), 'tbf', ...bucket);
    await this.#bridge.run('tc', ...replace(this.#port), 'tbf', ...bucket);
  }

  /** `share`: of the UDP datagrams that come here, by chance; 0 to 1. */
  async loseDatagrams(share: number): Promise<void> {
    assert(share >= 0 && share <= 1, 'a share is 0 to 1');
    this.#lostParts = Math.round(share * PARTS);
    await this.#filter();
  }

  /** Datagrams to groups don't come here any more; this host still sends them. */
  async blockMulticast(): Promise<void> {
    this.#isMulticastBlocked = true;
    await this.#filter();
  }

  /** As when the cable is pulled. */
  async cutOff(): Promise<void> {
    await this.#bridge.run('ip', 'link', 'set', this.#port, 'down');
  }

  /** Nothing is lost, blocked or cut off any more; a limit stays. */
  async heal(): Promise<void> {
    this.#lostParts = 0;
    this.#isMulticastBlocked = false;
    await this.#filter();
    await this.#bridge.run('ip', 'link', 'set', this.#port, 'up');
  }

  /** Of `eth0`, with Ethernet's headers. */
  counters(): NetCounters {
    const text = fs.readFileSync(`/proc/${this.namespaceHeld.pid}/net/dev`, 'utf8');
    const line = text.split('\n').find((line) => line.trim().startsWith('eth0:'))!;
    const numbers = line
      .slice(line.indexOf(':') + 1)
      .trim()
      .split(/\s+/)
      .map(Number);
    return {
      bytesReceived: numbers[0]!,
      packetsReceived: numbers[1]!,
      bytesSent: numbers[8]!,
      packetsSent: numbers[9]!,
    };
  }

  async #filter(): Promise<void> {
    const rules = ['flush ruleset'];
    if (this.#lostParts > 0 || this.#isMulticastBlocked) {
      rules.push('add table inet hosts');
      rules.push('add chain inet hosts input { type filter hook input priority 0 ; }');
    }
    if (this.#isMulticastBlocked) {
      rules.push('add rule inet hosts input ip daddr 224.0.0.0/4 drop');
    }
    if (this.#lostParts > 0) {
      const chance = `numgen random mod ${PARTS} < ${this.#lostParts}`;
      rules.push(`add rule inet hosts input meta l4proto udp ${chance} drop`);
    }
    await this.namespaceHeld.run('nft', rules.join('\n'));
  }
}

/** Namespaces without a name, of the network and of mounts, and their holder. */
class Namespace {
  readonly pid: number;
  readonly path: string;
  readonly #holder: ChildProcess;

  static async open(): Promise<Namespace> {
    const holder = spawn('unshare', ['--net', '--mount', 'sh', '-c', HOLDER], {
      // A group of its own: it must outlive what a terminal sends to its owner's.
      detached: true,
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const ended = once(holder, 'exit').then(([code]) => {
      throw new Error(`a network namespace was refused (exit code ${code})`);
    });
    // Its end later on is for close().
    ended.catch(() => {});
    await Promise.race([once(holder.stdout!, 'data'), ended]);
    return new Namespace(holder);
  }

  private constructor(holder: ChildProcess) {
    this.pid = holder.pid!;
    this.path = `/proc/${this.pid}/ns/net`;
    this.#holder = holder;
  }

  /** For `nsenter`: what is mounted there is nobody else's, and goes with the namespace. */
  enter(folder: string): string[] {
    return [`--net=${this.path}`, `--mount=/proc/${this.pid}/ns/mnt`, `--wdns=${folder}`];
  }

  async run(program: string, ...args: readonly string[]): Promise<string> {
    const { stdout } = await run('nsenter', [`--net=${this.path}`, program, ...args]);
    return stdout;
  }

  async close(): Promise<void> {
    if (this.#holder.exitCode !== null || this.#holder.signalCode !== null) return;
    const exited = once(this.#holder, 'exit', { signal: AbortSignal.timeout(CLOSE_MS) });
    this.#holder.stdin!.end();
    await exited;
  }
}
