// An agent's service without VMs: enough of each answer to try the HTTP server, the host SDK and
// the CLI. It records what it was asked and is told to fail by names (`broken`, `flaky`, `slow`).
// Used by the tests of the protocol alone; what VMs do is tested on VMs.

import {
  type BuildProgress,
  type BuildResult,
  type CheckpointResult,
  type DoctorReport,
  type End,
  type ErrorCode,
  type ExecExit,
  type ExecRequest,
  type ForkRequest,
  type ForkResult,
  type HostInfo,
  type HostStats,
  type ImageInfo,
  type Machine,
  type Slot,
  type SnapshotInfo,
  SnowforkError,
  type VmInfo,
  type VmStats,
} from '@snowfork/sdk/api';
import type {
  AgentService,
  ByteFeed,
  ExecEvent,
  ExecSession,
} from '../../packages/clone-agent/src/api/service.js';

export const machine: Machine = {
  qemuVersion: '7.2.22',
  machineType: 'pc-q35-7.2',
  accelerator: 'tcg',
  cpuModel: 'qemu64',
  memoryBytes: 256 * 1024 * 1024,
  vcpus: 1,
};
/** The fake host has room for so many clones of one fork. */
export const ROOM = 16;
export const FLOOD_CHUNK_BYTES = 65_536;

/** The fake host is by itself. */
const noCluster = (): never => {
  throw new SnowforkError('SF_NO_CLUSTER', 'this host is in no cluster');
};

export class FakeService implements AgentService {
  readonly cluster: AgentService['cluster'] = {
    info: noCluster,
    init: noCluster,
    join: noCluster,
    newToken: noCluster,
    hosts: noCluster,
    removeHost: noCluster,
    drainHost: noCluster,
    otherHost: () => undefined,
    openApi: noCluster,
  };

  readonly #vms = new Map<string, VmInfo>();
  readonly #snapshots = new Map<string, SnapshotInfo>();
  readonly #images = new Map<string, ImageInfo>();
  readonly #execs = new Map<number, FakeExec>();
  readonly #listeners = new Set<(event: { kind: string; id: string }) => void>();
  readonly #ends = new Map<string, (end: End) => void>();
  readonly #onShutDown: () => void;
  readonly #pid: number;
  #next = 1;
  /** What was called, with arguments, in order. */
  readonly calls: string[] = [];
  /** Names of the calls whose signal was aborted, in order. */
  readonly aborted: string[] = [];
  readonly files = new Map<string, Buffer>();
  readonly consoleFeed = new FakeFeed('boot\r\nlogin: ');
  readonly logFeed = new FakeFeed('guest side: ready\n');
  typed = Buffer.alloc(0);
  slots: Slot[] = [];
  checks: DoctorReport['checks'] = [{ name: 'qemu', status: 'ok', message: '7.2.22' }];
  /** Takes the place of the next answer of any of the calls that can fail. */
  failNext: unknown;

  constructor(options: { pid?: number; onShutDown?: () => void } = {}) {
    this.#pid = options.pid ?? process.pid;
    this.#onShutDown = options.onShutDown ?? (() => {});
    this.#images.set('minimal', fakeImage('minimal'));
  }

  get listeners(): number {
    return this.#listeners.size;
  }

  execOf(exec: number): FakeExec {
    return this.#execs.get(exec)!;
  }

  info(): HostInfo {
    return {
      version: '0.1.0',
      pid: this.#pid,
      startedAt: 1,
      stateFolder: '/fake',
      qemu: { path: '/usr/bin/qemu-system-x86_64', version: '7.2.22', accelerator: 'tcg' },
      vms: this.#alive().length,
    };
  }

  async doctor(): Promise<DoctorReport> {
    this.#failIfAsked();
    return { checks: this.checks };
  }

