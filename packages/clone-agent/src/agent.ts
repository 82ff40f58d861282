// The agent of a host: puts the parts together, starts and ends them, and answers what the HTTP server
// asks. It decides nothing that a part can decide: fork semantics are in `vms/families.ts`, snapshots
// in `store/`, images in `images.ts`.

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import {
  type BuildProgress,
  type BuildRequest,
  type BuildResult,
  type CheckpointResult,
  type DetachResult,
  type DoctorReport,
  decodeValue,
  type End,
  type ExecRequest,
  type ForkRequest,
  type ForkResult,
  type HostInfo,
  type HostStats,
  type ImageInfo,
  type LaunchRequest,
  type PreviousAgent,
  type Slot,
  type SnapshotInfo,
  SnowforkError,
  type VmInfo,
  type VmStats,
} from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { startServer } from './api/server.js';
import type { AgentService, ByteFeed, ClusterService, ExecSession } from './api/service.js';
import { serveApiTo } from './cluster/api-tunnel.js';
import { Cluster } from './cluster/cluster.js';
import { openClusterStore } from './cluster/open-store.js';
import { OtherHosts } from './cluster/others.js';
import { clusterService } from './cluster/service.js';
import { examineAgent } from './doctor.js';
import { warmFreezeReserve } from './freeze/freeze-memory.js';
import { Hypervisor } from './hypervisor/hypervisor.js';
import { Images } from './images.js';
import { PagerKeeper } from './pager/keeper.js';
import { readSettings, type Settings } from './settings.js';
import { Journal } from './store/journal.js';
import { ProcessJournal, processStartTime } from './store/processes.js';
import { type Snapshot, SnapshotStore } from './store/snapshots.js';
import {
  lockStateFolder,
  prepareStateFolder,
  type StateFolder,
  unmountAll,
} from './store/state-folder.js';
import { untilAborted } from './system/until-aborted.js';
import { Families } from './vms/families.js';
import { residentBytes } from './vms/room.js';
import type { RawEnd, Vm } from './vms/vm.js';
import { pagesBySource, readersOf, readVmStats } from './vms/vm-stats.js';

const packageFolder = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const sdkFolder = path.resolve(fileURLToPath(import.meta.resolve('@snowfork/sdk/api')), '../../..');
const packageFile = path.join(packageFolder, 'package.json');
const VERSION = (JSON.parse(fs.readFileSync(packageFile, 'utf8')) as { version: string }).version;

/** An agent that is started waits no longer for the other hosts. */
const CLUSTER_PATIENCE_MS = 2000;

export interface AgentOptions {
  readonly state: StateFolder;
  readonly log: Logger;
  readonly environment: NodeJS.ProcessEnv;
}

type WatchListener = (event: { kind: string; id: string }) => void;

export class Agent implements AgentService {
  readonly #state: StateFolder;
  readonly #log: Logger;
  readonly #settings: Settings;
  readonly #journal: Journal;
  readonly #processes: ProcessJournal;
  readonly #pager: PagerKeeper;
  readonly #hypervisor: Hypervisor;
  readonly #store: SnapshotStore;
  readonly #families: Families;
  readonly #images: Images;
  readonly #cluster: Cluster;
  readonly #others: OtherHosts;
  readonly cluster: ClusterService;
  readonly #listeners = new Set<WatchListener>();
  readonly #startedAt = Date.now();
  #server: { close(): Promise<void> } | undefined;
  #shutDown: Promise<void> | undefined;
  #previous: PreviousAgent | undefined;

