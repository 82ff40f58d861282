// A member of the cluster's store on this host: Debian's etcd, as a process of its own that outlives
// the agent. Starts it when it is not there, and again when it dies, with the host's certificate: only
// hosts of the cluster can talk to it. Knows nothing of what is stored.
//
//   etcd/data           etcd's own
//   etcd/*.pem          what it shows to others, and whom it trusts
//   etcd/etcd.log       what it says
//   etcd/process.json   which process it is

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import https from 'node:https';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { SnowforkError } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { z } from 'zod';
import { processStartTime, WatchedProcess } from '../store/processes.js';
import type { HostCertificate } from './etcd-link.js';

const START_TIMEOUT_MS = 30_000;
const START_LOOK_MS = 100;
const HEALTH_TIMEOUT_MS = 2000;
const STOP_TIMEOUT_MS = 5000;
/** So that one that can't start does not keep the host busy. */
const RESTART_DELAY_MS = 500;
const LAST_WORDS_CHARS_MAX = 500;
/** A fork is one transaction, with an operation for each host of the cluster and two in all. */
const TRANSACTION_OPERATIONS_MAX = 4096;
/** Each host says its room every second; nobody asks what it was. */
const REVISIONS_KEPT = 10_000;
const ENTRIES_KEPT = 10_000;
const processSchema = z.object({ pid: z.number().int(), startTime: z.string() });
type Known = z.infer<typeof processSchema>;

export interface EtcdProcessOptions {
  readonly folder: string;
  readonly log: Logger;
  /** This host's, which is the member's too. */
  readonly name: string;
  readonly address: string;
  readonly clientPort: number;
  readonly peerPort: number;
  /** PEM. */
  readonly ca: string;
  readonly certificate: string;
  readonly privateKey: string;
  /** The members by name, each with https://ADDRESS:PEERPORT; it alone when nobody says it. */
  readonly members?: Readonly<Record<string, string>>;
  /** It comes to members that are there already, and have been told of it. */
  readonly isLater?: boolean;
}

export class EtcdProcess {
  #options: EtcdProcessOptions;
  #process!: WatchedProcess;
  #isOver = false;

  /**
   * The member that runs already, or one that is started; resolves when it answers, for which most
   * members must be there. One that was there before stays when it does not answer yet.
   * @throws SnowforkError SF_CLUSTER_UNAVAILABLE: the message says why
   */
  static async open(options: EtcdProcessOptions): Promise<EtcdProcess> {
    const { folder } = options;
    fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
    const isNew = !fs.existsSync(path.join(folder, 'data'));
    const member = new EtcdProcess(options);
    // One that runs reads them again for each connection.
    writeCredentials(options);
    const running = findRunning(folder);
    // It would be whoever is there that answers.
    if (running === undefined) await assertFree(options);
    member.#watch(running ?? start(options));
    try {
      await member.#healthy();
      return member;
    } catch (error) {
      if (isNew) await member.stop();
      else member.leave();
      throw error;
    }
  }

  private constructor(options: EtcdProcessOptions) {
    this.#options = options;
  }

  get pid(): number {
    return this.#process.pid;
  }

