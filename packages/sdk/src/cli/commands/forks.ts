// `sf fork`, `checkpoint`, `clone`, `join` and `sf snapshot …`. Called by `program.ts`.

import type { FreezeTimes, Slot } from '../../api/schemas.js';
import { valueToJson } from '../../api/value.js';
import type { CloneOptions, ClonesResult, SettledClone } from '../../host/vm.js';
import {
  type CommandSpec,
  EXIT_FAILED,
  EXIT_OK,
  type GroupSpec,
  type OptionSpec,
  parseSeconds,
} from '../command.js';
import { formatBytes, formatDuration, formatValue } from '../format.js';
import type { Output } from '../output.js';

/** As SF_CLONE_FAILED has it. */
const EXIT_CLONE_FAILED = 8;
const EXIT_TIMEOUT = 7;

const clonesOption: OptionSpec = {
  flags: '-n, --clones <number>',
  summary: 'how many, 1 to 256',
  parse: Number,
  default: 1,
};
/** In a cluster. */
export const placingOptions: readonly OptionSpec[] = [
  {
    flags: '--hosts <names>',
    summary: 'only on these hosts of the cluster, with commas between',
    parse: (text) => text.split(','),
  },
  {
    flags: '--place <how>',
    summary: 'spread: evenly over the hosts (the default); pack: on as few as possible',
  },
];
export function placingOf({ hosts, place }: Readonly<Record<string, unknown>>): CloneOptions {
  return { hosts: hosts as string[] | undefined, place: place as CloneOptions['place'] };
}
const cloneExits = [
  { code: '2', when: 'the number of clones is not a whole number from 1 to 256' },
  { code: '6', when: 'there is room for none' },
  { code: '8', when: 'a clone did not come up; the others run' },
];

const fork: CommandSpec = {
  syntax: 'fork <vm>',
  summary: 'fork a running VM; it goes on, and each clone goes on from the same moment',
  options: [clonesOption, ...placingOptions],
  examples: [
    { line: 'sf fork 7f3a -n 8', says: 'eight clones' },
    { line: 'sf fork 7f3a -n 8 --hosts alpha,beta', says: 'on two hosts of the cluster' },
    { line: 'sf fork 7f3a -n 8 --json', says: 'with the ticket, the snapshot and all times' },
  ],
  exits: cloneExits,
  async run({ output, interrupts, connect }, [id = ''], { clones, ...placing }) {
    const { signal } = interrupts;
    const vm = await (await connect()).vm(id, { signal });
    const result = await vm.fork(clones as number, { signal, ...placingOf(placing) });
    return printClones(output, result, result.freeze);
  },
};

const checkpoint: CommandSpec = {
  syntax: 'checkpoint <vm>',
  summary: 'freeze a running VM into a snapshot that is kept, and print its id; the VM goes on',
  examples: [
    { line: 'sf checkpoint 7f3a', says: 'for `sf clone`, now or later' },
    { line: 'snapshot=$(sf checkpoint 7f3a)', says: 'keep the id' },
  ],
  async run({ output, interrupts, connect }, [id = '']) {
    const { signal } = interrupts;
    const vm = await (await connect()).vm(id, { signal });
    const result = await vm.checkpoint({ signal });
    if (output.json) return output.document(result);
    output.line(result.snapshot.id);
    output.note(`the VM was paused for ${formatDuration(result.freeze.pauseMs)}`);
  },
};

const clone: CommandSpec = {
  syntax: 'clone <snapshot>',
  summary: 'make VMs of a checkpoint, any number of times',
  options: [clonesOption, ...placingOptions],
  examples: [{ line: 'sf clone 5d21 -n 3', says: 'three VMs, also after the frozen one has gone' }],
  exits: cloneExits,
  async run({ output, interrupts, connect }, [id = ''], { clones, ...placing }) {
    const host = await connect();
    const options = { signal: interrupts.signal, ...placingOf(placing) };
    const result = await host.createClones(id, clones as number, options);
    return printClones(output, result, undefined);
  },
};

const join: CommandSpec = {
  syntax: 'join <ticket>',
  summary: 'wait until all clones of a fork have ended and print what they handed over',
  options: [
    {
      flags: '--timeout <seconds>',
      summary: 'print what is there after this',
      parse: parseSeconds,
    },
  ],
  examples: [{ line: 'sf join 9c40 --timeout 60', says: 'wait at most a minute' }],
  exits: [
    { code: '1', when: 'a clone was lost' },
    { code: '7', when: 'some still run; all slots are printed nevertheless' },
  ],
  async run({ output, interrupts, connect }, [ticket = ''], { timeout }) {
    const host = await connect();
    const timeoutMs = timeout as number | undefined;
    const slots = await host.join(ticket, { signal: interrupts.signal, timeoutMs });
    if (output.json) output.document({ slots: slots.map(jsonSlot) });
    else output.table(['CLONE', 'VM', 'STATUS', 'RESULT'], slots.map(slotRow));
    if (slots.some(({ status }) => status === 'running')) return EXIT_TIMEOUT;
    return slots.some(({ status }) => status === 'lost') ? EXIT_FAILED : EXIT_OK;
  },
};

