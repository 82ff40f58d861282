// Hosts of a network, for tests: network namespaces, joined by a bridge in a namespace of its own.
// A namespace has no name and lives as long as its holder, which ends when this process does,
// however that ends: nothing is left behind.
//
//   bridge ──┬── host 0   10.99.0.1
//            ├── host 1   10.99.0.2
//            └── …

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { promisify } from 'node:util';

const run = promisify(execFile);
const PROGRAMS = ['/usr/sbin/ip', '/usr/sbin/nft', '/usr/bin/unshare', '/usr/bin/nsenter'];
const STOP_MS = 5000;

/** Why there can be none on this machine, or undefined. */
export function whyNoNamespaces(): string | undefined {
  if (process.getuid?.() !== 0) return 'network namespaces need root';
  const missing = PROGRAMS.filter((program) => !fs.existsSync(program));
  return missing.length > 0 ? `${missing.join(', ')} is missing` : undefined;
}

export class Namespaces {
  readonly #holders: ChildProcess[] = [];
  readonly #started = new Set<ChildProcess>();

  /** `mtuBytes`: of each host's interface; 1,500 where nothing is said. */
  static async make(hosts: readonly { mtuBytes?: number }[]): Promise<Namespaces> {
    const made = new Namespaces();
    try {
      const bridge = await made.#hold();
      const inBridge = (...args: string[]): Promise<unknown> =>
        run('nsenter', [...bridge, ...args]);
      await inBridge('ip', 'link', 'add', 'bridge', 'mtu', '9000', 'type', 'bridge');
      await inBridge('ip', 'link', 'set', 'bridge', 'up');
      for (const [index, { mtuBytes = 1500 }] of hosts.entries()) {
        await made.#hold();
        const port = `port${index}`;
        const peer = ['peer', 'name', 'eth0', 'mtu', String(mtuBytes), 'netns'];
        const link = ['ip', 'link', 'add', port, 'mtu', '9000', 'type', 'veth'];
        await inBridge(...link, ...peer, String(made.#holders[index + 1]!.pid));
        await inBridge('ip', 'link', 'set', port, 'master', 'bridge', 'up');
        await made.run(index, 'ip', 'address', 'add', `${made.address(index)}/24`, 'dev', 'eth0');
        await made.run(index, 'ip', 'link', 'set', 'lo', 'up');
        await made.run(index, 'ip', 'link', 'set', 'eth0', 'up');
        await made.run(index, 'ip', 'route', 'add', '224.0.0.0/4', 'dev', 'eth0');
      }
      return made;
    } catch (error) {
      await made.stop();
      throw error;
    }
  }

  address(host: number): string {
    return `10.99.0.${host + 1}`;
  }

  /** Runs a program on a host to its end. */
  async run(host: number, ...command: string[]): Promise<string> {
    const { stdout } = await run('nsenter', [...this.#enter(host), ...command]);
    return stdout;
  }

  /** Starts a program on a host; it is killed with the namespaces. */
  start(host: number, ...command: string[]): ChildProcess {
    const child = spawn('nsenter', [...this.#enter(host), ...command], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.#started.add(child);
    child.once('exit', () => this.#started.delete(child));
    return child;
  }

  /** Rules of the packet filter of a host, as nft reads them; in the place of those before. */
  async filter(host: number, rules: string): Promise<void> {
    await this.run(host, 'nft', `flush ruleset; ${rules}`);
  }

  async stop(): Promise<void> {
    const children = [...this.#started, ...this.#holders];
    const ends = children.map(async (child) => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill('SIGKILL');
      await once(child, 'exit', { signal: AbortSignal.timeout(STOP_MS) });
    });
    await Promise.all(ends);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  #enter(host: number): string[] {
    return enter(this.#holders[host + 1]!);
  }

  /** A namespace: `cat` ends when its standard input does. */
  async #hold(): Promise<string[]> {
    const holder = spawn('unshare', ['--net', 'sh', '-c', 'echo; exec cat'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.#holders.push(holder);
    await once(holder.stdout, 'data');
    return enter(holder);
  }
}

function enter(holder: ChildProcess): string[] {
  return [`--net=/proc/${holder.pid}/ns/net`];
}
