// Numbers as people read them. Pure; called by the commands.

import { inspect } from 'node:util';
import type { End } from '../api/schemas.js';

const BYTE_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'] as const;
export const PAGE_BYTES = 4096;

/** `1.5 MiB`. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < BYTE_UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${BYTE_UNITS[unit]}`;
}

/** `47 ms`, `1.3 s`, `5 m`, `2 h`, `3 d`. */
export function formatDuration(durationMs: number): string {
  if (durationMs < 1000) return `${Math.round(durationMs)} ms`;
  const seconds = durationMs / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** `exited: 42`, `killed: its ticket was killed`, `lost: …`, on one line. */
export function formatEnd(end: End): string {
  if (end.how === 'exited') return `exited: ${formatValue(end.value)}`;
  return `${end.how}: ${end.reason}`;
}

/** A value of a program, on one line. */
export function formatValue(value: unknown): string {
  return inspect(value, { depth: 4, breakLength: Number.POSITIVE_INFINITY, maxArrayLength: 20 });
}
