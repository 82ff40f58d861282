// Every operation of the agent's API as data: route, what goes in, what comes out. `openapi.ts` makes
// the OpenAPI document of it; a test holds it against the routes. It decides nothing at run time.

import {
  apiErrorSchema,
  buildProgressSchema,
  buildRequestSchema,
  buildResultSchema,
  checkpointResultSchema,
  doctorReportSchema,
  endSchema,
  execExitSchema,
  execRequestSchema,
  execStartedSchema,
  forkRequestSchema,
  forkResultSchema,
  freezeTimesSchema,
  hostInfoSchema,
  hostStatsSchema,
  imageListSchema,
  imageSchema,
  joinRequestSchema,
  joinResultSchema,
  launchRequestSchema,
  machineSchema,
  signalRequestSchema,
  slotSchema,
  snapshotListSchema,
  snapshotSchema,
  ticketSchema,
  vmListSchema,
  vmSchema,
  vmStatsSchema,
  watchEventSchema,
} from '@snowfork/sdk/api';
import { z } from 'zod';

/** The names that the document gives to the schemas of `packages/sdk/src/api`. */
export const schemas = {
  Build: buildRequestSchema,
  BuildProgress: buildProgressSchema,
  BuildResult: buildResultSchema,
  Change: watchEventSchema,
  CheckpointResult: checkpointResultSchema,
  DoctorReport: doctorReportSchema,
  DroppedBytes: z.object({ bytes: z.number().int() }),
  DroppedEvents: z.object({ count: z.number().int() }),
  Empty: z.object({}),
  End: endSchema,
  Error: apiErrorSchema,
  Exec: execRequestSchema,
  ExecExit: execExitSchema,
  ExecStarted: execStartedSchema,
  Fork: forkRequestSchema,
  ForkResult: forkResultSchema,
  FreezeTimes: freezeTimesSchema,
  HostInfo: hostInfoSchema,
  HostStats: hostStatsSchema,
  Image: imageSchema,
  ImageList: imageListSchema,
  Join: joinRequestSchema,
  JoinResult: joinResultSchema,
  Launch: launchRequestSchema,
  Machine: machineSchema,
  Signal: signalRequestSchema,
  Slot: slotSchema,
  Snapshot: snapshotSchema,
  SnapshotList: snapshotListSchema,
  Ticket: ticketSchema,
  Vm: vmSchema,
  VmList: vmListSchema,
  VmStats: vmStatsSchema,
} as const satisfies Record<string, z.ZodType>;
export type SchemaName = keyof typeof schemas;

export interface Operation {
  readonly id: string;
  readonly method: 'GET' | 'POST' | 'DELETE';
  /** As the routes have it: `/v1/vms/:id`. */
  readonly path: string;
  readonly summary: string;
  /** Flags, 0 or 1, by name. */
  readonly flags?: Readonly<Record<string, string>>;
  readonly body?: SchemaName | 'bytes';
  /** Without a body all its fields have their defaults. */
  readonly bodyIsOptional?: true;
  /** `events`: server-sent, by name; `bytes` are base64. `any`: JSON of no schema. */
  readonly answer: SchemaName | 'nothing' | 'any' | EventSchemas;
}
export type EventSchemas = { readonly events: Readonly<Record<string, SchemaName | 'bytes'>> };

const feedEvents: EventSchemas = {
  events: { output: 'bytes', dropped: 'DroppedBytes', end: 'Empty', error: 'Error' },
};
const follow = { follow: '0: only what was; 1, the default: also what comes, until the VM ends' };