export const forkCommands = [fork, checkpoint, clone, join] as const;

const listSnapshots: CommandSpec = {
  syntax: 'ls',
  summary: 'list snapshots',
  examples: [{ line: 'sf snapshot ls', says: 'with their users and sizes' }],
  async run({ output, interrupts, connect }) {
    const snapshots = await (await connect()).snapshots({ signal: interrupts.signal });
    if (output.json) return output.document({ snapshots });
    output.table(
      ['ID', 'OF', 'PARENT', 'KEPT', 'USERS', 'LAYERS', 'OWN PAGES', 'AGE'],
      snapshots.map((snapshot) => [
        snapshot.id,
        snapshot.image === undefined ? (snapshot.vm ?? '-') : `image ${snapshot.image}`,
        snapshot.parent ?? '-',
        snapshot.kept ? 'yes' : 'no',
        String(snapshot.users.length),
        String(snapshot.layers),
        formatBytes(snapshot.layerBytes),
        formatDuration(Date.now() - snapshot.createdAt),
      ]),
    );
  },
};

const removeSnapshots: CommandSpec = {
  syntax: 'rm <snapshot...>',
  summary: 'delete checkpoints',
  examples: [{ line: 'sf snapshot rm 5d21', says: 'delete one that nobody needs' }],
  exits: [{ code: '5', when: 'VMs or newer snapshots need it; the message names them' }],
  async run({ output, connect }, ids) {
    const host = await connect();
    for (const id of ids) {
      await host.removeSnapshot(id);
      output.line(id);
    }
    if (output.json) output.document({ removed: ids });
  },
};

export const snapshotGroup: GroupSpec = {
  name: 'snapshot',
  summary: 'list and delete snapshots',
  commands: [listSnapshots, removeSnapshots],
};

function printClones(
  output: Output,
  result: ClonesResult,
  freeze: FreezeTimes | undefined,
): number {
  const { ticket, snapshot, clones } = result;
  const failed = clones.some(({ status }) => status === 'rejected');
  const exitCode = failed ? EXIT_CLONE_FAILED : EXIT_OK;
  if (output.json) {
    output.document({ ticket, snapshot, freeze, clones: clones.map(jsonClone) });
    return exitCode;
  }
  const pause = freeze === undefined ? '' : `, paused for ${formatDuration(freeze.pauseMs)}`;
  output.note(`ticket ${ticket.id}, snapshot ${snapshot.id}${pause}`);
  if (ticket.clones < ticket.asked) {
    output.note(
      `${ticket.clones} of ${ticket.asked} clones: ${ticket.reason ?? 'no room for more'}`,
    );
  }
  output.table(['CLONE', 'VM', 'RESUMED', 'ANSWERED', ''], clones.map(cloneRow));
  return exitCode;
}

function cloneRow(clone: SettledClone): string[] {
  if (clone.status === 'rejected') {
    return [String(clone.cloneId), '-', '-', '-', `${clone.reason.message} (${clone.reason.code})`];
  }
  const { id, initialInfo } = clone.value;
  const { times } = initialInfo;
  if (times === undefined) return [String(clone.cloneId), id, '-', '-', ''];
  const { resumedMs, answeredMs, warm } = times;
  const duration = [formatDuration(resumedMs), formatDuration(answeredMs)];
  return [String(clone.cloneId), id, ...duration, warm ? 'from the warm pool' : ''];
}

function jsonClone(clone: SettledClone): unknown {
  const { status, cloneId } = clone;
  if (clone.status === 'fulfilled') return { status, cloneId, vm: clone.value.initialInfo };
  return { status, cloneId, error: clone.reason.toJSON() };
}

function jsonSlot(slot: Slot): unknown {
  return slot.status === 'exited' ? { ...slot, value: valueToJson(slot.value) } : slot;
}

function slotRow(slot: Slot): string[] {
  const result = { running: '', exited: '', lost: '' };
  if (slot.status === 'exited') result.exited = formatValue(slot.value);
  if (slot.status === 'lost') result.lost = slot.reason;
  return [String(slot.cloneId), slot.vm ?? '-', slot.status, result[slot.status]];
}
