// What the next agent must know when this one is killed: its VMs, its tickets and the values of their
// clones, a file each, and how far the numbers of its names have come. It lies on the disk, so that
// after a power cut it can also be said what was lost. It decides nothing; `vms/families.ts` writes
// what it would need to read, and reads it once, at the start.
//
//   journal/numbers.json           { vm, ticket, fork, snapshot }: the last ones used
//   journal/vm-<id>.json           VmRecord
//   journal/ticket-<id>.json       TicketRecord
//   journal/value-<ticket>-<clone> MessagePack, as the clone handed it over
//
// A record is its file's first line and is written in one call before the rest is cut off: whenever
// the agent is killed, the first line is either the old record or the new one.

import fs from 'node:fs';
import path from 'node:path';
import { cloneTimesSchema, machineSchema } from '@snowfork/sdk/api';
import { z } from 'zod';

const frozenSchema = z.object({
  fork: z.string(),
  snapshot: z.string(),
  /** RESPONSE frames in base64: when the snapshot is complete, and when it is not. */
  ifDone: z.string(),
  ifNot: z.string(),
});
/** A freeze that is under way, from before PREPARE until the guest has come back. */
export type FreezeRecord = z.infer<typeof frozenSchema>;

export const standingSchema = z.object({
  /** Forks between it and the VM that was launched. */
  generation: z.int(),
  /** How many clones its family had made on tickets of its home when it was made, with it. */
  ordinal: z.int(),
  /** When its family began, in milliseconds since the epoch. */
  since: z.number(),
});
/** What the limits of a family need to know of a VM, whatever becomes of the others. */
export type Standing = z.infer<typeof standingSchema>;

const vmRecordSchema = z.object({
  id: z.string(),
  descent: z.object({
    image: z.string(),
    parent: z.string().exactOptional(),
    family: z.string().exactOptional(),
    cloneId: z.number().int().exactOptional(),
    ticket: z.string().exactOptional(),
    launched: z.boolean().exactOptional(),
    standing: standingSchema.exactOptional(),
  }),
  base: z.string(),
  newest: z.string(),
  machine: machineSchema,
  qemu: z.object({ pid: z.number().int(), startTime: z.string(), folder: z.string() }),
  state: z.enum(['starting', 'frozen', 'running', 'ended']),
  startedAt: z.number(),
  times: cloneTimesSchema.exactOptional(),
  /** The connection of the program that the clone belongs to. */
  owner: z.number().exactOptional(),
  freeze: frozenSchema.exactOptional(),
  endedAt: z.number().exactOptional(),
  end: z
    .discriminatedUnion('how', [
      z.object({ how: z.literal('exited') }),
      z.object({ how: z.literal('killed'), reason: z.string() }),
      z.object({ how: z.literal('lost'), reason: z.string() }),
    ])
    .exactOptional(),
});
export type VmRecord = z.infer<typeof vmRecordSchema>;

const ticketRecordSchema = z.object({
  id: z.string(),
  vm: z.string().exactOptional(),
  family: z.string().exactOptional(),
  /** The host whose ticket this is a part of. */
  home: z.string().exactOptional(),
  /** The room of one slot. */
  bytesEach: z.number().positive().exactOptional(),
  /** How many clones its family had made, with its own; once it is used. */
  ordinal: z.int().exactOptional(),
  asked: z.number().int(),
  createdAt: z.number(),
  reason: z.string().exactOptional(),
  used: z.boolean(),
  killed: z.boolean(),
  slots: z.array(
    z.object({
      cloneId: z.number().int(),
      vm: z.string().exactOptional(),
      /** Another host, whose VM fills it. */
      host: z.string().exactOptional(),
      /** Of a part: home has heard how it settled. */
      isTold: z.boolean().exactOptional(),
      status: z.enum(['running', 'exited', 'lost']),
      reason: z.string().exactOptional(),
    }),
  ),
});
export type TicketRecord = z.infer<typeof ticketRecordSchema>;

/** What a host calls its VMs, snapshots and tickets: `vm5`, and `vm5-alpha` in a cluster. */
export function hostId(prefix: string, number: number, hostName: string | undefined): string {
  return hostName === undefined ? `${prefix}${number}` : `${prefix}${number}-${hostName}`;
}

/** The host that gave an id. */
export function hostOf(id: string): string | undefined {
  return /^[a-z]+\d+-(.+)$/.exec(id)?.[1];
}

const numbersSchema = z.object({
  vm: z.int(),
  ticket: z.int(),
  fork: z.int(),
  snapshot: z.int().default(0),
});
type Numbers = z.infer<typeof numbersSchema>;