  /** Shown to whoever connects from now on, and to other members. */
  useCertificate({ certificate, privateKey }: HostCertificate): void {
    this.#options = { ...this.#options, certificate, privateKey };
    writeCredentials(this.#options);
  }

  /** It goes on, for the other hosts and for the next agent of this one. */
  leave(): void {
    this.#isOver = true;
    this.#process.forget();
  }

  async stop(): Promise<void> {
    this.#isOver = true;
    await end(this.#process);
    fs.rmSync(path.join(this.#options.folder, 'process.json'), { force: true });
  }

  /** Whether there is what a member has agreed to; etcd makes it in one step. */
  static hasLog(folder: string): boolean {
    return fs.existsSync(path.join(folder, 'data', 'member', 'wal'));
  }

  /** Ends what an agent has left there, with all that it knows. */
  static async clear(folder: string): Promise<void> {
    const running = findRunning(folder);
    if (running !== undefined) await end(new WatchedProcess(running.pid, running.startTime));
    fs.rmSync(folder, { recursive: true, force: true });
  }

  #watch({ pid, startTime }: Known): void {
    const process = new WatchedProcess(pid, startTime);
    this.#process = process;
    void process.exited.then(() => this.#ended());
  }

  async #ended(): Promise<void> {
    const { folder, log } = this.#options;
    while (!this.#isOver) {
      log.error({ words: lastWords(folder) }, 'etcd died; starting it again');
      // The agent may end meanwhile.
      await delay(RESTART_DELAY_MS, undefined, { ref: false });
      if (this.#isOver) return;
      try {
        return this.#watch(start(this.#options));
      } catch (error) {
        log.error({ err: error }, 'etcd does not start');
      }
    }
  }

  async #healthy(): Promise<void> {
    const { address, clientPort, ca, certificate, privateKey, folder } = this.#options;
    const agent = new https.Agent({ ca, cert: certificate, key: privateKey });
    const url = `https://${address}:${clientPort}/health`;
    const deadline = Date.now() + START_TIMEOUT_MS;
    const { pid } = this;
    try {
      // One that died at its start would not do better the next time.
      while (Date.now() < deadline && this.pid === pid && this.#process.isAlive) {
        if (await isHealthy(url, agent)) return;
        await delay(START_LOOK_MS);
      }
    } finally {
      agent.destroy();
    }
    const why = this.#process.isAlive ? 'most of its members are not there' : lastWords(folder);
    const message = `this host's member of the cluster store (etcd) does not answer: ${why}`;
    throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', message);
  }
}

async function end(process: WatchedProcess): Promise<void> {
  process.kill('SIGTERM');
  const killer = setTimeout(() => process.kill('SIGKILL'), STOP_TIMEOUT_MS);
  await process.exited;
  clearTimeout(killer);
}

function findRunning(folder: string): Known | undefined {
  const file = path.join(folder, 'process.json');
  if (!fs.existsSync(file)) return undefined;
  const known = processSchema.safeParse(JSON.parse(fs.readFileSync(file, 'utf8')));
  if (!known.success) return undefined;
  return processStartTime(known.data.pid) === known.data.startTime ? known.data : undefined;
}

function start(options: EtcdProcessOptions): Known {
  assertInstalled();
  const { folder } = options;
  const at = (name: string) => path.join(folder, name);
  const log = fs.openSync(at('etcd.log'), 'a', 0o600);
  // Without ETCD_… of whoever started the agent.
  const env = { PATH: process.env.PATH };
  const stdio = ['ignore', log, log] as const;
  const child = spawn('etcd', argumentsOf(options), { detached: true, stdio: [...stdio], env });
  child.on('error', () => {});
  child.unref();
  fs.closeSync(log);
  const startTime = child.pid === undefined ? undefined : processStartTime(child.pid);
  if (startTime === undefined) {
    const message = `etcd could not be started: ${lastWords(folder)}`;
    throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', message);
  }
  const known = { pid: child.pid!, startTime };
  fs.writeFileSync(at('process.json'), JSON.stringify(known));
  return known;
}

function writeCredentials(options: EtcdProcessOptions): void {
  const { folder, ca, certificate, privateKey } = options;
  const files = { 'ca.pem': ca, 'host.pem': certificate, 'host-key.pem': privateKey };
  for (const [name, content] of Object.entries(files)) {
    fs.writeFileSync(path.join(folder, `${name}.new`), content, { mode: 0o600 });
  }
  for (const name of Object.keys(files)) {
    fs.renameSync(path.join(folder, `${name}.new`), path.join(folder, name));
  }
}

function argumentsOf(options: EtcdProcessOptions): string[] {
  const { folder, name, address, clientPort, peerPort, isLater = false } = options;
  const at = (file: string) => path.join(folder, file);
  const clientUrl = `https://${address}:${clientPort}`;
  const peerUrl = `https://${address}:${peerPort}`;
  const members = Object.entries(options.members ?? { [name]: peerUrl });
  const tls = (prefix: string) => [
    ...[`--${prefix}cert-file`, at('host.pem'), `--${prefix}key-file`, at('host-key.pem')],
    ...[`--${prefix}trusted-ca-file`, at('ca.pem'), `--${prefix}client-cert-auth`],
  ];
  return [
    ...['--name', name, '--data-dir', at('data')],
    ...['--listen-client-urls', clientUrl, '--advertise-client-urls', clientUrl],
    ...['--listen-peer-urls', peerUrl, '--initial-advertise-peer-urls', peerUrl],
    ...['--initial-cluster', members.map(([member, url]) => `${member}=${url}`).join(',')],
    ...['--initial-cluster-state', isLater ? 'existing' : 'new'],
    ...tls(''),
    ...tls('peer-'),
    ...['--max-txn-ops', String(TRANSACTION_OPERATIONS_MAX)],
    ...['--auto-compaction-mode', 'revision', '--auto-compaction-retention', `${REVISIONS_KEPT}`],
    ...['--snapshot-count', String(ENTRIES_KEPT)],
    ...['--logger', 'zap', '--log-level', 'warn'],
  ];
}

export function isEtcdInstalled(): boolean {
  const folders = (process.env.PATH ?? '').split(path.delimiter);
  return folders.some((folder) => isProgram(path.join(folder, 'etcd')));
}

function isProgram(file: string): boolean {
  try {
    fs.accessSync(file, fs.constants.X_OK);
    return fs.statSync(file).isFile();
  } catch {
    return false;
  }
}

/** @throws SnowforkError SF_CLUSTER_UNAVAILABLE that names the package. */
function assertInstalled(): void {
  if (isEtcdInstalled()) return;
  throw new SnowforkError(
    'SF_CLUSTER_UNAVAILABLE',
    "etcd is not installed, which keeps the cluster's hosts and tickets: " +
      'apt-get install etcd-server',
  );
}

/** @throws SnowforkError SF_CLUSTER_UNAVAILABLE */
async function assertFree({ address, clientPort, peerPort }: EtcdProcessOptions): Promise<void> {
  for (const port of [clientPort, peerPort]) {
    const server = net.createServer().listen(port, address);
    try {
      await once(server, 'listening');
      server.close();
      await once(server, 'close');
    } catch (cause) {
      const words = cause instanceof Error ? cause.message : String(cause);
      const message = `the cluster store (etcd) can't listen at ${address}:${port}: ${words}`;
      throw new SnowforkError('SF_CLUSTER_UNAVAILABLE', message, { cause });
    }
  }
}

function lastWords(folder: string): string {
  const log = path.join(folder, 'etcd.log');
  return fs.existsSync(log) ? fs.readFileSync(log, 'utf8').trim().slice(-LAST_WORDS_CHARS_MAX) : '';
}

function isHealthy(url: string, agent: https.Agent): Promise<boolean> {
  return new Promise((resolve) => {
    const request = https.get(url, { agent, timeout: HEALTH_TIMEOUT_MS }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
    request.on('timeout', () => request.destroy());
    request.on('error', () => resolve(false));
  });
}
