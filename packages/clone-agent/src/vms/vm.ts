// One VM: its QEMU, its channel, its console, and how it ends. It takes part in forks and decides
// none; `families.ts` owns it. A VM ends once, whatever the reason, and gives back all that it held.

import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import type { CloneTimes, End, Machine, VmInfo, VmStats } from '@snowfork/sdk/api';
import { SnowforkError } from '@snowfork/sdk/api';
import { WriteTracker } from '../freeze/write-tracker.js';
import { RingFeed } from '../guest/byte-feed.js';
import type { GuestChannel } from '../guest/channel.js';
import { withResolvers } from '../guest/exec.js';
import { type QemuExit, QemuProcess } from '../hypervisor/qemu.js';
import { lostFile } from '../pager/snapshot-file.js';
import { type FreezeRecord, hostOf, type Standing, type VmRecord } from '../store/journal.js';
import { goneSnapshot, type Snapshot } from '../store/snapshots.js';

/** Bytes of a VM's console, and of its log, that are kept. */
const FEED_BYTES_MAX = 256 * 1024;
/** The same when many others have ended since. */
const LAST_WORDS_BYTES = 4096;

const DISK_ERROR = 'its disk could not be read';

/** Where a VM comes from, and whose it is. */
export interface Descent {
  readonly image: string;
  readonly parent?: string;
  /** First VM of the family; a launched VM's is its own. */
  readonly family?: string;
  /** With `ticket`: which of its slots this VM fills. */
  readonly cloneId?: number;
  readonly ticket?: string;
  /** Nobody's clone: its ticket is an affair of the agent's own. */
  readonly launched?: boolean;
  readonly standing?: Standing;
}

export type RawEnd =
  | { readonly how: 'exited'; readonly value: Buffer }
  | Exclude<End, { how: 'exited' }>;

/** Who hears of a VM's end. */
export interface VmEnds {
  /** Its process has a moment left. */
  ending?(vm: Vm): void;
  /** All that it held was given back. */
  ended(vm: Vm): void;
}

