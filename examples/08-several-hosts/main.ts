// Several hosts on one machine: network namespaces, an agent in each, a cluster of them. A VM forks
// over all of them, every clone reads the same memory, and what crossed the network is counted: it
// leaves the first host about once, however many hosts want it. Run by `sf demo --hosts 4`; arguments:
// [hosts] [MiB]. Needs root, etcd-server, iproute2 and nftables.

import os from 'node:os';
import { fileURLToPath } from 'node:url';
import { NetCluster } from '@snowfork/clone-agent/net-cluster';
import { connect, SnowforkError, type Vm } from '@snowfork/sdk';

const HOSTS_DEFAULT = 4;
const MIB_DEFAULT = 24;
const MIB = 1024 * 1024;
const IMAGE = 'minimal';

const hosts = Number(process.argv[2] ?? HOSTS_DEFAULT);
const mib = Number(process.argv[3] ?? MIB_DEFAULT);
try {
  await main();
} catch (error) {
  if (!(error instanceof SnowforkError)) throw error;
  process.stderr.write(`${error.code}: ${error.message}\n`);
  process.exitCode = 1;
}

async function main(): Promise<void> {
  const imagesFrom = await builtImage();
  await using cluster = await NetCluster.join({ hosts, imagesFrom, parentFolder: os.tmpdir() });
  const members = cluster.hosts;
  const [first] = members;
  print(`a cluster of ${hosts} hosts; only ${first!.name} has the image "${IMAGE}"`);

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

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
