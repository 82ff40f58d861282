// Freezes one VM into a snapshot that was begun: asks the guest to be quiet, stops it, takes its
// device state and its memory, lets it go on. Whatever fails, the VM goes on unharmed and the
// snapshot is abandoned. Called by `families.ts`, one freeze of a VM at a time.

import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import { type FreezeTimes, SnowforkError } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { type MemoryFreeze, prepareFreeze } from '../freeze/freeze-memory.js';
import { layerFailure } from '../freeze/layer-stack.js';
import { findNoteLocation, type NoteLocation } from '../freeze/vmcoreinfo.js';
import { encodeResponse, type GuestChannel, type PendingRequest } from '../guest/channel.js';
import type { Moment } from '../guest/clock.js';
import { virtualClockMs } from '../hypervisor/device-stream.js';
import type { FreezeRecord } from '../store/journal.js';
import type { SnapshotFile } from '../store/snapshot-file.js';
import { ramObject, type Snapshot, type SnapshotStore } from '../store/snapshots.js';
import { anonymousBytes } from './room.js';
import { ENTROPY_BYTES } from './start-clone.js';
import type { Vm } from './vm.js';

/** For pages of other hosts, before the pause. */
const BRING_MS_MAX = 300;

export interface FreezeOptions {
  readonly store: SnapshotStore;
  readonly log: Logger;
  readonly forkId: string;
  /** The program that asked; it gets `parentAnswer` here, and its own answer in every clone. */
  readonly caller: { readonly request: PendingRequest; readonly detached: boolean } | undefined;
  readonly parentAnswer: unknown;
  readonly signal: AbortSignal;
  /** `vm.freeze` or `vm.newest` has changed: the next agent must know. */
  save(): void;
  /** The new layer may take this much. */
  readonly availableBytes: () => number;
  /** Pages that the guest has free read as zeros in its clones. */
  readonly leaveOutFreePages: boolean;
  /** The kernel tells what was written since the freeze before, and only that is copied. */
  readonly trackWrites: boolean;
}

export interface Freezing {
  readonly times: FreezeTimes;
}

/** The objects of a snapshot of a VM that was cloned from `base`: RAM of its own, the rest inherited. */
export function frozenObjects(base: Snapshot): SnapshotFile['objects'] {
  return base.file.objects.map((object) => {
    if (object.name === 'ram') return { ...ramObject(base), layers: [] };
    if ('from' in object) return object;
    const { name, sizeBytes } = object;
    return { name, sizeBytes, from: `${base.file.id}/${name}` };
  });
}

/**
 * @throws SnowforkError SF_GUEST_NOT_READY, SF_VM_GONE, SF_LAYERS_FULL, SF_NO_ROOM, SF_QEMU_FAILED,
 * SF_ABORTED; the snapshot is abandoned then and the VM goes on.
 */
export async function freezeVm(
  vm: Vm,
  snapshot: Snapshot,
  options: FreezeOptions,
): Promise<Freezing> {
  const { store } = options;
  const since = stopwatch();
  const letGo = hold(vm, options);
  try {
    const channel = vm.guest();
    assertRoomForLayer(vm, options.availableBytes());
    vm.freeze = freezeRecord(snapshot, options);
    options.save();
    const memory = await prepareBoth(vm, channel, snapshot, options);
    const prepareMs = since();
    const requests = guestState(channel.pendingRequests(), options.caller);
    try {
      const pause = await pauseAndCopy(vm, memory, options);
      const { deviceState, stopped, continued, pauseMs, parts } = pause;
      // A file of the agent's own: QEMU could change the one that it wrote.
      fs.writeFileSync(store.deviceState(snapshot), deviceState, { mode: 0o600 });
      const virtualMs = virtualClockMs(deviceState);
      const clock = channel.clock.whenStopped(stopped, virtualMs);
      if (continued) channel.clock.start(continued, { reading: clock, virtualMs });
      const guest = { ...requests, ...(clock === undefined ? {} : { clock }) };
      await completeSnapshot(vm, snapshot, { store, memory, guest });
      snapshot.freeze = { prepareMs, pauseMs, parts };
    } catch (error) {
      memory.abandon();
      channel.clock.forget();
      endQuiet(vm, 'failed', options);
      throw error;
    }
    endQuiet(vm, 'parent', options);
    return { times: snapshot.freeze };
  } catch (error) {
    vm.freeze = undefined;
    options.save();
    store.abandon(snapshot);
    const { code } = error as NodeJS.ErrnoException;
    throw code === 'ENOSPC' ? layerFailure(error) : SnowforkError.from(error);
  } finally {
    letGo();
  }
}

