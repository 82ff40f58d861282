// What can be wrong with a host's part in its cluster, as `sf doctor` says it: certificate, store, other
// hosts and their clocks, how pages come, room for datagrams. `readClusterFacts` asks and looks,
// `judgeCluster` decides, and neither changes anything. Called by `doctor.ts`.

import fs from 'node:fs';
import { type DoctorCheck, type NetworkStats, SnowforkError } from '@snowfork/sdk/api';
import { lifeOf } from './authority.js';
import type { Cluster } from './cluster.js';
import { MEMBERS_WANTED } from './store-members.js';

const ASK_TIMEOUT_MS = 3000;
const DAY_MS = 24 * 3_600_000;
/** By so much a clone's clock may jump when it comes up on another host. */
const CLOCK_DIFFERENCE_MS_MAX = 500;
/** 1 Gbit/s for the 20 ms for which a busy host may leave datagrams unread. */
const BUFFER_BYTES_MIN = 2_500_000;
/** Sockets of whoever has this right get the buffers that they ask for. */
const CAP_NET_ADMIN = 12n;
const ALL_USERS = '4294967295';

export interface PeerFacts {
  readonly name: string;
  /** What it answered, or why it did not. */
  readonly answer:
    | { readonly version: string; readonly clockMs: number; readonly roundTripMs: number }
    | { readonly error: string };
}

export interface ClusterFacts {
  readonly version: string;
  readonly nowMs: number;
  readonly certificate: { readonly beganMs: number; readonly endsMs: number };
  /** Undefined: it answers, which it does with a majority only. */
  readonly storeError: string | undefined;
  /** Members of the store that vote, by their hosts' names, as last heard. */
  readonly members: readonly { readonly name: string; readonly isThere: boolean }[];
  readonly peers: readonly PeerFacts[];
  /** Hosts whose pages come here, and how. */
  readonly origins: readonly { readonly host: string; readonly delivery: 'group' | 'unicast' }[];
  readonly buffers: {
    readonly isFree: boolean;
    /** Undefined where the namespace does not show it. */
    readonly receiveBytesMax: number | undefined;
    readonly sendBytesMax: number | undefined;
  };
}

/** Undefined: the host is in no cluster. @throws SnowforkError: it can't speak to the others yet. */
export async function readClusterFacts(
  cluster: Cluster,
  of: { readonly version: string; readonly network: NetworkStats | undefined },
): Promise<ClusterFacts | undefined> {
  if (cluster.name === undefined) return undefined;
  const { file, store, storeMembers, name: own } = cluster;
  const others = cluster.hosts().filter(({ name }) => name !== own);
  const [storeError, members, ...peers] = await Promise.all([
    store.check().then(() => undefined, wordsOf),
    storeMembers.examine(),
    ...others.map(({ name }) => askPeer(cluster, name)),
  ]);
  return {
    version: of.version,
    nowMs: Date.now(),
    certificate: lifeOf(file.certificate),
    storeError,
    members,
    peers,
    origins: (of.network?.received ?? []).map(({ host, now }) => ({
      ...{ host, delivery: now.delivery },
    })),
    buffers: readBuffers(),
  };
}

export function judgeCluster(facts: ClusterFacts): DoctorCheck[] {
  return [
    judgeCertificate(facts),
    judgeStore(facts),
    ...facts.peers.map((peer) => judgePeer(peer, facts)),
    judgeClocks(facts),
    judgeDelivery(facts),
    judgeBuffers(facts),
  ];
}

/** The one check of a host that is in a cluster and can't speak to it. */
export function notThere(error: unknown): DoctorCheck {
  const mend = 'start the hosts that it waits for; agent.log in the state folder says more';
  return { name: 'cluster', status: 'fail', message: wordsOf(error), mend };
}

