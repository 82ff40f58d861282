// A member of the cluster's store on this host: Debian's etcd, as a process of its own that outlives
// the agent. Starts it when it is not there, with the host's certificate; only hosts of the cluster can
// talk to it. Knows nothing of what is stored.

import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import https from 'node:https';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';
import { processStartTime, WatchedProcess } from '../store/processes.js';
import type { ClusterFile } from './cluster-file.js';

const START_TIMEOUT_MS = 30_000;
const START_LOOK_MS = 100;
const STOP_TIMEOUT_MS = 5000;
const processSchema = z.object({ pid: z.number().int(), startTime: z.string() });

export class EtcdProcess {
  readonly #folder: string;
  readonly #process: WatchedProcess;

  /**
   * The member that runs already, or one that is started.
   * @throws SnowforkError SF_CLUSTER_UNAVAILABLE: it does not start; the message says why.
   */
  static async open(stateRoot: string, file: ClusterFile): Promise<EtcdProcess> {
    const folder = path.join(stateRoot, 'etcd');
    fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
    const known = findRunning(folder) ?? start(folder, file);
    const member = new EtcdProcess(folder, new WatchedProcess(known.pid, known.startTime));
    try {
      await member.#healthy(file);
      return member;
    } catch (error) {
      await member.stop();
      throw error;
    }
  }

  private constructor(folder: string, process: WatchedProcess) {
    this.#folder = folder;
    this.#process = process;
  }

  async stop(): Promise<void> {
    this.#process.kill('SIGTERM');
    const killer = setTimeout(() => this.#process.kill('SIGKILL'), STOP_TIMEOUT_MS);
    await this.#process.exited;
    clearTimeout(killer);
    fs.rmSync(path.join(this.#folder, 'process.json'), { force: true });
  }

  async #healthy({ host, member, ca, certificate, privateKey }: ClusterFile): Promise<void> {
    let ended = false;
    void this.#process.exited.then(() => {
      ended = true;
    });
    const agent = new https.Agent({ ca, cert: certificate, key: privateKey });
    const url = `https://${host.address}:${member?.clientPort}/health`;
    const deadline = Date.now() + START_TIMEOUT_MS;
    try {
      while (Date.now() < deadline && !ended) {
        if (await isHealthy(url, agent)) return;
        await delay(START_LOOK_MS);
      }
    } finally {
      agent.destroy();
    }
    const log = path.join(this.#folder, 'etcd.log');
    const words = fs.existsSync(log) ? fs.readFileSync(log, 'utf8').trim().slice(-500) : '';
    const message = `this host's member of the cluster's store (etcd) did not start: ${words}`;
    throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', message);
  }
}

function findRunning(folder: string): z.infer<typeof processSchema> | undefined {
  const file = path.join(folder, 'process.json');
  if (!fs.existsSync(file)) return undefined;
  const known = processSchema.safeParse(JSON.parse(fs.readFileSync(file, 'utf8')));
  if (!known.success) return undefined;
  return processStartTime(known.data.pid) === known.data.startTime ? known.data : undefined;
}

function start(folder: string, file: ClusterFile): z.infer<typeof processSchema> {
  assertInstalled();
  const { host, member, ca, certificate, privateKey } = file;
  const at = (name: string) => path.join(folder, name);
  fs.writeFileSync(at('ca.pem'), ca);
  fs.writeFileSync(at('host.pem'), certificate);
  fs.writeFileSync(at('host-key.pem'), privateKey, { mode: 0o600 });
  const clientUrl = `https://${host.address}:${member?.clientPort}`;
  const peerUrl = `https://${host.address}:${member?.peerPort}`;
  const tls = (prefix: string) => [
    ...[`--${prefix}cert-file`, at('host.pem'), `--${prefix}key-file`, at('host-key.pem')],
    ...[`--${prefix}trusted-ca-file`, at('ca.pem'), `--${prefix}client-cert-auth`],
  ];
  const args = [
    ...['--name', host.name, '--data-dir', at('data')],
    ...['--listen-client-urls', clientUrl, '--advertise-client-urls', clientUrl],
    ...['--listen-peer-urls', peerUrl, '--initial-advertise-peer-urls', peerUrl],
    ...['--initial-cluster', `${host.name}=${peerUrl}`, '--initial-cluster-state', 'new'],
    ...tls(''),
    ...tls('peer-'),
    ...['--logger', 'zap', '--log-level', 'warn'],
  ];
  const log = fs.openSync(at('etcd.log'), 'a', 0o600);
  const child = spawn('etcd', args, { detached: true, stdio: ['ignore', log, log] });
  child.on('error', () => {});
  child.unref();
  fs.closeSync(log);
  const startTime = child.pid === undefined ? undefined : processStartTime(child.pid);
  if (startTime === undefined) {
    throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', 'etcd could not be started');
  }
  const known = { pid: child.pid!, startTime };
  fs.writeFileSync(at('process.json'), JSON.stringify(known));
  return known;
}

/** @throws SnowforkError SF_CLUSTER_UNAVAILABLE that names the package. */
function assertInstalled(): void {
  if (spawnSync('etcd', ['--version']).status === 0) return;
  throw new SnowforkError(
    'SF_CLUSTER_UNAVAILABLE',
    "etcd is not installed, which keeps the cluster's hosts and tickets: " +
      'apt-get install etcd-server',
  );
}

function isHealthy(url: string, agent: https.Agent): Promise<boolean> {
  return new Promise((resolve) => {
    const request = https.get(url, { agent, timeout: 1000 }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
    request.on('timeout', () => request.destroy());
    request.on('error', () => resolve(false));
  });
}