  async stats(): Promise<HostStats> {
    return {
      memory: {
        totalBytes: 8e9,
        availableBytes: 6e9,
        promisedBytes: 1e9,
        roomBytes: 5e9,
        layersBytes: 1e6,
        layersBytesMax: 4e9,
      },
      pool: { size: 4, ready: 3, pssBytes: 40e6 },
      pager: {
        pid: 2,
        objects: [
          {
            snapshot: 's1',
            object: 'ram',
            reads: 557,
            zeroPages: 3,
            localPages: 4,
            refusedReads: 5,
            storedPages: 6,
            replayedPages: 7,
            aheadPages: 8,
            replicaPages: 0,
            demandedPages: 0,
            firstTouches: 0,
            dependsOn: {},
          },
        ],
        latencyUsBuckets: [0, 1, 2],
      },
      vms: [
        {
          ...{ vm: 'vm1', snapshot: 's1', ownBytes: 11e6, sharedBytes: 22e6 },
          pages: { zero: 1, local: 2, replica: 3, demand: 4 },
        },
      ],
      snapshots: [
        {
          snapshot: 's1',
          pages: {
            totalPages: 65_536,
            privatePages: 20,
            freePages: 50_000,
            zeroPages: 5,
            referencedPages: 4,
            storedPages: 11,
          },
        },
      ],
    };
  }

  async shutDown(): Promise<void> {
    this.calls.push('shutDown');
    this.#onShutDown();
  }

  async buildImage(
    request: { name: string; file: string; force?: boolean | undefined },
    onProgress: (progress: BuildProgress) => void,
    signal: AbortSignal,
  ): Promise<BuildResult> {
    this.calls.push(`buildImage ${JSON.stringify(request)}`);
    this.#failIfAsked();
    onProgress({ step: 'packages', message: 'fetching 12 packages', elapsedMs: 100 });
    if (request.name === 'slow') await this.#untilAborted('buildImage', signal);
    onProgress({ step: 'boot', message: 'waiting for the guest', elapsedMs: 1500 });
    if (request.name === 'broken') {
      throw new SnowforkError('SF_IMAGE_BUILD_FAILED', 'step boot: the guest did not come up');
    }
    const unchanged = this.#images.has(request.name) && request.force !== true;
    const image = fakeImage(request.name);
    this.#images.set(request.name, image);
    return { image, unchanged };
  }

