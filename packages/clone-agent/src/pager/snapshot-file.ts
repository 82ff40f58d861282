// What the pager reads of a `snapshot.json` (docs/internals/formats.md): which objects there are, and
// where their page maps and layers lie. The agent writes these files; the pager never does.

import fs from 'node:fs';
import path from 'node:path';
import { z } from 'zod';
import { originSchema } from '../store/origins.js';
import { OBJECTS_MAX, SNAPSHOT_NUMBER_MAX } from './nodes.js';

/** In a snapshot's folder: why a page that the process read will not come. By the pager, for the agent. */
export function lostFile(pid: number): string {
  return `lost.${pid}`;
}

/** Names that may become part of a path. */
const nameSchema = z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/);
const sizeBytes = z.number().int().nonnegative();
const ownObjectSchema = z.object({
  name: nameSchema,
  sizeBytes,
  map: nameSchema,
  layers: z.array(nameSchema),
});
/** It is served under its first name only. */
const inheritedObjectSchema = z.object({ name: nameSchema, sizeBytes, from: z.string() });

const snapshotFileSchema = z.object({
  version: z.literal(1),
  /** The freeze goes on: objects that have no layer yet will get their content later. */
  pending: z.boolean().optional(),
  number: z.number().int().min(1).max(SNAPSHOT_NUMBER_MAX),
  id: nameSchema,
  objects: z.array(z.union([ownObjectSchema, inheritedObjectSchema])).max(OBJECTS_MAX),
  /** Of layers that are replicas here. */
  origins: z.array(originSchema).optional(),
});
export type SnapshotFile = z.infer<typeof snapshotFileSchema>;
export type OwnObject = z.infer<typeof ownObjectSchema>;

export function isName(text: string): boolean {
  return nameSchema.safeParse(text).success;
}

export function snapshotFolder(runFolder: string, id: string): string {
  return path.join(runFolder, 'snapshots', id);
}

/** `undefined` when there is no such snapshot. @throws Error when the file is not of the format. */
export function readSnapshotFile(runFolder: string, id: string): SnapshotFile | undefined {
  const file = path.join(snapshotFolder(runFolder, id), 'snapshot.json');
  let text: string;
  try {
    text = fs.readFileSync(file, 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  }
  const parsed = snapshotFileSchema.parse(JSON.parse(text));
  if (parsed.id !== id) throw new Error(`${file} says that it is ${parsed.id}`);
  return parsed;
}

/** Ids of the snapshots in the run folder. */
export function listSnapshots(runFolder: string): string[] {
  return fs.readdirSync(path.join(runFolder, 'snapshots')).filter(isName);
}
