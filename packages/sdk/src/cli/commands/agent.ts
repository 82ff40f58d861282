// `sf up`, `down`, `stats` and `demo`: the agent itself. Called by `program.ts`.

import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { SnowforkError } from '../../api/errors.js';
import type { Accelerator, HostInfo, HostStats, VmStats } from '../../api/schemas.js';
import type { Host } from '../../host/host.js';
import type { CommandSpec, Session } from '../command.js';
import { formatBytes, formatDuration, PAGE_BYTES } from '../format.js';
import type { Output } from '../output.js';

const EXAMPLES = '../../../../../examples/dist/';
const DEMO = '01-parallel-map';
const HOSTS_DEMO = '08-several-hosts';

const up: CommandSpec = {
  syntax: 'up',
  summary: "start this host's agent in the background",
  details:
    'Succeeds when an agent runs already. The accelerator is KVM where a probe boots on it, ' +
    'else TCG.',
  options: [{ flags: '--accel <name>', summary: 'force the accelerator', choices: ['kvm', 'tcg'] }],
  examples: [
    { line: 'sf up', says: 'start the agent' },
    { line: 'sf up --accel tcg', says: 'with software emulation' },
    { line: 'sf --state ~/sf up', says: 'with a state folder of your own' },
  ],
  exits: [
    { code: '3', when: 'the agent did not start; its last words are shown' },
    { code: '5', when: 'an agent runs already with another accelerator than --accel' },
  ],
  async run(session, _args, options) {
    const accelerator = options.accel as Accelerator | undefined;
    const running = await connectToRunning(session);
    const host = running ?? (await session.connect({ accelerator }));
    const info = await host.info({ signal: session.interrupts.signal });
    assertAccelerator(info, accelerator);
    const started = running === undefined;
    if (session.output.json) session.output.document({ started, ...info });
    else {
      session.output.line(describe(info, started));
      for (const line of describePrevious(info.previous)) session.output.line(line);
    }
  },
};

const down: CommandSpec = {
  syntax: 'down',
  summary: 'end all VMs and the agent',
  details: 'Succeeds when no agent runs. Images and their snapshots stay.',
  examples: [{ line: 'sf down', says: 'end everything' }],
  exits: [{ code: '7', when: 'the VMs have ended but the agent has not' }],
  async run(session) {
    const host = await connectToRunning(session);
    if (host !== undefined) await host.shutDown({ signal: session.interrupts.signal });
    const stopped = host !== undefined;
    if (session.output.json) session.output.document({ stopped });
    else session.output.line(stopped ? 'the agent has ended' : 'no agent was running');
  },
};

export const hostStats: CommandSpec = {
  syntax: 'stats [vm]',
  summary: 'memory and pages of the host, or of one VM',
  examples: [
    { line: 'sf stats', says: 'memory, warm pool and pager of this host' },
    { line: 'sf stats 7f3a', says: 'what one VM holds of its own and shares' },
    { line: 'sf stats --json', says: 'all figures, in bytes and pages' },
  ],
  async run(session, [id]) {
    const host = await session.connect();
    const { output, interrupts } = session;
    const { signal } = interrupts;
    if (id === undefined) {
      const stats = await host.stats({ signal });
      if (output.json) output.document(stats);
      else printHost(output, stats);
      return;
    }
    const vm = await host.vm(id, { signal });
    const stats = await vm.stats({ signal });
    if (output.json) output.document(stats);
    else printVm(output, stats);
  },
};

const demo: CommandSpec = {
  syntax: 'demo',
  summary: 'prices options by Monte Carlo in a VM that forks 8 clones',
  details:
    'Runs examples/01-parallel-map; the first time it builds the image it needs. With --hosts it ' +
    'runs examples/08-several-hosts: that many hosts on this machine, as network namespaces, and a ' +
    'fork over all of them.',
  options: [
    { flags: '--hosts <number>', summary: 'fork over so many hosts, 2 to 16', parse: Number },
  ],
  examples: [
    { line: 'sf demo', says: 'watch a VM fork itself' },
    { line: 'sf demo --hosts 4', says: 'over four hosts; needs root and etcd-server' },
  ],
  exits: [{ code: '1', when: "the example's own failure" }],
  async run({ output, interrupts }, _args, options) {
    const { hosts } = options;
    if (hosts !== undefined && !isHostCount(hosts)) {
      throw new SnowforkError('SF_BAD_REQUEST', '--hosts is a whole number from 2 to 16');
    }
    const name = hosts === undefined ? DEMO : HOSTS_DEMO;
    const program = fileURLToPath(new URL(`${EXAMPLES}${name}/main.js`, import.meta.url));
    if (!existsSync(program)) {
      const message = `the example is not built (${program}): run \`npm run build\` in the project`;
      throw new SnowforkError('SF_BAD_REQUEST', message);
    }
    const state = options.state as string | undefined;
    const args = hosts === undefined ? [] : [String(hosts)];
    if (output.json) args.push('--json');
    const child = spawn(process.execPath, [program, ...args], {
      stdio: 'inherit',
      env: state === undefined ? process.env : { ...process.env, SNOWFORK_STATE: state },
    });
    // A terminal sends Ctrl-C to the example as well: it ends by itself.
    interrupts.interceptNext(() => {});
    interrupts.signal.addEventListener('abort', () => child.kill('SIGTERM'), { once: true });
    return await new Promise<number>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (code) => resolve(code ?? 130));
    });
  },
};