export class Vm {
  readonly id: string;
  readonly descent: Descent;
  /** What QEMU's RAM is mapped from. */
  readonly base: Snapshot;
  /** The newest snapshot frozen from this VM; `base` at first. */
  newest: Snapshot;
  /** What it wrote since that. */
  readonly writes = new WriteTracker();
  readonly qemu: QemuProcess;
  channel: GuestChannel | undefined;
  readonly console = new RingFeed(FEED_BYTES_MAX);
  readonly logs = new RingFeed(FEED_BYTES_MAX);
  state: VmInfo['state'] = 'starting';
  times: CloneTimes | undefined;
  /** When whoever wanted it asked, by `performance.now()`. */
  calledAt = performance.now();
  /** The connection of the program that this clone belongs to; its end is the clone's end. */
  owner: number | undefined;
  /** What the next agent must do if this one dies within a freeze. */
  freeze: FreezeRecord | undefined;
  readonly startedAt: number;
  endedAt: number | undefined;
  end: RawEnd | undefined;
  lastStats: VmStats | undefined;
  /** Its program has said goodbye; the end is a moment away. */
  exiting = false;
  readonly #started = withResolvers<void>();
  readonly #ended = withResolvers<RawEnd>();
  readonly #ends: VmEnds;
  #consoleSocket: net.Socket | undefined;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(
    id: string,
    descent: Descent,
    base: Snapshot,
    qemu: QemuProcess,
    ends: VmEnds,
    past: { startedAt: number; end?: RawEnd } = { startedAt: Date.now() },
  ) {
    this.id = id;
    this.descent = descent;
    this.base = base;
    this.newest = base;
    this.qemu = qemu;
    this.#ends = ends;
    this.startedAt = past.startedAt;
    if (past.end !== undefined) {
      this.end = past.end;
      this.state = 'ended';
      this.#started.resolve();
      this.#ended.resolve(past.end);
      return;
    }
    base.users.add(id);
    void qemu.exited.then((exit) => {
      this.finish({ how: 'lost', reason: takeLostPage(base, qemu.pid) ?? describeExit(exit) });
    });
    qemu.onDiskError(() => {
      this.finish({ how: 'lost', reason: takeLostPage(base, qemu.pid) ?? DISK_ERROR });
    });
  }

  /** One that an agent before this one started, as it wrote it down, and that runs. */
  static adopt(record: VmRecord, base: Snapshot, qemu: QemuProcess, ends: VmEnds): Vm {
    const { startedAt } = record;
    const vm = new Vm(record.id, record.descent, base, qemu, ends, { startedAt });
    vm.hasStarted();
    vm.times = record.times;
    vm.owner = record.owner;
    vm.freeze = record.freeze;
    return vm;
  }

  /** One that has ended, to be listed and waited for. */
  static past(record: VmRecord, end: RawEnd): Vm {
    const base = goneSnapshot(record.base, record.machine);
    const { startedAt } = record;
    const past = { startedAt, end };
    const vm = new Vm(record.id, record.descent, base, QemuProcess.gone(), { ended() {} }, past);
    vm.endedAt = record.endedAt ?? Date.now();
    vm.times = record.times;
    return vm;
  }

  /** What the next agent must know to adopt it. */
  record(): VmRecord {
    const { id, descent, base, newest, machine, qemu, state, startedAt, times, owner } = this;
    const { freeze, endedAt, end } = this;
    const { pid, startTime, folder } = qemu;
    return {
      ...{ id, descent, base: base.file.id, newest: newest.file.id, machine, state, startedAt },
      qemu: { pid, startTime, folder: path.basename(folder) },
      ...(times === undefined ? {} : { times }),
      ...(owner === undefined ? {} : { owner }),
      ...(freeze === undefined ? {} : { freeze }),
      ...(endedAt === undefined ? {} : { endedAt }),
      ...(end === undefined ? {} : { end: end.how === 'exited' ? { how: end.how } : end }),
    };
  }

  get machine(): Machine {
    return this.base.file.machine;
  }

  /** QEMU's process; undefined when the VM has ended. */
  get pid(): number | undefined {
    return this.end === undefined ? this.qemu.pid : undefined;
  }

  get family(): string {
    return this.descent.family ?? this.id;
  }

  /** Its id within its ticket; 0 for nobody's clone. */
  get cloneId(): number {
    const { launched, cloneId } = this.descent;
    return launched === true || cloneId === undefined ? 0 : cloneId;
  }

  /** Resolves when the VM is no longer starting, whatever became of it. */
  get started(): Promise<void> {
    return this.#started.promise;
  }

  /** Its processors run. */
  hasStarted(): void {
    this.state = 'running';
    this.#started.resolve();
  }

  /** Resolves when the VM has ended, whatever the reason. */
  get ended(): Promise<RawEnd> {
    return this.#ended.promise;
  }

  /** A program of the guest has asked for something; the first time after its start counts. */
  noteProgram(): void {
    if (this.times === undefined || this.times.programMs !== undefined) return;
    this.times = { ...this.times, programMs: performance.now() - this.calledAt };
  }

  info(): VmInfo {
    const { image, parent, ticket } = this.descent;
    const { cloneId } = this;
    const host = hostOf(this.id);
    return {
      id: this.id,
      image,
      ...(host === undefined ? {} : { host }),
      snapshot: this.base.file.id,
      ...(parent === undefined ? {} : { parent }),
      family: this.family,
      ...(cloneId === 0 || ticket === undefined ? {} : { cloneId, ticket }),
      state: this.state,
      ...(this.pid === undefined ? {} : { pid: this.pid }),
      startedAt: this.startedAt,
      ...(this.endedAt === undefined ? {} : { endedAt: this.endedAt }),
      ...(this.end === undefined ? {} : { end: publicEnd(this.end) }),
      machine: this.machine,
      ...(this.times === undefined ? {} : { times: this.times }),
      ...(this.lastStats === undefined ? {} : { lastStats: this.lastStats }),
    };
  }

  /** The channel of a VM whose guest can be asked. @throws SnowforkError SF_VM_GONE, SF_GUEST_NOT_READY. */
  guest(): GuestChannel {
    this.assertAlive();
    if (this.state === 'starting' || this.channel === undefined || !this.channel.usable) {
      throw new SnowforkError(
        'SF_GUEST_NOT_READY',
        `the guest side of ${this.id} does not answer (the VM is ${this.state}): see \`sf console ${this.id}\``,
      );
    }
    return this.channel;
  }

  /** @throws SnowforkError SF_VM_GONE. */
  assertAlive(): void {
    if (this.end === undefined) return;
    throw new SnowforkError('SF_VM_GONE', `${this.id} has ended: ${whyEnded(this.end)}`);
  }

  /** Connects the console; before the guest runs, so that nothing it prints is lost. */
  async openConsole(): Promise<void> {
    const socket = net.connect(this.qemu.files.console);
    const connected = withResolvers<void>();
    socket.once('connect', connected.resolve);
    socket.once('error', connected.reject);
    await connected.promise;
    socket.on('error', () => {});
    socket.on('data', (chunk) => this.console.push(chunk));
    socket.on('close', () => this.console.end());
    this.#consoleSocket = socket;
  }

  writeConsole(bytes: Uint8Array): void {
    this.assertAlive();
    this.#consoleSocket?.write(bytes);
  }

  /** Of what its console and its log said. */
  keepLastWords(): void {
    this.console.shrink(LAST_WORDS_BYTES);
    this.logs.shrink(LAST_WORDS_BYTES);
  }

  /** Runs `work` when all earlier works of this VM are over: freezes go one after another. */
  inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work);
    this.#turn = result.catch(() => {});
    return result;
  }

  /** The VM's end: QEMU is killed, everything it held is given back. Only the first call counts. */
  finish(end: RawEnd): void {
    if (this.end !== undefined) return;
    this.#ends.ending?.(this);
    this.end = end;
    this.state = 'ended';
    this.endedAt = Date.now();
    void this.qemu.kill();
    this.writes.end();
    this.channel?.close();
    // QEMU's end closes it, when the last words have been read: what a kernel says when it panics.
    if (this.#consoleSocket === undefined) this.console.end();
    this.logs.end();
    this.base.users.delete(this.id);
    this.#ends.ended(this);
    this.#started.resolve();
    this.#ended.resolve(end);
  }
}

