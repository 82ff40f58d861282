// Takes over the VMs of an agent that was killed: each is connected to, let go on if it was caught in
// a freeze, and told to ask again what it had asked. One that was not handed out yet, or that does not
// answer, is lost, and it is said why. Called by `families.ts`, once, before anything else goes on.

import { randomBytes } from 'node:crypto';
import { SnowforkError } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { type ChannelHandlers, encodeAgain } from '../guest/channel.js';
import type { QemuProcess } from '../hypervisor/qemu.js';
import type { VmRecord } from '../store/journal.js';
import type { Snapshot, SnapshotStore } from '../store/snapshots.js';
import { connectClone, ENTROPY_BYTES } from './start-clone.js';
import { KILLED_BY_TICKET, type Ticket } from './tickets.js';
import { type RawEnd, Vm, type VmEnds } from './vm.js';

const NOT_HANDED_OUT = 'the agent died while it was being started';
const ENDED_ALONE = 'it ended while no agent ran';

export interface AdoptionContext {
  readonly store: SnapshotStore;
  readonly log: Logger;
  /** @throws SnowforkError when it can't be spoken to; it was killed then. */
  adoptQemu(process: VmRecord['qemu'], snapshot: Snapshot): Promise<QemuProcess>;
  handlersFor(vm: Vm): ChannelHandlers;
  readonly guestTimeoutMs: number;
  readonly ends: VmEnds;
  save(vm: Vm): void;
  /** The ticket that a clone fills a slot of, if it is still known. */
  ticketOf(record: VmRecord): Ticket | undefined;
}

/** Never rejects: a VM that can't be adopted is one that has ended, with the reason. */
export async function adoptVm(record: VmRecord, context: AdoptionContext): Promise<Vm> {
  const end = pastEnd(record, context);
  if (end !== undefined) return Vm.past(record, end);
  const base = context.store.find(record.base);
  if (record.state === 'starting' || base === undefined) return lost(record, NOT_HANDED_OUT);
  try {
    return await takeOver(record, base, context);
  } catch (error) {
    return lost(record, SnowforkError.from(error).message);
  }
}

async function takeOver(record: VmRecord, base: Snapshot, context: AdoptionContext): Promise<Vm> {
  const qemu = await context.adoptQemu(record.qemu, base);
  if (qemu.exit !== undefined) return lost(record, ENDED_ALONE);
  try {
    await qemu.resumeIfPaused();
  } catch (error) {
    await qemu.kill();
    throw error;
  }
  const vm = Vm.adopt(record, base, qemu, context.ends);
  const newest = context.store.find(record.newest);
  if (newest !== undefined && newest !== base) {
    vm.newest = newest;
    newest.holders.add(`newest of ${vm.id}`);
  }
  try {
    await connectClone(vm, context.handlersFor(vm), context.guestTimeoutMs);
  } catch (error) {
    vm.finish({ how: 'lost', reason: `it could not be adopted: ${String(error)}` });
    return vm;
  }
  void comeBack(vm, context);
  return vm;
}

/**
 * The guest waits for a RESUME, whatever it was doing: it stands in a freeze, or has noticed that the
 * agent is gone. If the freeze came off, what its clones have a copy of is renewed in it.
 */
async function comeBack(vm: Vm, { store, log, save }: AdoptionContext): Promise<void> {
  const { freeze } = vm;
  const isDone = freeze !== undefined && store.find(freeze.snapshot) !== undefined;
  const answer = freeze === undefined ? '' : isDone ? freeze.ifDone : freeze.ifNot;
  const facts = {
    fork: freeze?.fork ?? `adopt-${vm.id}`,
    role: isDone ? 'parent' : 'failed',
    id: 0,
    hostname: vm.id,
    entropy: randomBytes(ENTROPY_BYTES),
  } as const;
  const frames = [Buffer.from(answer, 'base64'), encodeAgain(vm.owner)];
  try {
    await vm.channel!.resume(facts, NEVER, frames);
    vm.freeze = undefined;
    if (vm.end === undefined) save(vm);
  } catch (error) {
    if (vm.end !== undefined) return;
    log.error({ vm: vm.id, err: error }, 'the guest side of an adopted VM does not answer');
    vm.logs.push(Buffer.from(`snowfork: ${String(error)}\n`));
  }
}

function lost(record: VmRecord, reason: string): Vm {
  return Vm.past(record, { how: 'lost', reason });
}

/** Also of one that the agent could not end any more: what its ticket says is written first. */
function pastEnd(record: VmRecord, { ticketOf }: AdoptionContext): RawEnd | undefined {
  const { end, descent } = record;
  if (end !== undefined && end.how !== 'exited') return end;
  const ticket = ticketOf(record);
  const slot = ticket?.slot(descent.cloneId ?? 0);
  if (slot?.status === 'exited') return { how: 'exited', value: slot.value! };
  if (slot?.status === 'lost') return { how: 'lost', reason: slot.reason! };
  if (ticket?.killed === true) return KILLED_BY_TICKET;
  return end === undefined ? undefined : { how: 'exited', value: Buffer.of(NIL) };
}

/** MessagePack. */
const NIL = 0xc0;
/** How long the guest may take is the channel's affair. */
const NEVER = new AbortController().signal;