function isHostCount(hosts: unknown): boolean {
  return Number.isInteger(hosts) && (hosts as number) >= 2 && (hosts as number) <= 16;
}

export const agentCommands = { up, down, demo };

/** The running agent; undefined when there is none. */
async function connectToRunning(session: Session): Promise<Host | undefined> {
  try {
    return await session.connect({ start: false });
  } catch (error) {
    if (!(error instanceof SnowforkError) || error.code !== 'SF_AGENT_UNREACHABLE') throw error;
    if (error.details.running !== false) throw error;
    return undefined;
  }
}

function assertAccelerator(info: HostInfo, wanted: Accelerator | undefined): void {
  const { accelerator } = info.qemu;
  if (wanted === undefined || wanted === accelerator) return;
  const message = `the agent runs with ${accelerator}, not ${wanted}: end it first by \`sf down\``;
  throw new SnowforkError('SF_INCOMPATIBLE', message, { details: { accelerator, wanted } });
}

/** What the user may miss, or find again, after the agent before this one was killed. */
function describePrevious(previous: HostInfo['previous']): string[] {
  if (previous === undefined) return [];
  const { adopted, lost, tickets } = previous;
  return [
    ...(adopted.length === 0 ? [] : [`adopted from the agent before: ${adopted.join(', ')}`]),
    ...(lost.length === 0 ? [] : [`lost with the agent before: ${lost.join(', ')}`]),
    ...(tickets.length === 0 ? [] : [`lost results of tickets: ${tickets.join(', ')}`]),
  ];
}

function describe(info: HostInfo, started: boolean): string {
  const { version, pid, qemu, stateFolder } = info;
  const verb = started ? 'started' : 'runs already';
  return (
    `agent ${version} ${verb}: process ${pid}, QEMU ${qemu.version} with ${qemu.accelerator}, ` +
    `state in ${stateFolder}`
  );
}

function printHost(output: Output, { memory, pool, pager }: HostStats): void {
  const rows: [string, string][] = [
    [
      'memory',
      `${formatBytes(memory.availableBytes)} of ${formatBytes(memory.totalBytes)} available`,
    ],
    ['promised', `${formatBytes(memory.promisedBytes)} that VMs may still grow by`],
    ['room', `${formatBytes(memory.roomBytes)} for new VMs`],
    ['layers', `${formatBytes(memory.layersBytes)} of ${formatBytes(memory.layersBytesMax)}`],
    ['warm pool', `${pool.ready} of ${pool.size} ready, ${formatBytes(pool.pssBytes)}`],
    ['pager', `process ${pager.pid}, ${pager.objects.length} objects`],
  ];
  for (const [name, value] of rows) output.line(`${name.padEnd(10)} ${value}`);
  if (pager.objects.length === 0) return;
  output.line('');
  output.table(
    ['OBJECT', 'READS', 'ZERO PAGES', 'LOCAL PAGES', 'REFUSED', 'FRESH', 'REPLAYED', 'AHEAD'],
    pager.objects.map((object) => [
      `${object.snapshot}/${object.object}`,
      String(object.reads),
      String(object.zeroPages),
      String(object.localPages),
      String(object.refusedReads),
      String(object.storedPages),
      String(object.replayedPages),
      String(object.aheadPages),
    ]),
  );
}

/** Where the pages came from that it touched. */
function broughtRows({ pages }: VmStats): [string, string][] {
  if (pages === undefined) return [];
  const { zero, local, replica, demand, cache } = pages;
  const others = `${demand} of other hosts waited for, ${replica} that had come before`;
  return [
    ['faults', `${zero} pages of zeros, ${local} of this host's layers`],
    ...(demand + replica > 0 ? [['', others] satisfies [string, string]] : []),
    ['cache', `${cache} pages that siblings had touched, or that were pushed`],
  ];
}

function printVm(output: Output, stats: VmStats): void {
  const pages = (count: number) => `${count} pages, ${formatBytes(count * PAGE_BYTES)}`;
  const rows: [string, string][] = [
    [
      'memory',
      `${formatBytes(stats.pssBytes)}, of it RAM of the guest ${formatBytes(stats.ramPssBytes)}`,
    ],
    ['touched', pages(stats.touchedPages)],
    ['private', pages(stats.privatePages)],
    ['shared', pages(stats.sharedPages)],
    ['free', `${pages(stats.freePages)}, never fetched`],
    ...broughtRows(stats),
    ['processor', formatDuration(stats.cpuMs)],
  ];
  for (const [name, value] of rows) output.line(`${name.padEnd(10)} ${value}`);
}