  images(): ImageInfo[] {
    return [...this.#images.values()];
  }

  async removeImage(name: string): Promise<void> {
    if (this.#images.delete(name)) return;
    throw new SnowforkError('SF_IMAGE_NOT_FOUND', `no image ${name}`);
  }

  async launch({ image }: { image: string }, signal: AbortSignal): Promise<VmInfo> {
    this.calls.push(`launch ${image}`);
    this.#failIfAsked();
    if (image === 'slow') await this.#untilAborted('launch', signal);
    if (image.startsWith('fails-with-')) {
      const code = image.slice('fails-with-'.length).replaceAll('-', '_').toUpperCase();
      throw new SnowforkError(code as ErrorCode, 'as asked');
    }
    if (!this.#images.has(image)) {
      throw new SnowforkError('SF_IMAGE_NOT_FOUND', `no image ${image}`, { details: { image } });
    }
    return this.#add({ image, snapshot: `image-${image}` });
  }

  async vms(all: boolean): Promise<VmInfo[]> {
    return all ? [...this.#vms.values()] : this.#alive();
  }

  #alive(): VmInfo[] {
    return [...this.#vms.values()].filter((vm) => vm.state !== 'ended');
  }

  vm(id: string): VmInfo {
    const vm = this.#vms.get(id);
    if (vm === undefined) throw new SnowforkError('SF_VM_NOT_FOUND', `no VM ${id}`);
    return vm;
  }

  async vmStats(id: string): Promise<VmStats> {
    this.#running(id);
    return {
      vm: id,
      pssBytes: 30e6,
      ramPssBytes: 20e6,
      touchedPages: 600,
      privatePages: 256,
      sharedPages: 300,
      freePages: 40_000,
      pages: { zero: 20, local: 30, replica: 40, demand: 50, cache: 460 },
      cpuMs: 120,
    };
  }

  async fork(id: string, { clones }: ForkRequest, signal: AbortSignal): Promise<ForkResult> {
    this.calls.push(`fork ${id} ${clones}`);
    this.#failIfAsked();
    const parent = this.#running(id);
    if (clones === 13) await this.#untilAborted('fork', signal);
    const freeze = { prepareMs: 2, pauseMs: 12.5, parts: { device: 3, copy: 9 } };
    return { ...this.#clone(parent, clones), freeze };
  }

  async checkpoint(id: string): Promise<CheckpointResult> {
    this.calls.push(`checkpoint ${id}`);
    const snapshot = this.#addSnapshot(this.#running(id), true);
    return { snapshot, freeze: { prepareMs: 2, pauseMs: 12.5, parts: {} } };
  }

  async detach(): Promise<{ pages: number }> {
    return { pages: 0 };
  }

  async kill(id: string, reason: string): Promise<void> {
    this.calls.push(`kill ${id}`);
    this.vm(id);
    this.end(id, { how: 'killed', reason });
  }

  /** Ends a VM as its program or a mishap would. */
  end(id: string, end: End): void {
    const vm = this.vm(id);
    this.#vms.set(id, { ...vm, state: 'ended', endedAt: Date.now(), end });
    this.#ends.get(id)?.(end);
    this.#tell('vm', id);
  }

  async wait(id: string, signal: AbortSignal): Promise<End> {
    this.calls.push(`wait ${id}`);
    const vm = this.vm(id);
    if (vm.end !== undefined) return vm.end;
    return await Promise.race([
      new Promise<End>((resolve) => this.#ends.set(id, resolve)),
      this.#untilAborted('wait', signal),
    ]);
  }

  async join(ticket: string, timeoutMs: number | undefined, signal: AbortSignal): Promise<Slot[]> {
    this.calls.push(`join ${ticket} ${timeoutMs}`);
    if (ticket === 'nobody') throw new SnowforkError('SF_TICKET_NOT_FOUND', 'no ticket nobody');
    if (ticket === 'slow') await this.#untilAborted('join', signal);
    return this.slots;
  }

  async killTicket(ticket: string): Promise<void> {
    this.calls.push(`killTicket ${ticket}`);
  }

  snapshots(): SnapshotInfo[] {
    return [...this.#snapshots.values()];
  }

  async createClones(snapshot: string, { clones }: ForkRequest): Promise<ForkResult> {
    this.calls.push(`createClones ${snapshot} ${clones}`);
    const found = this.#snapshots.get(snapshot);
    if (found === undefined) {
      throw new SnowforkError('SF_SNAPSHOT_NOT_FOUND', `no snapshot ${snapshot}`);
    }
    return this.#clone(this.vm(found.vm!), clones);
  }

  async removeSnapshot(id: string): Promise<void> {
    if (!this.#snapshots.has(id)) {
      throw new SnowforkError('SF_SNAPSHOT_NOT_FOUND', `no snapshot ${id}`);
    }
    const users = this.#alive().filter((vm) => vm.snapshot === id);
    if (users.length > 0) {
      const details = { users: users.map((vm) => vm.id) };
      throw new SnowforkError('SF_SNAPSHOT_IN_USE', `VMs need ${id}`, { details });
    }
    this.#snapshots.delete(id);
  }

  async exec(id: string, request: ExecRequest, signal: AbortSignal): Promise<ExecSession> {
    this.calls.push(`exec ${JSON.stringify(request)}`);
    this.#failIfAsked();
    this.#running(id);
    const exec = this.#next++;
    const session = new FakeExec(exec, request, this.files);
    this.#execs.set(exec, session);
    const onAbort = () => {
      this.aborted.push('exec');
      session.signal(9);
    };
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort);
    return session;
  }

  execSession(id: string, exec: number): ExecSession {
    this.#running(id);
    const session = this.#execs.get(exec);
    if (session === undefined || session.ended) {
      throw new SnowforkError('SF_EXEC_NOT_FOUND', `no command ${exec}`);
    }
    return session;
  }

  console(id: string): ByteFeed {
    this.vm(id);
    return this.consoleFeed;
  }

  writeConsole(id: string, bytes: Uint8Array): void {
    this.#running(id);
    this.typed = Buffer.concat([this.typed, bytes]);
    this.consoleFeed.push(Buffer.from(bytes));
  }

  logs(id: string): ByteFeed {
    this.vm(id);
    return this.logFeed;
  }

  watch(listener: (event: { kind: string; id: string }) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #running(id: string): VmInfo {
    const vm = this.vm(id);
    if (vm.state === 'ended') throw new SnowforkError('SF_VM_GONE', `VM ${id} has ended`);
    return vm;
  }

  #clone(parent: VmInfo, asked: number): Omit<ForkResult, 'freeze'> {
    const snapshot = this.#addSnapshot(parent, false);
    const count = Math.min(asked, ROOM);
    const ticket = {
      id: `t${this.#next++}`,
      vm: parent.id,
      asked,
      clones: count,
      used: true,
      ...(count < asked ? { reason: `room for ${ROOM} only` } : {}),
    };
    const clones = Array.from({ length: count }, (_, index): ForkResult['clones'][number] => {
      const cloneId = index + 1;
      if (parent.image === 'flaky' && cloneId === 2) {
        const error = new SnowforkError('SF_CLONE_FAILED', 'identity repair failed');
        return { status: 'rejected', cloneId, error };
      }
      const vm = this.#add({
        image: parent.image,
        snapshot: snapshot.id,
        parent: parent.id,
        family: parent.family,
        cloneId,
        ticket: ticket.id,
      });
      return { status: 'fulfilled', cloneId, vm };
    });
    return { ticket, snapshot, clones };
  }

  #add(fields: Partial<VmInfo> & { image: string; snapshot: string }): VmInfo {
    const id = `v${this.#next++}`;
    const times = { startedMs: 1, loadedMs: 20, resumedMs: 37, answeredMs: 146, warm: true };
    const vm: VmInfo = {
      id,
      family: id,
      state: 'running',
      pid: 4242,
      startedAt: Date.now(),
      machine,
      times,
      ...fields,
    };
    this.#vms.set(id, vm);
    this.#tell('vm', id);
    return vm;
  }

  #addSnapshot(vm: VmInfo, kept: boolean): SnapshotInfo {
    const id = `s${this.#next++}`;
    const snapshot: SnapshotInfo = {
      id,
      vm: vm.id,
      parent: vm.snapshot,
      createdAt: Date.now(),
      machine,
      pages: {
        totalPages: 65_536,
        privatePages: 900,
        freePages: 48_272,
        zeroPages: 12,
        referencedPages: 20,
        storedPages: 400,
      },
      layers: 2,
      layerBytes: 400 * 4096,
      deviceStateBytes: 80_000,
      kept,
      users: [],
    };
    this.#snapshots.set(id, snapshot);
    this.#tell('snapshot', id);
    return snapshot;
  }

