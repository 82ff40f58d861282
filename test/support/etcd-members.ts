// Members of etcd on this machine, as three hosts of a cluster would run them: with certificates of
// the cluster's authority, on ports of loopback. Used by the tests of the cluster's store.

import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import pino from 'pino';
import {
  makeAuthority,
  makeRequest,
  type Signed,
  signHost,
} from '../../packages/clone-agent/src/cluster/authority.js';
import { type EtcdOptions, EtcdStore } from '../../packages/clone-agent/src/cluster/etcd.js';
import type { EtcdAccess } from '../../packages/clone-agent/src/cluster/etcd-link.js';
import {
  EtcdProcess,
  type EtcdProcessOptions,
} from '../../packages/clone-agent/src/cluster/etcd-process.js';

const ADDRESS = '127.0.0.1';
export const SILENT = pino({ level: 'silent' });

export class EtcdMembers {
  readonly #folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-etcd-'));
  readonly #members: EtcdProcessOptions[] = [];
  readonly #processes = new Map<string, EtcdProcess>();
  readonly #authority: Signed;
  /** Keys of one test are not those of another. */
  #cluster = 0;

  static async start(names: readonly string[]): Promise<EtcdMembers> {
    const members = new EtcdMembers(await makeAuthority('store'));
    const ports = await freePorts(names.length * 2);
    const urls = names.map((name, index) => [name, `https://${ADDRESS}:${ports[index * 2]}`]);
    for (const [index, name] of names.entries()) {
      members.#members.push({
        ...(await members.#sign(name)),
        ...{ name, address: ADDRESS, log: SILENT },
        ...{ peerPort: ports[index * 2]!, clientPort: ports[index * 2 + 1]! },
        ...{ folder: path.join(members.#folder, name), members: Object.fromEntries(urls) },
      });
    }
    await Promise.all(names.map((name) => members.start(name)));
    return members;
  }

  private constructor(authority: Signed) {
    this.#authority = authority;
  }

  /** From now on stores are of another cluster. */
  forgetAll(): void {
    this.#cluster++;
  }

  async start(name: string): Promise<EtcdProcess> {
    const process = await EtcdProcess.open(this.options(name));
    this.#processes.set(name, process);
    return process;
  }

  async stop(name: string): Promise<void> {
    await this.#processes.get(name)?.stop();
    this.#processes.delete(name);
  }

  options(name: string): EtcdProcessOptions {
    return this.#members.find((member) => member.name === name)!;
  }

  /** As a host of the cluster. */
  async access(host: string): Promise<EtcdAccess> {
    const endpoints = this.#members.map(({ clientPort }) => `https://${ADDRESS}:${clientPort}`);
    return { ...(await this.#sign(host)), endpoints, cluster: `cluster${this.#cluster}` };
  }

  async open(host: string, more: Partial<EtcdOptions> = {}): Promise<EtcdStore> {
    return await EtcdStore.open({ ...(await this.access(host)), log: SILENT, ...more });
  }

  async close(): Promise<void> {
    await Promise.all([...this.#processes.keys()].map((name) => this.stop(name)));
    fs.rmSync(this.#folder, { recursive: true });
  }

  async #sign(host: string): Promise<Pick<EtcdAccess, 'ca' | 'certificate' | 'privateKey'>> {
    const { request, privateKey } = await makeRequest(host);
    const of = { request, address: ADDRESS, cluster: 'store', host };
    const certificate = await signHost(this.#authority, of);
    return { ca: this.#authority.certificate, certificate, privateKey };
  }
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => net.createServer());
  const ports = servers.map(
    (server) =>
      new Promise<number>((resolve) => {
        server.listen(0, ADDRESS, () => resolve((server.address() as net.AddressInfo).port));
      }),
  );
  const found = await Promise.all(ports);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return found;
}