/** The new snapshot will refer to layers of these two, whatever happens to the VM meanwhile. */
function hold({ id, base, newest }: Vm, { store, forkId }: FreezeOptions): () => void {
  const holder = `freeze ${forkId} of ${id}`;
  for (const snapshot of [base, newest]) snapshot.holders.add(holder);
  return () => {
    for (const snapshot of [newest, base]) {
      snapshot.holders.delete(holder);
      store.collect(snapshot);
    }
  };
}

/** The guest becomes quiet while its writes come to be tracked, and its memory is looked through. */
async function prepareBoth(
  vm: Vm,
  channel: GuestChannel,
  snapshot: Snapshot,
  options: FreezeOptions,
): Promise<MemoryFreeze> {
  const quiet = channel.prepare(options.forkId, options.signal);
  quiet.catch(() => {});
  let memory: MemoryFreeze;
  try {
    await haveWritesTracked(vm, options);
    memory = beginMemory(vm, snapshot, options);
  } catch (error) {
    await quiet;
    endQuiet(vm, 'failed', options);
    throw error;
  }
  try {
    await bringAbsent(vm, memory, options);
    await quiet;
    return memory;
  } catch (error) {
    memory.abandon();
    throw error;
  }
}

async function haveWritesTracked(
  vm: Vm,
  { store, log, trackWrites }: FreezeOptions,
): Promise<void> {
  if (!trackWrites) return;
  const refusal = await vm.writes.start({ pid: vm.qemu.pid, ramPath: store.ramPath(vm.base) });
  if (refusal === undefined) return;
  log.info({ vm: vm.id, refusal }, 'its writes are not tracked: freezes copy all it ever wrote');
}

/**
 * What leads to the guest's free pages may lie on another host. It is brought while the VM still runs,
 * for as long as that does not hold up the fork: what is not here in the pause is not looked at.
 */
async function bringAbsent(vm: Vm, memory: MemoryFreeze, options: FreezeOptions): Promise<void> {
  const { store, log } = options;
  const since = stopwatch();
  try {
    while (memory.absentPages.length > 0 && since() < BRING_MS_MAX) {
      const wanted = memory.absentPages;
      await store.bring(vm.base, wanted);
      memory.searchAgain();
      if (memory.absentPages.some((page) => wanted.includes(page))) return;
    }
  } catch (error) {
    // Whatever it is, the pause goes without, or meets it again.
    log.warn({ vm: vm.id, err: error }, 'pages that lead to the free ones did not come');
  }
}

function beginMemory(
  vm: Vm,
  snapshot: Snapshot,
  { store, leaveOutFreePages, trackWrites }: FreezeOptions,
): MemoryFreeze {
  const { base, newest } = vm;
  return prepareFreeze({
    pid: vm.qemu.pid,
    ramPath: store.ramPath(base),
    base: store.memory(base),
    last: store.memory(newest),
    newLayer: store.newLayer(snapshot.persistent),
    writes: trackWrites ? { tracker: vm.writes, last: newest.file.id } : undefined,
    note: leaveOutFreePages ? noteOf(newest, store) : undefined,
  });
}

/** Where the guest had its VMCOREINFO lately, to look through its free lists before the pause. */
function noteOf(newest: Snapshot, store: SnapshotStore): NoteLocation | undefined {
  const deviceState = store.deviceState(newest);
  // The empty snapshot, from which an image is booted, has none.
  return fs.existsSync(deviceState) ? findNoteLocation(fs.readFileSync(deviceState)) : undefined;
}

/** The pause. The guest is quiet already; the VM runs again when this returns or throws. */
async function pauseAndCopy(
  vm: Vm,
  memory: MemoryFreeze,
  { leaveOutFreePages }: FreezeOptions,
): Promise<Pause> {
  const since = stopwatch();
  const parts: Record<string, number> = {};
  let stopped: Moment;
  let continued: Moment | undefined;
  let deviceState: Buffer;
  vm.state = 'frozen';
  try {
    // One round trip: QEMU reads its commands in order.
    const commands = [vm.qemu.pause(), vm.qemu.saveDeviceState()] as const;
    [stopped, deviceState] = await Promise.all(commands);
    parts.deviceState = since();
    memory.run(leaveOutFreePages ? findNoteLocation(deviceState) : undefined);
    parts.memory = since() - parts.deviceState;
  } finally {
    // Also after a failure: the parent must not be harmed by a fork that did not come off.
    if (vm.end === undefined) continued = await resumeOrLose(vm);
  }
  const pauseMs = since();
  parts.cont = pauseMs - parts.deviceState! - parts.memory!;
  return { deviceState, stopped, continued, pauseMs, parts };
}