function judgeCertificate({ certificate, nowMs }: ClusterFacts): DoctorCheck {
  const name = 'certificate';
  const { beganMs, endsMs } = certificate;
  const leftMs = endsMs - nowMs;
  const end = new Date(endsMs).toISOString();
  if (leftMs <= 0) {
    const mend = '`sf down`, remove cluster.json in the state folder, and `sf host join` it anew';
    return { name, status: 'fail', message: `this host's certificate ran out at ${end}`, mend };
  }
  const left = leftMs < DAY_MS ? 'less than a day' : `${Math.floor(leftMs / DAY_MS)} days`;
  const message = `this host's certificate is good for ${left}, until ${end}`;
  if (leftMs > (endsMs - beganMs) / 3) return { name, status: 'ok', message };
  const mend =
    'the agent asks for a new one: start the host on which `sf cluster init` was run, which signs ' +
    'it; agent.log says why there is none yet';
  return { name, status: 'warn', message, mend };
}

function judgeStore({ storeError, members, peers }: ClusterFacts): DoctorCheck {
  const name = 'store';
  const silent = namesOf(members.filter(({ isThere }) => !isThere));
  const of = `${members.length} ${members.length === 1 ? 'member' : 'members'}`;
  const all = `etcd has ${of} (${namesOf(members)})`;
  const said = silent && `, of which ${silent} ${silent.includes(',') ? 'do' : 'does'} not answer`;
  if (storeError !== undefined) {
    const message = members.length === 0 ? storeError : `${storeError}; ${all}${said}`;
    const mend =
      `start ${silent || 'the hosts that have members'} (\`etcd/etcd.log\` in the state folder says ` +
      'more), and let TCP to ports 7412 and 7413 through';
    return { name, status: 'fail', message, mend };
  }
  if (silent !== '') {
    const mend =
      `\`sf up\` on it; if it will not come back, \`sf host rm ${silent}\`, and another host with ` +
      'etcd takes its place';
    return { name, status: 'warn', message: `${all}${said}`, mend };
  }
  const message = `${all}, and all answer`;
  const hosts = peers.length + 1;
  const isAsGoodAsCan = members.length === 1 && hosts < MEMBERS_WANTED;
  if (members.length >= MEMBERS_WANTED || isAsGoodAsCan) return { name, status: 'ok', message };
  const lacking = MEMBERS_WANTED - members.length;
  return {
    name,
    status: 'warn',
    message: `${message}: without ${members.length === 1 ? 'it' : 'either'} there are no new tickets`,
    mend:
      `\`apt-get install etcd-server\` on ${lacking} other ${lacking === 1 ? 'host' : 'hosts'}: with ` +
      `three members any one may go (\`storeMember\` in settings.json must not be false there)`,
  };
}

function namesOf(members: ClusterFacts['members']): string {
  return members.map(({ name }) => name).join(', ');
}

function judgePeer({ name: host, answer }: PeerFacts, { version }: ClusterFacts): DoctorCheck {
  const name = `host ${host}`;
  if ('error' in answer) {
    const mend = `\`sf up\` on ${host}, and let TCP to its port (\`sf host ls\`) through`;
    return { name, status: 'warn', message: answer.error, mend };
  }
  const message = `it answers in ${answer.roundTripMs.toFixed(1)} ms, version ${answer.version}`;
  if (answer.version === version) return { name, status: 'ok', message };
  const mend = `install the same version on both: this host has ${version}`;
  return { name, status: 'warn', message, mend };
}

function judgeClocks({ peers }: ClusterFacts): DoctorCheck {
  const name = 'clocks';
  const far: string[] = [];
  let asked = 0;
  for (const { name: host, answer } of peers) {
    if ('error' in answer) continue;
    asked += 1;
    // What is less than the way of the answer is not known.
    const differenceMs = Math.abs(answer.clockMs) - answer.roundTripMs / 2;
    const ahead = answer.clockMs > 0 ? 'ahead' : 'behind';
    const words = `${host} is ${(Math.abs(answer.clockMs) / 1000).toFixed(1)} s ${ahead}`;
    if (differenceMs > CLOCK_DIFFERENCE_MS_MAX) far.push(words);
  }
  if (far.length === 0) {
    const message = `those of ${asked} other hosts differ by less than a second`;
    return { name, status: 'ok', message };
  }
  const mend = 'set them by the network: `apt-get install chrony` on each host';
  return { name, status: 'warn', message: far.join('; '), mend };
}

