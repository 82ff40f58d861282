// A host and its agent, as a program sees it: images, VMs, snapshots, tickets. Made by `connect()`.

import { resolve } from 'node:path';
import type { z } from 'zod';
import {
  type ClusterHost,
  type ClusterInfo,
  type ClusterInitRequest,
  type ClusterJoinRequest,
  clusterHostListSchema,
  clusterSchema,
  type JoinToken,
  tokenSchema,
} from '../api/cluster.js';
import { type DoctorReport, doctorReportSchema } from '../api/doctor.js';
import { SnowforkError } from '../api/errors.js';
import {
  type BuildProgress,
  type BuildResult,
  buildProgressSchema,
  buildResultSchema,
  type HostInfo,
  type HostStats,
  hostInfoSchema,
  hostStatsSchema,
  type ImageInfo,
  imageListSchema,
  joinResultSchema,
  type Slot,
  type SnapshotInfo,
  snapshotListSchema,
  type VmInfo,
  vmListSchema,
  vmSchema,
  type WatchEvent,
  watchEventSchema,
} from '../api/schemas.js';
import { valueFromJson } from '../api/value.js';
import { apiPath, type Transport } from './transport.js';
import {
  type CloneOptions,
  type ClonesResult,
  decodeVm,
  requestClones,
  settleClones,
  Vm,
} from './vm.js';
import { definedOf, pause, type WaitOptions, withDeadline } from './waits.js';

/** From "all VMs have gone" to the end of the agent's process. */
const SHUT_DOWN_TIMEOUT_MS = 10_000;
const SHUT_DOWN_POLL_MS = 20;

export interface BuildImageRequest {
  readonly name: string;
  /** Path of the image's file on this host. */
  readonly file: string;
  /** RAM, such as `256M`, in place of the file's. */
  readonly memory?: string | undefined;
  /** Build even when nothing changed. */
  readonly force?: boolean | undefined;
}

export interface BuildImageOptions extends WaitOptions {
  onProgress?: ((progress: BuildProgress) => void) | undefined;
}

export class Host {
  readonly stateFolder: string;
  readonly #transport: Transport;

  /** @internal by `connect()` only */
  constructor(transport: Transport, stateFolder: string) {
    this.#transport = transport;
    this.stateFolder = stateFolder;
  }

  /** The agent's version, process, QEMU and accelerator. */
  async info(options: WaitOptions = {}): Promise<HostInfo> {
    return this.#get(['host'], hostInfoSchema, options);
  }

  /** Memory, warm pool and pager of the host; sizes in bytes. */
  async stats(options: WaitOptions = {}): Promise<HostStats> {
    return this.#get(['stats'], hostStatsSchema, options);
  }

  /** What the agent sees that keeps VMs from being forked, with the mend; `sf doctor` has more. */
  async doctor(options: WaitOptions = {}): Promise<DoctorReport> {
    return this.#get(['doctor'], doctorReportSchema, options);
  }

