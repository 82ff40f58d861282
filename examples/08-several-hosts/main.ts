// Several hosts on one machine: network namespaces, an agent in each, a cluster of them. A VM forks
// over all of them, every clone reads the same memory, and what crossed the network is counted: it
// leaves the first host about once, however many hosts want it. Run by `sf demo --hosts 4`; arguments:
// [hosts] [MiB]. Needs root, etcd-server, iproute2 and nftables.

import { type ChildProcess, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type NetHost, NetHosts } from '@snowfork/clone-agent/net-hosts';
import { connect, type Host, SnowforkError, type Vm } from '@snowfork/sdk';

const HOSTS_DEFAULT = 4;
const MIB_DEFAULT = 24;
const MIB = 1024 * 1024;
const IMAGE = 'minimal';
const AGENT = fileURLToPath(import.meta.resolve('@snowfork/clone-agent/main'));
/** Of an image: how it was built, and its pages. */
const IMAGE_FOLDERS = ['images', 'snapshots', 'layers'];
const PREFIX = 'sf-hosts-';
const START_ATTEMPTS = 600;
const START_LOOK_MS = 100;

interface Member {
  readonly net: NetHost;
  readonly sf: Host;
  readonly agent: ChildProcess;
}

const hosts = Number(process.argv[2] ?? HOSTS_DEFAULT);
const mib = Number(process.argv[3] ?? MIB_DEFAULT);
clearAwayOld();
const folder = fs.mkdtempSync(path.join(os.tmpdir(), `${PREFIX}${process.pid}-`));
const members: Member[] = [];
let net: NetHosts | undefined;
try {
  await main();
} catch (error) {
  if (!(error instanceof SnowforkError)) throw error;
  process.stderr.write(`${error.code}: ${error.message}\n`);
  process.exitCode = 1;
} finally {
  for (const { sf } of members) await sf.shutDown().catch(() => {});
  for (const { sf } of members) await sf.close();
  await net?.close();
  fs.rmSync(folder, { recursive: true, force: true });
}

async function main(): Promise<void> {
  const images = await builtImage();
  net = await NetHosts.create({ hosts });
  for (const [index, host] of net.hosts.entries()) {
    members.push(await startMember(host, index === 0 ? images : undefined));
  }
  const [first, ...others] = members;
  await makeCluster(first!, others);
  print(`a cluster of ${hosts} hosts; only ${first!.net.name} has the image "${IMAGE}"`);

  const vm = await first!.sf.launch(IMAGE);
  const write = `dd if=/dev/urandom of=/dev/shm/data bs=1M count=${mib} 2>/dev/null`;
  const hash = (await vm.exec(`${write}; md5sum < /dev/shm/data`)).stdout;
  const before = members.map(({ net: host }) => host.counters());
  const calledAt = performance.now();
  const { clones, ticket } = await vm.fork(2 * hosts);
  const forkMs = performance.now() - calledAt;
  print(
    `${vm.id} forked into ${ticket.clones} clones on ${hosts} hosts in ${forkMs.toFixed(0)} ms`,
  );

  const running = clones.flatMap((clone) => (clone.status === 'fulfilled' ? [clone.value] : []));
  const hashes = await Promise.all(running.map((clone) => hashOf(clone)));
  for (const [index, clone] of running.entries()) {
    const isSame = hashes[index] === hash ? 'the same memory' : 'ANOTHER MEMORY';
    print(`  ${clone.id.padEnd(12)} on ${clone.initialInfo.host}: ${isSame}`);
  }
  print(`on the network, for ${mib} MiB that every clone has read:`);
  for (const [index, { net: host }] of members.entries()) {
    const sent = (host.counters().bytesSent - before[index]!.bytesSent) / MIB;
    const received = (host.counters().bytesReceived - before[index]!.bytesReceived) / MIB;
    const words = `sent ${sent.toFixed(1)} MiB, received ${received.toFixed(1)} MiB`;
    print(`  ${host.name.padEnd(8)} ${words}`);
  }
  if (running.length < clones.length || hashes.some((other) => other !== hash)) {
    throw new SnowforkError('SF_CLONE_FAILED', 'not every clone came up with the same memory');
  }
}

async function hashOf(clone: Vm): Promise<string> {
  return (await clone.exec('md5sum < /dev/shm/data')).stdout;
}

/** The folder of an agent that has built the image; it is built when it is not there. */
async function builtImage(): Promise<string> {
  await using host = await connect();
  const project = new URL(`../../../images/${IMAGE}.yaml`, import.meta.url);
  await host.buildImage({ name: IMAGE, file: fileURLToPath(project) });
  return (await host.info()).stateFolder;
}

async function startMember(host: NetHost, images: string | undefined): Promise<Member> {
  const state = path.join(folder, host.name);
  fs.mkdirSync(state, { mode: 0o700 });
  for (const name of images === undefined ? [] : IMAGE_FOLDERS) {
    execFileSync('cp', ['-a', '--reflink=auto', path.join(images!, name), state]);
  }
  const log = fs.openSync(path.join(state, 'agent.log'), 'a');
  const agent = host.spawn(process.execPath, [AGENT], {
    cwd: '/',
    env: { ...process.env, SNOWFORK_STATE: state },
    stdio: ['ignore', log, log],
  });
  fs.closeSync(log);
  for (let attempt = 1; ; attempt += 1) {
    try {
      return { net: host, agent, sf: await connect({ stateFolder: state, start: false }) };
    } catch (error) {
      if (attempt === START_ATTEMPTS || agent.exitCode !== null) throw error;
      await delay(START_LOOK_MS);
    }
  }
}

async function makeCluster(first: Member, others: readonly Member[]): Promise<void> {
  const selfOf = ({ net: { name, address } }: Member) => ({ host: name, address });
  await first.sf.initCluster({ name: 'demo', ...selfOf(first) });
  const { token, address } = await first.sf.newToken();
  for (const other of others) {
    await other.sf.joinCluster({ at: address, token, ...selfOf(other) });
  }
}

/** Of a run that was killed: its processes and mounts went with it, its files did not. */
function clearAwayOld(): void {
  for (const name of fs.readdirSync(os.tmpdir())) {
    const [pid] = name.startsWith(PREFIX) ? name.slice(PREFIX.length).split('-') : [];
    if (pid === undefined || fs.existsSync(`/proc/${pid}`)) continue;
    fs.rmSync(path.join(os.tmpdir(), name), { recursive: true, force: true });
  }
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