function judgeDelivery({ origins }: ClusterFacts): DoctorCheck {
  const name = 'page delivery';
  const hostsBy = (way: 'group' | 'unicast') => [
    ...new Set(origins.filter(({ delivery }) => delivery === way).map(({ host }) => host)),
  ];
  const [byUnicast, byGroup] = [hostsBy('unicast'), hostsBy('group')];
  if (byUnicast.length === 0) {
    const words = byGroup.length === 0 ? 'no pages of other hosts come here now' : undefined;
    const message = words ?? `multicast of ${byGroup.join(', ')} is heard, or not needed yet`;
    return { name, status: 'ok', message };
  }
  return {
    name,
    status: 'warn',
    message: `multicast of ${byUnicast.join(', ')} is not heard here: pages come by unicast`,
    mend:
      'all works, with more to send for each host; let UDP to 239.192.0.0/14 through, with IGMP ' +
      'snooping off or a querier in the network',
  };
}

function judgeBuffers({ buffers }: ClusterFacts): DoctorCheck {
  const name = 'socket buffers';
  const { isFree, receiveBytesMax, sendBytesMax } = buffers;
  if (isFree) return { name, status: 'ok', message: 'as large as is asked for: the agent is root' };
  const limits = { rmem_max: receiveBytesMax, wmem_max: sendBytesMax };
  const small = Object.entries(limits).filter(([, bytes = 0]) => bytes < BUFFER_BYTES_MIN);
  if (small.length === 0) return { name, status: 'ok', message: 'enough for 1 Gbit/s' };
  const said = small.map(([limit, bytes]) => `net.core.${limit} is ${bytes ?? 'not to be seen'}`);
  const wanted = small.map(([limit]) => `net.core.${limit}=${BUFFER_BYTES_MIN}`);
  return {
    name,
    status: 'warn',
    message: `${said.join(', ')}: too little for 1 Gbit/s, pages are lost and asked for again`,
    mend: `\`sysctl -w ${wanted.join(' ')}\` as root on the machine`,
  };
}

async function askPeer(cluster: Cluster, name: string): Promise<PeerFacts> {
  const signal = AbortSignal.timeout(ASK_TIMEOUT_MS);
  try {
    // The second time the connection is there, and the way is all that it takes.
    await cluster.call(name, 'ping', {}, signal);
    const askedMs = Date.now();
    const began = performance.now();
    const { version, nowMs } = await cluster.call(name, 'ping', {}, signal);
    const roundTripMs = performance.now() - began;
    const clockMs = nowMs - (askedMs + roundTripMs / 2);
    return { name, answer: { version, clockMs, roundTripMs } };
  } catch (error) {
    const silent = `it did not answer within ${ASK_TIMEOUT_MS / 1000} s`;
    return { name, answer: { error: signal.aborted ? silent : wordsOf(error) } };
  }
}

function readBuffers(): ClusterFacts['buffers'] {
  const status = read('/proc/self/status') ?? '';
  const rights = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
  // A right of a user namespace is none over the machine's memory.
  const isOfMachine = (read('/proc/self/uid_map') ?? '').includes(ALL_USERS);
  return {
    isFree: isOfMachine && ((rights >> CAP_NET_ADMIN) & 1n) === 1n,
    receiveBytesMax: bytesIn('/proc/sys/net/core/rmem_max'),
    sendBytesMax: bytesIn('/proc/sys/net/core/wmem_max'),
  };
}

function bytesIn(file: string): number | undefined {
  const text = read(file);
  return text === undefined ? undefined : Number(text);
}

function read(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
}

function wordsOf(error: unknown): string {
  return SnowforkError.from(error).message;
}