function publicEnd(end: RawEnd): End {
  // The value itself is joined, not listed: it may be large.
  return end.how === 'exited' ? { how: 'exited', value: null } : end;
}

/** In a sentence that says that it has ended, or is lost. */
export function whyEnded(end: RawEnd): string {
  return end.how === 'exited' ? 'its program exited' : end.reason;
}

/**
 * Why a page did not come that a process which runs the snapshot read, when one did not. Taken away:
 * another process may have its id one day.
 */
function takeLostPage({ file, folder }: Snapshot, pid: number): string | undefined {
  // An object that is unchanged since an older snapshot is read as that one's.
  const owners = file.objects.map((object) =>
    'from' in object ? path.join(folder, '..', path.dirname(object.from)) : folder,
  );
  let reason: string | undefined;
  for (const owner of new Set(owners)) {
    const lost = path.join(owner, lostFile(pid));
    if (!fs.existsSync(lost)) continue;
    // Empty where there was no room for it.
    reason ??= fs.readFileSync(lost, 'utf8') || undefined;
    fs.rmSync(lost, { force: true });
  }
  return reason;
}

/** A guest that powers off or panics ends its QEMU in order; anything else is QEMU's own end. */
function describeExit({ code, signal, words }: QemuExit): string {
  if (code === 0) return 'the guest powered off, rebooted or panicked';
  // Nobody was there to be told how: it is not this agent's child.
  if (code === null && signal === null && words === '') return 'QEMU was killed or crashed';
  const how = signal === null ? `ended with code ${code}` : `was killed by ${signal}`;
  return words === '' ? `QEMU ${how}` : `QEMU ${how}: ${words}`;
}
