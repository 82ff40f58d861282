// From a snapshot to a running clone, in two steps: `connectClone` while the snapshot may still be in
// the making, `runClone` when it is complete. A clone that does not come up whole is ended: it is
// never handed out. Called by `families.ts`.

import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import { SnowforkError } from '@snowfork/sdk/api';
import { type ChannelHandlers, GuestChannel } from '../guest/channel.js';
import { synthesiseStream, virtualClockMs } from '../hypervisor/device-stream.js';
import type { SnapshotStore } from '../store/snapshots.js';
import type { Vm } from './vm.js';

/** Fresh bytes from the host for the guest's random generator. */
export const ENTROPY_BYTES = 64;

/** Connects console and port before the guest runs, so that no byte of either is lost. */
export async function connectClone(
  vm: Vm,
  handlers: ChannelHandlers,
  timeoutMs: number,
): Promise<void> {
  const [channel] = await Promise.all([
    GuestChannel.connect(vm.qemu.files.port, handlers, { frozen: true, timeoutMs }),
    vm.openConsole(),
  ]);
  vm.channel = channel;
}

export interface CloneStart {
  readonly store: SnapshotStore;
  /** Responses for the programs that the clone inherits; they get them when its identity is its own. */
  readonly answers: Buffer[];
  /** When the fork was asked for, by `performance.now()`. */
  readonly calledAt: number;
  readonly startedMs: number;
  readonly warm: boolean;
  readonly signal: AbortSignal;
}

/** @throws SnowforkError SF_CLONE_FAILED with the reason; the clone has ended then. */
export async function runClone(vm: Vm, start: CloneStart): Promise<void> {
  const since = () => performance.now() - start.calledAt;
  const { startedMs, warm, signal } = start;
  vm.calledAt = start.calledAt;
  try {
    const deviceState = fs.readFileSync(start.store.deviceState(vm.base));
    const stream = synthesiseStream(deviceState, vm.machine.machineType);
    const { loadedAt, resumed } = await vm.qemu.loadState(stream, { resume: true, signal });
    const loadedMs = loadedAt - start.calledAt;
    const resumedMs = (resumed?.earliestMs ?? performance.now()) - start.calledAt;
    const { clock: reading } = vm.base.file.guest;
    // Since its processors run, its clock goes on from where the snapshot's stood.
    const virtualMs = virtualClockMs(deviceState);
    if (resumed) vm.channel!.clock.start(resumed, { reading, virtualMs });
    const facts = {
      fork: vm.id,
      role: 'clone',
      id: vm.cloneId,
      hostname: vm.id,
      entropy: randomBytes(ENTROPY_BYTES),
    } as const;
    vm.times = { startedMs, loadedMs, resumedMs, answeredMs: 0, warm };
    // Its processors run; until the repair is done the channel lets nobody in.
    vm.hasStarted();
    await vm.channel!.resume(facts, signal, start.answers);
    vm.times = { ...vm.times, answeredMs: since() };
    vm.assertAlive();
  } catch (cause) {
    const error = SnowforkError.from(cause, 'SF_CLONE_FAILED');
    vm.finish({ how: 'lost', reason: error.message });
    throw error;
  }
}