export const operations: readonly Operation[] = [
  {
    id: 'getHost',
    method: 'GET',
    path: '/v1/host',
    summary: 'The agent, its QEMU and accelerator',
    answer: 'HostInfo',
  },
  {
    id: 'shutDown',
    method: 'DELETE',
    path: '/v1/host',
    summary: 'End all VMs, then the agent; answered when the VMs have gone',
    answer: 'nothing',
  },
  {
    id: 'getStats',
    method: 'GET',
    path: '/v1/stats',
    summary: 'Memory, warm pool and pager of the host',
    answer: 'HostStats',
  },
  {
    id: 'getDoctor',
    method: 'GET',
    path: '/v1/doctor',
    summary: 'What the agent sees that keeps VMs from being forked, with the mend',
    answer: 'DoctorReport',
  },
  {
    id: 'getOpenApi',
    method: 'GET',
    path: '/v1/openapi.json',
    summary: 'This document',
    answer: 'any',
  },
  {
    id: 'watch',
    method: 'GET',
    path: '/v1/events',
    summary: 'What changes from now on: `ready` first, then a `change` each',
    answer: {
      events: { ready: 'Empty', change: 'Change', dropped: 'DroppedEvents', error: 'Error' },
    },
  },
  {
    id: 'listImages',
    method: 'GET',
    path: '/v1/images',
    summary: 'Images of this host',
    answer: 'ImageList',
  },
  {
    id: 'buildImage',
    method: 'POST',
    path: '/v1/images',
    summary: 'Build an image from its file; ends with `done` or `error`',
    body: 'Build',
    answer: { events: { progress: 'BuildProgress', done: 'BuildResult', error: 'Error' } },
  },
  {
    id: 'removeImage',
    method: 'DELETE',
    path: '/v1/images/:name',
    summary: 'Delete an image',
    answer: 'nothing',
  },
  {
    id: 'listVms',
    method: 'GET',
    path: '/v1/vms',
    summary: 'Running VMs, oldest first',
    flags: { all: '1: also those that ended lately' },
    answer: 'VmList',
  },
  {
    id: 'launch',
    method: 'POST',
    path: '/v1/vms',
    summary: 'A new VM of an image; answered when the VM answers',
    body: 'Launch',
    answer: 'Vm',
  },
  {
    id: 'getVm',
    method: 'GET',
    path: '/v1/vms/:id',
    summary: 'One VM, also one that ended lately',
    answer: 'Vm',
  },
  {
    id: 'killVm',
    method: 'DELETE',
    path: '/v1/vms/:id',
    summary: 'End a VM at once',
    answer: 'nothing',
  },
  {
    id: 'getVmStats',
    method: 'GET',
    path: '/v1/vms/:id/stats',
    summary: 'Memory and pages of a VM',
    answer: 'VmStats',
  },
  {
    id: 'fork',
    method: 'POST',
    path: '/v1/vms/:id/fork',
    summary: 'Fork a VM; answered when each clone answers or has failed',
    body: 'Fork',
    answer: 'ForkResult',
  },
  {
    id: 'checkpoint',
    method: 'POST',
    path: '/v1/vms/:id/checkpoint',
    summary: 'Freeze a VM into a snapshot that is kept; the VM goes on',
    answer: 'CheckpointResult',
  },
  {
    id: 'waitForVm',
    method: 'POST',
    path: '/v1/vms/:id/wait',
    summary: 'How a VM ended, when it has, however long that takes',
    answer: 'End',
  },
  {
    id: 'exec',
    method: 'POST',
    path: '/v1/vms/:id/exec',
    summary: 'Run a command; its output in order, then `exit`. Closing the connection kills it',
    body: 'Exec',
    answer: {
      events: {
        started: 'ExecStarted',
        stdout: 'bytes',
        stderr: 'bytes',
        exit: 'ExecExit',
        error: 'Error',
      },
    },
  },
  {
    id: 'writeStdin',
    method: 'POST',
    path: '/v1/vms/:id/execs/:exec/stdin',
    summary: 'Input for a command, of any length; answered when the guest has taken it',
    body: 'bytes',
    answer: 'nothing',
  },
  {
    id: 'closeStdin',
    method: 'DELETE',
    path: '/v1/vms/:id/execs/:exec/stdin',
    summary: "Close a command's input",
    answer: 'nothing',
  },
  {
    id: 'signalExec',
    method: 'POST',
    path: '/v1/vms/:id/execs/:exec/signal',
    summary: 'Send a signal to a command',
    body: 'Signal',
    answer: 'nothing',
  },
  {
    id: 'readConsole',
    method: 'GET',
    path: '/v1/vms/:id/console',
    summary: 'The serial console: what was written lately, then live',
    flags: follow,
    answer: feedEvents,
  },
  {
    id: 'writeConsole',
    method: 'POST',
    path: '/v1/vms/:id/console',
    summary: 'Type into the serial console, at most 1 MiB at once',
    body: 'bytes',
    answer: 'nothing',
  },
  {
    id: 'readLogs',
    method: 'GET',
    path: '/v1/vms/:id/logs',
    summary: 'Output of commands that a VM inherited, and words of its guest side',
    flags: follow,
    answer: feedEvents,
  },
  {
    id: 'listSnapshots',
    method: 'GET',
    path: '/v1/snapshots',
    summary: 'Snapshots: of images, of forks, checkpoints',
    answer: 'SnapshotList',
  },
  {
    id: 'removeSnapshot',
    method: 'DELETE',
    path: '/v1/snapshots/:id',
    summary: 'Delete a checkpoint that nothing needs',
    answer: 'nothing',
  },
  {
    id: 'createClones',
    method: 'POST',
    path: '/v1/snapshots/:id/clones',
    summary: 'VMs of a snapshot, any number of times; the answer has no `freeze`',
    body: 'Fork',
    answer: 'ForkResult',
  },
  {
    id: 'join',
    method: 'POST',
    path: '/v1/tickets/:id/join',
    summary: 'All slots of a ticket, settled; after `timeoutMs` some still `running`',
    body: 'Join',
    bodyIsOptional: true,
    answer: 'JoinResult',
  },
  {
    id: 'killTicket',
    method: 'DELETE',
    path: '/v1/tickets/:id',
    summary: 'Kill the clones of a ticket',
    answer: 'nothing',
  },
];