const NUMBERS_FILE = 'numbers.json';
const SCHEMAS = { vm: vmRecordSchema, ticket: ticketRecordSchema } as const;

export class Journal {
  readonly #folder: string;
  readonly #complain: (error: unknown) => void;
  #numbers: Numbers = { vm: 0, ticket: 0, fork: 0, snapshot: 0 };

  /** This host's name in its cluster, when it is in one: part of the ids that it gives. */
  hostName: () => string | undefined = () => undefined;

  /** `complain`: a record could not be written, such as on a full disk; the agent goes on. */
  constructor(folder: string, complain: (error: unknown) => void) {
    this.#folder = folder;
    this.#complain = complain;
    fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
    const numbers = numbersSchema.safeParse(this.#readLine(NUMBERS_FILE));
    if (numbers.success) this.#numbers = numbers.data;
  }

  /** The next number of a kind, over `above`: never given twice, not by later agents either. */
  next(kind: keyof Numbers, above = 0): number {
    this.#numbers[kind] = Math.max(this.#numbers[kind], above) + 1;
    this.#write(NUMBERS_FILE, this.#numbers);
    return this.#numbers[kind];
  }

  /** An id that no other host of the cluster gives. */
  newId(kind: 'vm' | 'ticket'): string {
    return hostId(kind === 'vm' ? 'vm' : 't', this.next(kind), this.hostName());
  }

  putVm(record: VmRecord): void {
    this.#write(`vm-${record.id}.json`, record);
  }

  putTicket(record: TicketRecord): void {
    this.#write(`ticket-${record.id}.json`, record);
  }

  /** Before the ticket that says that there is one. */
  putValue(ticket: string, cloneId: number, value: Buffer): void {
    try {
      fs.writeFileSync(this.#valuePath(ticket, cloneId), value, { mode: 0o600 });
    } catch (error) {
      this.#complain(error);
    }
  }

  /** Undefined when it was never written, or not whole. */
  readValue(ticket: string, cloneId: number): Buffer | undefined {
    try {
      return fs.readFileSync(this.#valuePath(ticket, cloneId));
    } catch {
      return undefined;
    }
  }

  forgetVm(id: string): void {
    fs.rmSync(this.#path(`vm-${id}.json`), { force: true });
  }

  forgetTicket(id: string, cloneIds: readonly number[]): void {
    for (const cloneId of cloneIds) {
      fs.rmSync(this.#valuePath(id, cloneId), { force: true });
    }
    fs.rmSync(this.#path(`ticket-${id}.json`), { force: true });
  }

  /** What the agent before this one left, the oldest first; what can't be understood is complained of. */
  read(): { vms: VmRecord[]; tickets: TicketRecord[] } {
    return { vms: this.#readAll('vm'), tickets: this.#readAll('ticket') };
  }

  /** Nothing of what was read is true any more. */
  clear(): void {
    for (const name of fs.readdirSync(this.#folder)) {
      if (name !== NUMBERS_FILE) fs.rmSync(this.#path(name), { force: true });
    }
  }

  #readAll<K extends keyof typeof SCHEMAS>(kind: K): z.infer<(typeof SCHEMAS)[K]>[] {
    const records: { id: string }[] = [];
    for (const name of fs.readdirSync(this.#folder)) {
      if (!name.startsWith(`${kind}-`)) continue;
      const record = SCHEMAS[kind].safeParse(this.#readLine(name));
      if (record.success) records.push(record.data);
      else this.#complain(new Error(`${name} is not understood`, { cause: record.error }));
    }
    const number = ({ id }: { id: string }) => Number.parseInt(id.replace(/^\D+/, ''), 10);
    return records.sort((a, b) => number(a) - number(b)) as z.infer<(typeof SCHEMAS)[K]>[];
  }

  #readLine(name: string): unknown {
    try {
      const text = fs.readFileSync(this.#path(name), 'utf8');
      return JSON.parse(text.slice(0, text.indexOf('\n')));
    } catch {
      return undefined;
    }
  }

  #write(name: string, record: object): void {
    try {
      const line = Buffer.from(`${JSON.stringify(record)}\n`);
      const file = fs.openSync(
        this.#path(name),
        fs.constants.O_WRONLY | fs.constants.O_CREAT,
        0o600,
      );
      try {
        fs.writeSync(file, line, 0, line.length, 0);
        fs.ftruncateSync(file, line.length);
      } finally {
        fs.closeSync(file);
      }
    } catch (error) {
      this.#complain(error);
    }
  }

  #valuePath(ticket: string, cloneId: number): string {
    return this.#path(`value-${ticket}-${cloneId}`);
  }

  #path(name: string): string {
    return path.join(this.#folder, name);
  }
}
