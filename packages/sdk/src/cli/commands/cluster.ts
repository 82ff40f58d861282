// `sf cluster …` and `sf host …`: making a cluster, joining it, and its hosts. Called by `program.ts`.

import os from 'node:os';
import { SnowforkError } from '../../api/errors.js';
import { hostNameSchema } from '../../api/schemas.js';
import { type CommandSpec, type GroupSpec, type OptionSpec, parseSeconds } from '../command.js';
import { formatBytes, formatDuration } from '../format.js';

const CLUSTER_NAME_DEFAULT = 'snowfork';

const selfOptions: readonly OptionSpec[] = [
  { flags: '--host <name>', summary: 'what this host is called there (default: its host name)' },
  {
    flags: '--address <address>',
    summary: 'IPv4, where the others reach it (default: its only one)',
  },
  {
    flags: '--port <port>',
    summary: 'where the others reach its agent (default: 7410)',
    parse: Number,
  },
];

const init: CommandSpec = {
  syntax: 'init',
  summary: 'make a cluster, with this host as the first, and print how others join',
  options: [
    { flags: '--name <name>', summary: 'of the cluster', default: CLUSTER_NAME_DEFAULT },
    ...selfOptions,
  ],
  examples: [
    { line: 'sf cluster init', says: 'prints the command for the other hosts' },
    {
      line: 'sf cluster init --host alpha --address 10.0.0.1',
      says: 'where it has several addresses',
    },
  ],
  async run({ output, interrupts, connect }, _args, options) {
    const { signal } = interrupts;
    const host = await connect();
    const name = options.name as string;
    const cluster = await host.initCluster({ name, ...selfOf(options) }, { signal });
    const { token, address } = await host.newToken({ signal });
    if (output.json) return output.document({ ...cluster, token, address });
    output.note(`cluster ${cluster.name}, of which this host is ${cluster.host}. On another host:`);
    output.line(`sf host join ${address} --token ${token}`);
  },
};

const token: CommandSpec = {
  syntax: 'token',
  summary: 'print how another host joins, by a token that is valid for a while',
  options: [
    {
      flags: '--ttl <seconds>',
      summary: 'valid for so long (default: an hour)',
      parse: parseSeconds,
    },
  ],
  examples: [{ line: 'sf cluster token --ttl 600', says: 'valid for ten minutes' }],
  async run({ output, interrupts, connect }, _args, { ttl }) {
    const { signal } = interrupts;
    const lifetime = ttl === undefined ? {} : { ttlMs: ttl as number };
    const made = await (await connect()).newToken({ ...lifetime, signal });
    if (output.json) return output.document(made);
    output.line(`sf host join ${made.address} --token ${made.token}`);
  },
};

export const clusterGroup: GroupSpec = {
  name: 'cluster',
  summary: 'make a cluster of hosts',
  commands: [init, token],
};

const join: CommandSpec = {
  syntax: 'join <address>',
  summary: 'make this host one of a cluster: `sf cluster token` there prints the command',
  details:
    'Where etcd is installed (Debian: etcd-server) the host comes to run a member of the store by ' +
    'itself, until there are three: then any one of them may go.',
  options: [{ flags: '--token <token>', summary: 'of the cluster' }, ...selfOptions],
  examples: [
    { line: 'sf host join 10.0.0.1:7410 --token 3f…', says: 'as `sf cluster token` prints it' },
  ],
  exits: [{ code: '11', when: 'the token ran out, or is not of that cluster' }],
  async run({ output, interrupts, connect }, [at = ''], options) {
    const { signal } = interrupts;
    const given = options.token;
    if (typeof given !== 'string') {
      const message = 'a token is needed: `sf cluster token` on the host that made the cluster';
      throw new SnowforkError('SF_BAD_REQUEST', message);
    }
    const request = { at, token: given, ...selfOf(options) };
    const cluster = await (await connect()).joinCluster(request, { signal });
    if (output.json) return output.document(cluster);
    output.line(`this host is ${cluster.host} of cluster ${cluster.name}`);
  },
};

const list: CommandSpec = {
  syntax: 'ls',
  summary: 'list the hosts of the cluster',
  examples: [{ line: 'sf host ls', says: 'which have a member of the store, VMs, and what room' }],
  async run({ output, interrupts, connect }) {
    const hosts = await (await connect()).hosts({ signal: interrupts.signal });
    if (output.json) return output.document({ hosts });
    output.table(
      ['NAME', 'ADDRESS', 'STATE', 'STORE', 'VMS', 'ROOM', 'SLOTS', 'VERSION', 'UP'],
      hosts.map((host) => [
        host.name,
        `${host.address}:${host.port}`,
        host.state,
        host.storeMember ? 'member' : '-',
        String(host.vms),
        formatBytes(host.roomBytes),
        String(host.slots),
        host.version,
        formatDuration(Date.now() - host.startedAt),
      ]),
    );
  },
};

const remove: CommandSpec = {
  syntax: 'rm <host>',
  summary: 'take a host out of the cluster; what it ran is lost',
  details:
    'With its member of the store, for which another host with etcd takes over by itself. Also one ' +
    'that is not heard of any more, when it has a member still.',
  exits: [
    { code: '2', when: 'it runs the only member' },
    { code: '3', when: 'without its member the store would lose its majority' },
  ],
  examples: [{ line: 'sf host rm beta', says: 'one that is drained, or that will not come back' }],
  async run({ output, interrupts, connect }, [name = '']) {
    await (await connect()).removeHost(name, { signal: interrupts.signal });
    if (output.json) output.document({ removed: name });
    else output.line(name);
  },
};

const drain: CommandSpec = {
  syntax: 'drain <host>',
  summary: 'start no clones on a host any more, and bring what others need of it to them',
  examples: [{ line: 'sf host drain beta', says: 'before it is taken out' }],
  async run({ output, interrupts, connect }, [name = '']) {
    await (await connect()).drainHost(name, { signal: interrupts.signal });
    if (output.json) output.document({ drained: name });
    else output.line(name);
  },
};

export const hostGroup: GroupSpec = {
  name: 'host',
  summary: 'the hosts of a cluster',
  commands: [join, list, remove, drain],
};

/** Who this host is to be. @throws SnowforkError SF_BAD_REQUEST when that must be said. */
function selfOf({ host, address, port }: Record<string, unknown>): {
  host: string;
  address: string;
  port?: number;
} {
  return {
    host: typeof host === 'string' ? host : ownName(),
    address: typeof address === 'string' ? address : ownAddress(),
    ...(port === undefined ? {} : { port: port as number }),
  };
}

function ownName(): string {
  const name = os.hostname().split('.')[0]!.toLowerCase();
  if (hostNameSchema.safeParse(name).success) return name;
  throw new SnowforkError('SF_BAD_REQUEST', `${name} can't be a host's name: give one by --host`);
}

function ownAddress(): string {
  const all = Object.values(os.networkInterfaces()).flatMap((addresses) => addresses ?? []);
  const usable = all.filter(({ family, internal }) => family === 'IPv4' && !internal);
  if (usable.length === 1) return usable[0]!.address;
  const found = usable.map(({ address }) => address).join(', ') || 'none';
  const message = `say by --address where other hosts reach this one (it has: ${found})`;
  throw new SnowforkError('SF_BAD_REQUEST', message);
}