interface Pause {
  readonly deviceState: Buffer;
  readonly stopped: Moment;
  /** Undefined when it has ended meanwhile. */
  readonly continued: Moment | undefined;
  readonly pauseMs: number;
  readonly parts: Record<string, number>;
}

async function resumeOrLose(vm: Vm): Promise<Moment | undefined> {
  try {
    const continued = await vm.qemu.resume();
    vm.state = 'running';
    return continued;
  } catch (cause) {
    vm.finish({ how: 'lost', reason: `it could not go on after a freeze: ${String(cause)}` });
    return undefined;
  }
}

/**
 * The parent's programs go on: after a fork with their answer, and with renewed what the clones have
 * a copy of; after one that failed as if nothing had been. Nobody waits for it.
 */
function endQuiet(vm: Vm, role: 'parent' | 'failed', options: FreezeOptions): void {
  const { caller, forkId, parentAnswer, log, save } = options;
  const answers: Buffer[] = [];
  if (role === 'parent' && caller !== undefined) {
    answers.push(encodeResponse(caller.request, { result: parentAnswer }));
    vm.channel?.forget(caller.request);
  }
  const entropy = randomBytes(ENTROPY_BYTES);
  const facts = { fork: forkId, role, id: 0, hostname: vm.id, entropy };
  const back = vm.channel?.resume(facts, NEVER, answers) ?? Promise.resolve();
  back.then(
    () => {
      if (vm.freeze?.fork !== forkId) return;
      vm.freeze = undefined;
      if (vm.end === undefined) save();
    },
    (error: unknown) => {
      if (vm.end !== undefined) return;
      log.error({ vm: vm.id, err: error }, 'the guest side did not come back from a freeze');
      vm.logs.push(Buffer.from(`snowfork: ${String(error)}\n`));
    },
  );
}

/** What the caller is to be told by an agent that finds the freeze done, or not. */
function freezeRecord(snapshot: Snapshot, options: FreezeOptions): FreezeRecord {
  const { forkId, caller, parentAnswer } = options;
  const encoded = (answer: Parameters<typeof encodeResponse>[1]) =>
    caller === undefined ? '' : encodeResponse(caller.request, answer).toString('base64');
  return {
    fork: forkId,
    snapshot: snapshot.file.id,
    ifDone: encoded({ result: parentAnswer }),
    ifNot: encoded({ error: new SnowforkError('SF_CLONE_FAILED', AGENT_DIED) }),
  };
}

const AGENT_DIED =
  "the host's agent died while this VM was being frozen, and nothing came of it: ask again";

async function completeSnapshot(
  vm: Vm,
  snapshot: Snapshot,
  from: { store: SnapshotStore; memory: MemoryFreeze; guest: SnapshotFile['guest'] },
): Promise<void> {
  const { store, memory, guest } = from;
  const frozen = await memory.finish();
  await store.complete(snapshot, {
    map: frozen.map,
    layers: frozen.layers.map((layer) => layer.id),
    pages: frozen.counts,
    layerBytes: frozen.storedBytes,
    deviceStateBytes: fs.statSync(store.deviceState(snapshot)).size,
    guest,
    like: [vm.base.file.id, vm.newest.file.id],
  });
  // It will not be frozen again.
  if (vm.end !== undefined) return;
  const older = vm.newest;
  vm.newest = snapshot;
  memory.confirm(snapshot.file.id);
  snapshot.holders.add(`newest of ${vm.id}`);
  if (older !== vm.base) {
    older.holders.delete(`newest of ${vm.id}`);
    store.collect(older);
  }
}

/** What clones must know of the programs' requests: the caller's apart, as it succeeds in them. */
function guestState(
  pending: PendingRequest[],
  caller: FreezeOptions['caller'],
): SnapshotFile['guest'] {
  if (caller === undefined) return { pending };
  const { stream, id, method } = caller.request;
  return {
    caller: { stream, id, method, detached: caller.detached },
    pending: pending.filter((request) => request.stream !== stream || request.id !== id),
  };
}

/** @throws SnowforkError SF_NO_ROOM: the layer could take as much as the VM has of its own. */
function assertRoomForLayer(vm: Vm, availableBytes: number): void {
  const layerBytesMax = anonymousBytes(vm.qemu.pid);
  if (layerBytesMax <= availableBytes) return;
  throw new SnowforkError(
    'SF_NO_ROOM',
    `freezing ${vm.id} may take ${layerBytesMax} bytes of memory, ${availableBytes} are left`,
  );
}

function stopwatch(): () => number {
  const startedAt = performance.now();
  return () => performance.now() - startedAt;
}

/** The parent's return is not bound to the caller's patience. */
const NEVER = new AbortController().signal;