  /**
   * A new VM of an image: a clone of its snapshot, so there is no boot to wait for. Resolves when
   * it answers.
   *
   * @throws SnowforkError SF_IMAGE_NOT_FOUND, SF_NO_ROOM, SF_CLONE_FAILED, SF_INCOMPATIBLE.
   */
  async launch(image: string, { hosts, place, ...options }: CloneOptions = {}): Promise<Vm> {
    const json = { image, ...definedOf({ hosts, place }) };
    const info = await withDeadline(options, 'the launch', (signal) =>
      this.#transport.json({ method: 'POST', path: apiPath('vms'), json, signal }, vmSchema),
    );
    return new Vm(this.#transport, decodeVm(info));
  }

  /** Running VMs, oldest first; with `all` also those that ended lately. */
  async vms({ all = false, ...options }: WaitOptions & { all?: boolean } = {}): Promise<VmInfo[]> {
    const query = { all: all ? '1' : '0' };
    const { vms } = await this.#get(['vms'], vmListSchema, options, query);
    return vms.map(decodeVm);
  }

  /** Makes a cluster, with this host as the first. @throws SnowforkError SF_BAD_REQUEST. */
  async initCluster(request: ClusterInitRequest, options: WaitOptions = {}): Promise<ClusterInfo> {
    return await this.#post(['cluster'], request, clusterSchema, options);
  }

  /** Joins a cluster. @throws SnowforkError SF_BAD_REQUEST, SF_PERMISSION, SF_HOST_UNREACHABLE. */
  async joinCluster(request: ClusterJoinRequest, options: WaitOptions = {}): Promise<ClusterInfo> {
    return await this.#post(['cluster', 'join'], request, clusterSchema, options);
  }

  /** The cluster that this host is in. @throws SnowforkError SF_NO_CLUSTER. */
  async cluster(options: WaitOptions = {}): Promise<ClusterInfo> {
    return await this.#get(['cluster'], clusterSchema, options);
  }

  /** By which hosts may join, for `ttlMs` (an hour when not given). @throws SnowforkError. */
  async newToken({ ttlMs, ...options }: WaitOptions & { ttlMs?: number } = {}): Promise<JoinToken> {
    return await this.#post(['cluster', 'tokens'], definedOf({ ttlMs }), tokenSchema, options);
  }

  /** The hosts of the cluster, with their room. @throws SnowforkError SF_NO_CLUSTER. */
  async hosts(options: WaitOptions = {}): Promise<ClusterHost[]> {
    return (await this.#get(['hosts'], clusterHostListSchema, options)).hosts;
  }

  /** Takes a host out of the cluster; what it ran is lost. @throws SnowforkError SF_HOST_NOT_FOUND. */
  async removeHost(name: string, options: WaitOptions = {}): Promise<void> {
    const path = apiPath('hosts', name);
    await withDeadline(options, 'removing the host', (signal) =>
      this.#transport.send({ method: 'DELETE', path, signal }),
    );
  }

  /**
   * No clones are started on the host any more, and what other hosts need of it is brought to them.
   * @throws SnowforkError SF_HOST_NOT_FOUND.
   */
  async drainHost(name: string, options: WaitOptions = {}): Promise<void> {
    const path = apiPath('hosts', name, 'drain');
    await withDeadline(options, 'draining the host', (signal) =>
      this.#transport.send({ method: 'POST', path, signal }),
    );
  }

  /** The handle of a VM by its id. @throws SnowforkError SF_VM_NOT_FOUND. */
  async vm(id: string, options: WaitOptions = {}): Promise<Vm> {
    return new Vm(this.#transport, decodeVm(await this.#get(['vms', id], vmSchema, options)));
  }

  async images(options: WaitOptions = {}): Promise<ImageInfo[]> {
    return (await this.#get(['images'], imageListSchema, options)).images;
  }

  /**
   * Builds an image from its file, boots it once and keeps its snapshot. `unchanged` says that
   * there was nothing to do.
   *
   * @throws SnowforkError SF_IMAGE_BUILD_FAILED with the step and the end of its output,
   * SF_ABORTED; nothing half-made is left.
   */
  async buildImage(
    { name, file, memory, force }: BuildImageRequest,
    { onProgress, ...options }: BuildImageOptions = {},
  ): Promise<BuildResult> {
    const json = { name, file: resolve(file), memory, force };
    return withDeadline(options, 'the build', async (signal) => {
      const request = { method: 'POST', path: apiPath('images'), json, signal } as const;
      let result: BuildResult | undefined;
      for await (const { event, data } of await this.#transport.stream(request, ['done'])) {
        if (event === 'progress') onProgress?.(buildProgressSchema.parse(JSON.parse(data)));
        if (event === 'done') result = buildResultSchema.parse(JSON.parse(data));
      }
      return result!;
    });
  }

  /** @throws SnowforkError SF_IMAGE_NOT_FOUND, SF_SNAPSHOT_IN_USE. */
  async removeImage(name: string): Promise<void> {
    await this.#transport.send({ method: 'DELETE', path: apiPath('images', name) });
  }

  async snapshots(options: WaitOptions = {}): Promise<SnapshotInfo[]> {
    return (await this.#get(['snapshots'], snapshotListSchema, options)).snapshots;
  }

  /**
   * @throws SnowforkError SF_SNAPSHOT_NOT_FOUND, SF_SNAPSHOT_IN_USE with the users in `details`.
   */
  async removeSnapshot(id: string): Promise<void> {
    await this.#transport.send({ method: 'DELETE', path: apiPath('snapshots', id) });
  }

  /**
   * `clones` (1 to 256) VMs of a kept snapshot, any number of times, whether or not the VM that was
   * frozen still runs. Resolves when each answers or has failed.
   *
   * @throws SnowforkError SF_BAD_REQUEST, SF_SNAPSHOT_NOT_FOUND, SF_NO_ROOM, SF_ABORTED,
   * SF_TIMEOUT.
   */
  async createClones(
    snapshot: string | { readonly id: string },
    clones: number,
    options: CloneOptions = {},
  ): Promise<ClonesResult> {
    const id = typeof snapshot === 'string' ? snapshot : snapshot.id;
    const path = ['snapshots', id, 'clones'];
    const result = await requestClones(this.#transport, path, clones, options);
    return settleClones(this.#transport, result);
  }

  /**
   * Waits until every clone of a ticket has settled: `exited` with its value, or `lost` with the
   * reason. With `timeoutMs` it resolves then, those that still run being `running`. It outlasts the
   * agent: one that is killed leaves the answer to the next, which is started for it.
   *
   * @throws SnowforkError SF_TICKET_NOT_FOUND, SF_ABORTED.
   */
  async join(
    ticket: string | { readonly id: string },
    { signal, timeoutMs }: WaitOptions = {},
  ): Promise<Slot[]> {
    const id = typeof ticket === 'string' ? ticket : ticket.id;
    const request = (passedMs: number) => {
      const json = timeoutMs === undefined ? {} : { timeoutMs: Math.max(0, timeoutMs - passedMs) };
      return { method: 'POST', path: apiPath('tickets', id, 'join'), json, signal } as const;
    };
    const { slots } = await this.#transport.outlastingJson(request, joinResultSchema);
    return slots.map((slot) =>
      slot.status === 'exited' ? { ...slot, value: valueFromJson(slot.value) } : slot,
    );
  }

  /** Kills all clones of a ticket. @throws SnowforkError SF_TICKET_NOT_FOUND. */
  async killTicket(ticket: string | { readonly id: string }): Promise<void> {
    const id = typeof ticket === 'string' ? ticket : ticket.id;
    await this.#transport.send({ method: 'DELETE', path: apiPath('tickets', id) });
  }

  /**
   * What changes from now on, as kind (`vm`, `snapshot`, `ticket`) and id. The kind `dropped` says
   * that the reader was too slow and has to read everything again. `onReady` is called once, when
   * nothing more will be missed.
   */
  async *watch(
    options: { signal?: AbortSignal; onReady?: () => void } = {},
  ): AsyncGenerator<WatchEvent, void, undefined> {
    const { signal, onReady } = options;
    const request = { method: 'GET', path: apiPath('events'), signal } as const;
    for await (const { event, data } of await this.#transport.stream(request, [])) {
      if (event === 'ready') onReady?.();
      if (event === 'change') yield watchEventSchema.parse(JSON.parse(data));
      if (event === 'dropped') yield { kind: 'dropped', id: '' };
    }
  }

  /**
   * Ends all VMs of the host and the agent itself; resolves when its process has gone.
   *
   * @throws SnowforkError SF_TIMEOUT when VMs have ended but the agent has not after 10 s.
   */
  async shutDown(options: WaitOptions = {}): Promise<void> {
    const { pid } = await this.info(options);
    await withDeadline(options, 'the shut-down', async (signal) => {
      try {
        await this.#transport.send({ method: 'DELETE', path: apiPath('host'), signal });
      } catch (error) {
        // The agent may be gone before its answer is read.
        if (signal.aborted || isRunning(pid)) throw error;
      }
      const deadline = Date.now() + SHUT_DOWN_TIMEOUT_MS;
      while (isRunning(pid)) {
        if (Date.now() > deadline) {
          const seconds = SHUT_DOWN_TIMEOUT_MS / 1000;
          const message = `the agent (process ${pid}) has not ended within ${seconds} s`;
          throw new SnowforkError('SF_TIMEOUT', message);
        }
        await pause(SHUT_DOWN_POLL_MS, signal);
      }
    });
  }

  /** Ends the connection; VMs go on. What waits rejects with SF_ABORTED. */
  async close(): Promise<void> {
    await this.#transport.close();
  }

  /** `close()`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #post<S extends z.ZodType>(
    path: readonly string[],
    json: object,
    schema: S,
    options: WaitOptions,
  ): Promise<z.output<S>> {
    return withDeadline(options, 'the answer', (signal) =>
      this.#transport.json({ method: 'POST', path: apiPath(...path), json, signal }, schema),
    );
  }

  async #get<S extends z.ZodType>(
    path: readonly string[],
    schema: S,
    options: WaitOptions,
    query: Record<string, string> = {},
  ): Promise<z.output<S>> {
    return withDeadline(options, 'the answer', (signal) =>
      this.#transport.json({ method: 'GET', path: apiPath(...path), query, signal }, schema),
    );
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