  #tell(kind: string, id: string): void {
    for (const listener of this.#listeners) listener({ kind, id });
  }

  #failIfAsked(): void {
    const failure = this.failNext;
    this.failNext = undefined;
    if (failure !== undefined) throw failure;
  }

  async #untilAborted(what: string, signal: AbortSignal): Promise<never> {
    return await new Promise<never>((_resolve, reject) => {
      const onAbort = () => {
        this.aborted.push(what);
        reject(signal.reason);
      };
      if (signal.aborted) onAbort();
      else signal.addEventListener('abort', onAbort, { once: true });
    });
  }
}

export class FakeFeed implements ByteFeed {
  readonly #listeners = new Set<(chunk: Buffer | undefined) => void>();
  history: Buffer;

  constructor(history: string) {
    this.history = Buffer.from(history);
  }

  get listeners(): number {
    return this.#listeners.size;
  }

  subscribe(listener: (chunk: Buffer | undefined) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  push(chunk: Buffer): void {
    this.history = Buffer.concat([this.history, chunk]);
    for (const listener of this.#listeners) listener(chunk);
  }

  end(): void {
    for (const listener of this.#listeners) listener(undefined);
  }
}

/**
 * The commands that the fake guest knows: `echo WORDS`, `warn WORDS` (to stderr), `cat`, `exit N`,
 * `flood BYTES`, `sleep` (until a signal other than 2, which it reports), `show` (the request as
 * JSON), `true`, `deaf` (ends after it has refused input), and `/bin/sh -c` for the script of
 * `writeFile`; any other line is repeated.
 */
export class FakeExec implements ExecSession {
  readonly exec: number;
  readonly pid = 99;
  readonly #request: ExecRequest;
  readonly #files: Map<string, Buffer>;
  readonly #input: Buffer[] = [];
  #inputClosed: boolean;
  #signals: number[] = [];
  #wake: () => void = () => {};
  /** Bytes of output that the server has taken so far. */
  taken = 0;
  ended = false;

  constructor(exec: number, request: ExecRequest, files: Map<string, Buffer>) {
    this.exec = exec;
    this.#request = request;
    this.#files = files;
    this.#inputClosed = request.stdin !== true;
  }

  async *events(): AsyncGenerator<ExecEvent> {
    const exit = yield* this.#run();
    this.ended = true;
    yield { kind: 'exit', exit };
  }

  async writeStdin(bytes: Uint8Array): Promise<void> {
    if (this.#request.command[0] === 'deaf') this.signal(13);
    if (this.ended || this.#request.command[0] === 'deaf') {
      throw new SnowforkError('SF_EXEC_NOT_FOUND', 'the command has ended');
    }
    this.#input.push(Buffer.from(bytes));
    this.#wake();
  }

  closeStdin(): void {
    this.#inputClosed = true;
    this.#wake();
  }

  signal(signal: number): void {
    this.#signals.push(signal);
    this.#wake();
  }

  async *#run(): AsyncGenerator<ExecEvent, ExecExit> {
    const [name = '', ...words] = this.#request.command;
    if (name === 'true') return { code: 0, signal: null };
    if (name === 'echo') yield this.#text('stdout', `${words.join(' ')}\n`);
    else if (name === 'warn') yield this.#text('stderr', `${words.join(' ')}\n`);
    else if (name === 'show') yield this.#text('stdout', JSON.stringify(this.#request));
    else if (name === 'exit') return { code: Number(words[0]), signal: null };
    else if (name === 'flood') yield* this.#flood(Number(words[0]));
    else if (name === 'cat') return yield* this.#cat();
    else if (name === 'sleep' || name === 'deaf') return yield* this.#sleep();
    else if (name === '/bin/sh') return yield* this.#shell();
    else throw new SnowforkError('SF_BAD_REQUEST', `the guest could not run ${name}`);
    return { code: 0, signal: null };
  }

  async *#flood(sizeBytes: number): AsyncGenerator<ExecEvent> {
    for (let at = 0; at < sizeBytes; at += FLOOD_CHUNK_BYTES) {
      const bytes = Buffer.alloc(
        Math.min(FLOOD_CHUNK_BYTES, sizeBytes - at),
        at / FLOOD_CHUNK_BYTES,
      );
      this.taken += bytes.length;
      yield { kind: 'stdout', bytes };
    }
  }

  async *#cat(): AsyncGenerator<ExecEvent, ExecExit> {
    for (;;) {
      const bytes = this.#input.shift();
      if (bytes !== undefined) yield { kind: 'stdout', bytes };
      else if (this.#inputClosed) return { code: 0, signal: null };
      else if (this.#signals.length > 0) return { code: null, signal: this.#signals[0]! };
      else await this.#change();
    }
  }

  async *#sleep(): AsyncGenerator<ExecEvent, ExecExit> {
    yield this.#text('stdout', 'asleep\n');
    for (;;) {
      const signal = this.#signals.shift();
      if (signal === 2) {
        yield this.#text('stdout', 'interrupted\n');
        return { code: 3, signal: null };
      }
      if (signal !== undefined) return { code: null, signal };
      await this.#change();
    }
  }

  async *#shell(): AsyncGenerator<ExecEvent, ExecExit> {
    const [, , line = '', , path, mode] = this.#request.command;
    if (!line.startsWith('cat > "$1"') || path === undefined) {
      yield this.#text('stdout', `sh: ${line}\n`);
      return { code: 0, signal: null };
    }
    if (path.startsWith('/proc')) {
      yield this.#text('stderr', 'sh: cannot create\n');
      return { code: 1, signal: null };
    }
    while (!this.#inputClosed) await this.#change();
    this.#files.set(`${path} ${mode}`, Buffer.concat(this.#input));
    return { code: 0, signal: null };
  }

  #text(kind: 'stdout' | 'stderr', text: string): ExecEvent {
    return { kind, bytes: Buffer.from(text) };
  }

  async #change(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
  }
}

function fakeImage(name: string): ImageInfo {
  return {
    name,
    snapshot: `image-${name}`,
    builtAt: Date.now(),
    kernel: '6.1.0-fake-cloud-amd64',
    machine,
    storedBytes: 50e6,
  };
}