  /** @throws SnowforkError: SF_BAD_REQUEST (settings), SF_PERMISSION, SF_QEMU_MISSING. */
  static async start(options: AgentOptions): Promise<Agent> {
    const { state, log } = options;
    await lockStateFolder(state);
    const settings = readSettings(state.settingsFile, options.environment);
    const processes = new ProcessJournal(state.processes);
    const complain = (error: unknown) => log.error({ err: error }, 'the journal');
    const journal = new Journal(state.journal, complain);
    const keeping = { state, log, journal: processes, replays: settings.replayFirstTouches };
    const adopted = await PagerKeeper.adopt(keeping);
    let hypervisor: Hypervisor | undefined;
    try {
      let previous: PreviousAgent | undefined;
      if (adopted === undefined) {
        previous = await cleanUp(state, { journal, processes, log });
        await prepareStateFolder(state, settings.layersBytesMax);
      }
      hypervisor = await Hypervisor.start({ ...options, settings, journal: processes });
      const pager = adopted ?? (await PagerKeeper.start(keeping));
      warmFreezeReserve();
      const agent = new Agent(options, { settings, journal, processes, hypervisor, pager });
      agent.#previous = previous;
      await agent.#open();
      return agent;
    } catch (error) {
      await hypervisor?.close();
      // What was taken over stays as it is, for an agent that can start.
      if (adopted === undefined) await endLeftOver(state, processes);
      throw error;
    }
  }

