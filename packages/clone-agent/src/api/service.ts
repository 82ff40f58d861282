// What the HTTP server asks of the agent: one method per thing that can be asked, no HTTP in it. The
// agent implements it (`agent.ts`), `server.ts` calls it. Every method throws SnowforkError only.

import type { Duplex } from 'node:stream';
import type {
  BuildProgress,
  BuildRequest,
  BuildResult,
  CheckpointResult,
  ClusterHost,
  ClusterInfo,
  ClusterInitRequest,
  ClusterJoinRequest,
  DetachResult,
  DoctorReport,
  End,
  ExecExit,
  ExecRequest,
  ForkRequest,
  ForkResult,
  HostInfo,
  HostStats,
  ImageInfo,
  JoinToken,
  LaunchRequest,
  Slot,
  SnapshotInfo,
  VmInfo,
  VmStats,
} from '@snowfork/sdk/api';

export interface AgentService {
  info(): HostInfo;
  stats(): Promise<HostStats>;
  /** What the agent sees that keeps VMs from being forked; the rest is seen without it. */
  doctor(): Promise<DoctorReport>;
  /** Ends all VMs and then the agent itself; resolves when the VMs have gone. */
  shutDown(): Promise<void>;

  buildImage(
    request: BuildRequest,
    onProgress: (progress: BuildProgress) => void,
    signal: AbortSignal,
  ): Promise<BuildResult>;
  images(): ImageInfo[];
  removeImage(name: string): Promise<void>;

  launch(request: LaunchRequest, signal: AbortSignal): Promise<VmInfo>;
  /** Running VMs, of all hosts of the cluster; with `all` those too that ended lately. */
  vms(all: boolean): Promise<VmInfo[]>;
  vm(id: string): VmInfo;
  vmStats(id: string): Promise<VmStats>;
  fork(id: string, request: ForkRequest, signal: AbortSignal): Promise<ForkResult>;
  checkpoint(id: string, signal: AbortSignal): Promise<CheckpointResult>;
  kill(id: string, reason: string): Promise<void>;
  /** Resolves when all pages that the VM may want of other hosts are on its own. */
  detach(id: string, signal: AbortSignal): Promise<DetachResult>;
  /** Resolves when the VM has ended. */
  wait(id: string, signal: AbortSignal): Promise<End>;

  /** Settles with all slots, or with some still running when `timeoutMs` has passed. */
  join(ticket: string, timeoutMs: number | undefined, signal: AbortSignal): Promise<Slot[]>;
  killTicket(ticket: string): Promise<void>;

  snapshots(): SnapshotInfo[];
  createClones(snapshot: string, request: ForkRequest, signal: AbortSignal): Promise<ForkResult>;
  removeSnapshot(id: string): Promise<void>;

  /** Runs a command in the guest; it is killed when `signal` aborts. */
  exec(id: string, request: ExecRequest, signal: AbortSignal): Promise<ExecSession>;
  /** The running command `exec` of VM `id`. */
  execSession(id: string, exec: number): ExecSession;

  console(id: string): ByteFeed;
  writeConsole(id: string, bytes: Uint8Array): void;
  /** Output of commands that a clone inherited from its parent, and words of the guest side. */
  logs(id: string): ByteFeed;

  readonly cluster: ClusterService;

  /** Anything that changes (`vm`, `snapshot`, `ticket`), for watchers. Returns the unsubscriber. */
  watch(listener: (event: { kind: string; id: string }) => void): () => void;
}

/** The other hosts. Every method throws SF_NO_CLUSTER where there are none, unless it says else. */
export interface ClusterService {
  info(): ClusterInfo;
  init(request: ClusterInitRequest): Promise<ClusterInfo>;
  join(request: ClusterJoinRequest): Promise<ClusterInfo>;
  newToken(ttlMs: number | undefined): JoinToken;
  hosts(): ClusterHost[];
  removeHost(name: string): Promise<void>;
  /** It gets no new clones, and what other hosts need of it is brought to them. */
  drainHost(name: string, signal: AbortSignal): Promise<void>;
  /** The other host that a request is about; undefined when it is about this one. */
  otherHost(path: string): string | undefined;
  /** A connection to the API of another host. */
  openApi(host: string): Promise<Duplex>;
}

/** Bytes kept so far (bounded) and those to come. */
export interface ByteFeed {
  readonly history: Buffer;
  /** Calls back for each new chunk until unsubscribed; `undefined` at the end. Returns the unsubscriber. */
  subscribe(listener: (chunk: Buffer | undefined) => void): () => void;
}

export type ExecEvent =
  | { readonly kind: 'stdout' | 'stderr'; readonly bytes: Buffer }
  | { readonly kind: 'exit'; readonly exit: ExecExit };

export interface ExecSession {
  readonly exec: number;
  readonly pid: number;
  /** Output in order, ending with `exit`. To be consumed once; reading slowly slows the command down. */
  events(): AsyncIterable<ExecEvent>;
  /** Resolves when the guest has room for more. */
  writeStdin(bytes: Uint8Array): Promise<void>;
  closeStdin(): void;
  signal(signal: number): void;
}
