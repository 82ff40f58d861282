// How many more VMs this host can hold without ever running out of memory: what is available now,
// less what every running VM and every reserved slot may still grow by. Asked before anything is
// started; it refuses, it never waits.

import fs from 'node:fs';
import type { Machine } from '@snowfork/sdk/api';
import type { Settings } from '../settings.js';

const MiB = 1024 * 1024;
/** What a QEMU takes beside the guest's RAM: itself, and under TCG its translated code. */
const QEMU_BYTES = { tcg: 112 * MiB, kvm: 40 * MiB } as const;

/** The most that a VM can come to occupy. */
export function commitBytes(machine: Machine): number {
  return machine.memoryBytes + QEMU_BYTES[machine.accelerator];
}

export interface Occupant {
  readonly pid: number | undefined;
  readonly machine: Machine;
}

/** Slots that nobody else gets; each is handed back once, when its VM has started or failed. */
export interface Reservation {
  readonly granted: number;
  /** Why fewer than asked. */
  readonly reason?: string;
  release(slots: number): void;
}

type RoomSettings = Pick<Settings, 'reservedBytes' | 'vmsMax'>;

export class Room {
  readonly #settings: RoomSettings;
  readonly #occupants: () => Iterable<Occupant>;
  #reservedSlots = 0;
  #reservedBytes = 0;
  /** To tickets of other hosts. */
  #promised = new Map<string, { readonly slots: number; readonly bytesEach: number }>();

  constructor(settings: RoomSettings, occupants: () => Iterable<Occupant>) {
    this.#settings = settings;
    this.#occupants = occupants;
  }

  /** In bytes: what running VMs and reserved slots may still grow by, and what is left for new ones. */
  measure(): {
    totalBytes: number;
    availableBytes: number;
    promisedBytes: number;
    roomBytes: number;
  } {
    const { totalBytes, availableBytes } = readMemory();
    let promisedBytes = this.#reservedBytes;
    for (const { slots, bytesEach } of this.#promised.values()) promisedBytes += slots * bytesEach;
    for (const { pid, machine } of this.#occupants()) {
      promisedBytes += Math.max(
        0,
        commitBytes(machine) - (pid === undefined ? 0 : anonymousBytes(pid)),
      );
    }
    const roomBytes = Math.max(0, availableBytes - promisedBytes - this.#settings.reservedBytes);
    return { totalBytes, availableBytes, promisedBytes, roomBytes };
  }

  /** What tickets of other hosts were promised: it is kept for them. */
  promise(reservations: readonly { ticket: string; slots: number; bytesEach: number }[]): void {
    this.#promised = new Map(reservations.map((of) => [of.ticket, of]));
  }

  /** A ticket takes what it was promised: from now on it is as if it had not been. */
  takePromised(ticket: string): void {
    this.#promised.delete(ticket);
  }

  /** How many VMs more there may be, whatever memory there is. */
  get slots(): number {
    let running = [...this.#occupants()].length + this.#reservedSlots;
    for (const { slots } of this.#promised.values()) running += slots;
    return Math.max(0, this.#settings.vmsMax - running);
  }

  /** Room that was promised before this agent started. */
  hold(slots: number, machine: Machine): Reservation {
    const each = commitBytes(machine);
    this.#reservedSlots += slots;
    this.#reservedBytes += slots * each;
    return { granted: slots, release: this.#releaseOf(slots, each) };
  }

  /** Room for up to `asked` VMs of a machine, beside `extraBytes` that the caller is about to use. */
  reserve(asked: number, machine: Machine, extraBytes = 0): Reservation {
    const { roomBytes } = this.measure();
    const each = commitBytes(machine);
    const byMemory = Math.max(0, Math.floor((roomBytes - extraBytes) / each));
    const byNumber = this.slots;
    const granted = Math.min(asked, byMemory, byNumber);
    this.#reservedSlots += granted;
    this.#reservedBytes += granted * each;
    const release = this.#releaseOf(granted, each);
    if (granted === asked) return { granted, release };
    const reason =
      byMemory <= byNumber
        ? `memory for ${granted} of ${asked}: a VM of this image may take ${mebi(each)} MiB, ` +
          `${mebi(roomBytes)} MiB are left`
        : `this host runs at most ${this.#settings.vmsMax} VMs (setting vmsMax)`;
    return { granted, reason, release };
  }

  #releaseOf(granted: number, eachBytes: number): Reservation['release'] {
    let held = granted;
    return (slots) => {
      const returned = Math.min(slots, held);
      held -= returned;
      this.#reservedSlots -= returned;
      this.#reservedBytes -= returned * eachBytes;
    };
  }
}

/** Of slots that need no room any more, as they were filled or given up. */
export const NO_RESERVATION: Omit<Reservation, 'granted'> = { release: () => {} };

function mebi(bytes: number): number {
  return Math.floor(bytes / MiB);
}

function readMemory(): { totalBytes: number; availableBytes: number } {
  const text = fs.readFileSync('/proc/meminfo', 'utf8');
  const field = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1]) * 1024;
  return { totalBytes: field('MemTotal'), availableBytes: field('MemAvailable') };
}

/** Anonymous memory of a process; 0 when it has gone. */
export function anonymousBytes(pid: number): number {
  return residentBytes(pid).ownBytes;
}

/** Of a process, by one look at what the kernel counts; zeros when it has gone. */
export function residentBytes(pid: number): { ownBytes: number; sharedBytes: number } {
  try {
    const statm = fs.readFileSync(`/proc/${pid}/statm`, 'latin1').split(' ').map(Number);
    const [, resident, shared] = statm as [number, number, number];
    return { ownBytes: Math.max(0, resident - shared) * 4096, sharedBytes: shared * 4096 };
  } catch {
    return { ownBytes: 0, sharedBytes: 0 };
  }
}