  private constructor(
    { state, log }: AgentOptions,
    parts: {
      settings: Settings;
      journal: Journal;
      processes: ProcessJournal;
      hypervisor: Hypervisor;
      pager: PagerKeeper;
    },
  ) {
    this.#state = state;
    this.#log = log;
    this.#settings = parts.settings;
    this.#journal = parts.journal;
    this.#processes = parts.processes;
    this.#hypervisor = parts.hypervisor;
    this.#pager = parts.pager;
    const changed = (kind: string) => (id: string) => this.#changed(kind, id);
    this.#cluster = this.#newCluster();
    this.#journal.hostName = () => this.#cluster.name;
    this.cluster = clusterService(this.#cluster);
    const { replayFirstTouches: replays } = this.#settings;
    this.#others = new OtherHosts({
      ...{ cluster: this.#cluster, runFolder: state.run, settings: this.#settings, log },
      journal: this.#processes,
      faults: async (snapshot) => (replays ? await this.#pager.faults(snapshot) : []),
      touched: (snapshot, pages) => this.#pager.touched(snapshot, pages),
      bringAll: (snapshot) => this.#pager.bringAll(snapshot),
    });
    this.#store = new SnapshotStore(
      state,
      {
        ready: (id, of) => this.#pager.ready(id, replays ? of : {}),
        bring: (id, pages) => this.#pager.bring(id, pages),
        dropped: (id) => {
          this.#hypervisor.dropSnapshot(id);
          this.#pager.drop(id);
          void this.#others.drop(id);
          this.#families.remote.release();
        },
        changed: changed('snapshot'),
      },
      this.#journal,
    );
    this.#families = new Families({
      store: this.#store,
      settings: this.#settings,
      log,
      journal: this.#journal,
      adoptQemu: (process, snapshot) => this.#hypervisor.adopt(process, snapshot, this.#store),
      takeQemu: (snapshot) => this.#hypervisor.take(snapshot, this.#store),
      quiet: () => this.#hypervisor.quiet(),
      changed: (kind, id) => this.#changed(kind, id),
      others: this.#others,
      hostName: () => this.#cluster.name,
    });
    this.#images = new Images({
      state,
      store: this.#store,
      log,
      guestFolder: path.join(packageFolder, 'guest'),
      guestKernel: this.#settings.guestKernel,
      guestTimeoutMs: this.#settings.guestTimeoutMs,
      sdkFolder,
      machineFor: (prepared, cpu) => this.#hypervisor.machineFor(prepared, cpu),
      bootQemu: (snapshot, prepared) => this.#hypervisor.boot(snapshot, this.#store, prepared),
      availableBytes: () => this.#families.room.measure().availableBytes,
    });
  }

  #newCluster(): Cluster {
    const state = this.#state;
    const log = this.#log;
    return new Cluster({
      stateRoot: state.root,
      log,
      version: VERSION,
      certificateLifetimeMs: this.#settings.certificateLifetimeMs,
      handlers: () => ({
        ...this.#families.remote.handlers,
        ping: async () => ({
          ...{ version: VERSION, nowMs: Date.now() },
          canStore: this.#cluster.canStore,
        }),
        vms: async ({ all }) => ({ vms: this.#ownVms(all) }),
        findImage: async ({ name }) => ({ image: this.#images.find(name) ?? null }),
      }),
      serveApi: (socket) => serveApiTo(socket, state.socket),
      storeMember: this.#settings.storeMember,
      openStore: (of) => openClusterStore(of, this.#settings.hostTimeoutMs),
      entered: () => this.#others.open(),
      opened: () => this.#families.remote.reconcile(),
      room: () => this.#families.hostRoom(),
      holdings: () => this.#families.holdings(),
      reserved: (reservations) => this.#families.reserved(reservations),
      detachFrom: async (host, signal) => await this.#families.remote.detachFrom(host, signal),
      hostStarted: (host) => this.#families.remote.hostStarted(host),
      hostLost: (host, reason) => this.#families.remote.hostLost(host, reason),
    });
  }

  async #open(): Promise<void> {
    this.#cluster.read();
    Images.removeHalfBuilt(this.#state);
    this.#store.load(Images.namedSnapshots(this.#state));
    this.#images.load();
    await this.#adopt();
    // Who asks for other hosts before they can be spoken to is refused: mostly that takes a moment.
    const patience = delay(CLUSTER_PATIENCE_MS, undefined, { ref: false });
    await Promise.race([this.#cluster.open(), patience]);
    fs.rmSync(this.#state.socket, { force: true });
    this.#server = await startServer({
      service: this,
      socketPath: this.#state.socket,
      version: VERSION,
    });
    const startTime = processStartTime(process.pid);
    const { agentFile } = this.#state;
    fs.writeFileSync(
      `${agentFile}.new`,
      JSON.stringify({ pid: process.pid, startTime, version: VERSION }),
    );
    fs.renameSync(`${agentFile}.new`, agentFile);
    this.#log.info({ pid: process.pid, state: this.#state.root }, 'the agent is ready');
  }

  /** The VMs of an agent that was killed go on; whatever else it has started is ended. */
  async #adopt(): Promise<void> {
    const { adopted, lost } = await this.#families.adopt(this.#journal.read());
    const needed = [...this.#families.running()].map((vm) => vm.qemu.pid);
    needed.push(await this.#pager.pid());
    if (this.#cluster.name !== undefined) {
      // Others may wait for pages of this host already.
      await this.#others.open();
      await this.#families.remote.serveAgain();
      needed.push((await this.#others.pid())!);
    }
    const killed = this.#processes.killLeftOver(new Set(needed));
    this.#hypervisor.releaseLeftOver();
    if (adopted.length + lost.length + killed === 0) return;
    this.#log.warn({ adopted, lost, killed }, 'took over from an agent that was killed');
    const lostIds = lost.map(({ vm }) => vm);
    this.#previous = { adopted, lost: lostIds, tickets: [], killedProcesses: killed };
  }

  info(): HostInfo {
    return {
      version: VERSION,
      pid: process.pid,
      startedAt: this.#startedAt,
      stateFolder: this.#state.root,
      qemu: this.#hypervisor.info(),
      vms: [...this.#families.running()].length,
      ...(this.#previous === undefined ? {} : { previous: this.#previous }),
    };
  }

  async stats(): Promise<HostStats> {
    const [{ received, replicas, ...counted }, pool, served] = await Promise.all([
      this.#pager.stats(),
      this.#hypervisor.poolStats(),
      this.#others.stats(),
    ]);
    const network = served === undefined ? {} : { network: { served, received, replicas } };
    const tickets = this.#cluster.isOpen ? { tickets: this.#sharedTickets() } : {};
    const memory = this.#families.room.measure();
    const { blocks, bfree, bsize } = fs.statfsSync(this.#state.run);
    const layers = { layersBytes: (blocks - bfree) * bsize, layersBytesMax: blocks * bsize };
    const snapshots = this.#store.list().map(({ id, pages }) => ({ snapshot: id, pages }));
    const vms = [...this.#families.running()].map(({ id: vm, base, qemu }) => {
      const pages = pagesBySource(qemu.pid, readersOf(counted, base));
      return { vm, snapshot: base.file.id, ...residentBytes(qemu.pid), pages };
    });
    const objects = counted.objects.map(({ readers: _, ...object }) => object);
    const pager = { ...counted, objects };
    const all = { memory: { ...memory, ...layers }, pool, pager, vms, snapshots };
    return { ...all, ...network, ...tickets };
  }

  #sharedTickets(): HostStats['tickets'] {
    return this.#cluster.store.tickets().map(({ bytesEach: _, ...ticket }) => ticket);
  }

  doctor(): Promise<DoctorReport> {
    return examineAgent({
      version: VERSION,
      state: this.#state,
      qemu: this.#hypervisor.facts(),
      confinement: this.#hypervisor.confinement(),
      trackWrites: this.#settings.trackWrites,
      images: this.images(),
      incompatible: ({ machine }) => this.#hypervisor.incompatible(machine),
      stats: () => this.stats(),
      cluster: this.#cluster,
    });
  }

  shutDown(): Promise<void> {
    this.#shutDown ??= this.#shutDownOnce();
    return this.#shutDown;
  }

  async #shutDownOnce(): Promise<void> {
    this.#log.info('shutting down');
    const vms = this.#families.all();
    for (const vm of vms) vm.finish({ how: 'killed', reason: 'the agent was shut down' });
    await this.#hypervisor.stop();
    await Promise.all(vms.map((vm) => vm.qemu.exited));
    await this.#cluster.close();
    await this.#others.close();
    await this.#hypervisor.close();
    await this.#pager.stop();
    await unmountAll(this.#state.mount);
    await unmountAll(this.#state.run);
    this.#journal.clear();
    fs.rmSync(this.#state.agentFile, { force: true });
    // The answer to whoever asked for this must still get out.
    setImmediate(() => void this.#server?.close().finally(() => process.exit(0)));
  }

  buildImage(
    request: BuildRequest,
    onProgress: (progress: BuildProgress) => void,
    signal: AbortSignal,
  ): Promise<BuildResult> {
    return this.#images.build(request, onProgress, signal);
  }

  images(): ImageInfo[] {
    return this.#images.list();
  }

  async removeImage(name: string): Promise<void> {
    this.#images.remove(name);
  }

  async launch({ image, ...placing }: LaunchRequest, signal: AbortSignal): Promise<VmInfo> {
    const snapshot = await this.#snapshotOf(image);
    return await this.#families.launch(image, snapshot, signal, placing);
  }

  /** Of an image of this host, or of another that has it: its pages come when they are wanted. */
  async #snapshotOf(image: string): Promise<Snapshot> {
    if (this.#images.find(image) === undefined) {
      const elsewhere = await this.#cluster.findImage(image);
      if (elsewhere !== undefined) {
        return await this.#families.remote.fetch(elsewhere.host, elsewhere.image.snapshot);
      }
    }
    return this.#images.snapshot(image);
  }

  async vms(all: boolean): Promise<VmInfo[]> {
    return [...this.#ownVms(all), ...(await this.#cluster.vmsElsewhere(all))];
  }

  #ownVms(all: boolean): VmInfo[] {
    return this.#families
      .all()
      .filter((vm) => all || vm.end === undefined)
      .map((vm) => vm.info());
  }

  vm(id: string): VmInfo {
    return this.#families.get(id).info();
  }

  async vmStats(id: string): Promise<VmStats> {
    const vm = this.#families.get(id);
    return await readVmStats(vm, readersOf(await this.#pager.stats(), vm.base));
  }

  async fork(
    id: string,
    { clones, ...placing }: ForkRequest,
    signal: AbortSignal,
  ): Promise<ForkResult> {
    const vm = await this.#started(id, signal);
    return await this.#families.fork(vm, clones, signal, undefined, placing);
  }

  async checkpoint(id: string, signal: AbortSignal): Promise<CheckpointResult> {
    const vm = await this.#started(id, signal);
    return await this.#families.checkpoint(vm, undefined, signal);
  }

  /** Who has its id already, as its ticket and `sf ps` show it, need not ask again until it runs. */
  async #started(id: string, signal: AbortSignal): Promise<Vm> {
    const vm = this.#families.get(id);
    await untilAborted(vm.started, signal);
    return vm;
  }

  async kill(id: string, reason: string): Promise<void> {
    const vm = this.#families.get(id);
    vm.finish({ how: 'killed', reason });
    await vm.qemu.exited;
  }

  detach(id: string, signal: AbortSignal): Promise<DetachResult> {
    return this.#families.detach(this.#families.get(id), signal);
  }

  async wait(id: string, signal: AbortSignal): Promise<End> {
    return decodeEnd(await untilAborted(this.#families.get(id).ended, signal));
  }

  join(ticket: string, timeoutMs: number | undefined, signal: AbortSignal): Promise<Slot[]> {
    return this.#families.join(this.#families.tickets.get(ticket), timeoutMs, signal);
  }

  async killTicket(ticket: string): Promise<void> {
    this.#families.killTicket(this.#families.tickets.get(ticket));
  }

  snapshots(): SnapshotInfo[] {
    return this.#store.list();
  }

  createClones(
    snapshot: string,
    { clones, ...placing }: ForkRequest,
    signal: AbortSignal,
  ): Promise<ForkResult> {
    return this.#families.createClones(this.#store.get(snapshot), clones, signal, placing);
  }

  async removeSnapshot(id: string): Promise<void> {
    this.#families.letGo(this.#store.get(id));
    this.#store.remove(id);
  }

  async exec(id: string, request: ExecRequest, signal: AbortSignal): Promise<ExecSession> {
    const vm = await this.#started(id, signal);
    return await vm.guest().exec(request, signal);
  }

  execSession(id: string, exec: number): ExecSession {
    const session = this.#families.get(id).channel?.session(exec);
    if (session !== undefined) return session;
    throw new SnowforkError('SF_EXEC_NOT_FOUND', `no command ${exec} runs in ${id}`);
  }

  console(id: string): ByteFeed {
    return this.#families.get(id).console;
  }

  writeConsole(id: string, bytes: Uint8Array): void {
    this.#families.get(id).writeConsole(bytes);
  }

  logs(id: string): ByteFeed {
    return this.#families.get(id).logs;
  }

  watch(listener: WatchListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #changed(kind: string, id: string): void {
    for (const listener of this.#listeners) listener({ kind, id });
  }
}

/** After a power cut, or when the pager died with its agent: nothing can be gone on with. */
async function cleanUp(
  state: StateFolder,
  { journal, processes, log }: { journal: Journal; processes: ProcessJournal; log: Logger },
): Promise<PreviousAgent | undefined> {
  const { vms, tickets } = journal.read();
  const lost = vms.filter(({ end }) => end === undefined).map(({ id }) => id);
  const killed = await endLeftOver(state, processes);
  journal.clear();
  if (lost.length + tickets.length + killed === 0) return undefined;
  // A launched VM's ticket is nobody's to join.
  const joinable = tickets.filter(({ vm, used }) => used && vm !== undefined).map(({ id }) => id);
  log.warn({ lost, tickets: joinable, killed }, 'VMs and results of an earlier agent were lost');
  return { adopted: [], lost, tickets: joinable, killedProcesses: killed };
}

/** Processes and mounts of an agent that died, or of this one when it cannot start. */
async function endLeftOver(state: StateFolder, processes: ProcessJournal): Promise<number> {
  const killed = processes.killLeftOver();
  await unmountAll(state.mount);
  await unmountAll(state.run);
  return killed;
}

function decodeEnd(end: RawEnd): End {
  if (end.how !== 'exited') return end;
  try {
    return { how: 'exited', value: decodeValue(end.value) };
  } catch {
    return { how: 'exited', value: end.value };
  }
}
