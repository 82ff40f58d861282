// How a bench says what it found: one JSON object, or tables and a list of checks.

import type { MachineFacts } from './machine.js';
import type { Summary } from './statistics.js';

/** A figure that an issue asks for. */
export interface Check {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  readonly target: string;
  readonly ok: boolean;
}

export function atMost(name: string, value: number, unit: string, target: number): Check {
  return { name, value, unit, target: `<= ${target}`, ok: value <= target };
}

export function below(name: string, value: number, unit: string, target: number): Check {
  return { name, value, unit, target: `< ${target}`, ok: value < target };
}

export function atLeast(name: string, value: number, unit: string, target: number): Check {
  return { name, value, unit, target: `>= ${target}`, ok: value >= target };
}

/** Which run on which machine. */
export function headLine(report: {
  readonly at: string;
  readonly durationS: number;
  readonly machine: MachineFacts;
}): string {
  const { processors, processorModel, kernel, qemu, accelerator, node, snowfork, loadAverage } =
    report.machine;
  return (
    `Snowfork ${snowfork}, ${report.at}, ${report.durationS} s: ` +
    `${processors} × ${processorModel}, Linux ${kernel}, QEMU ${qemu} (${accelerator}), ` +
    `Node ${node}, load ${loadAverage.map((load) => load.toFixed(2)).join(' ')}\n`
  );
}

/** `median (min–max)`. */
export function spread({ median, min, max }: Summary): string {
  return `${number(median)} (${number(min)}–${number(max)})`;
}

export function number(value: number): string {
  if (Math.abs(value) >= 100) return String(Math.round(value));
  if (Math.abs(value) < 1) return String(Number(value.toPrecision(2)));
  return String(Number(value.toFixed(1)));
}

/** Columns as wide as their widest cell; the first to the left, the others to the right. */
export function table(title: string, header: readonly string[], rows: readonly string[][]): string {
  const all = [header, ...rows];
  const widths = header.map((_, column) => Math.max(...all.map((row) => row[column]!.length)));
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) =>
        column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!),
      )
      .join('  ')
      .trimEnd();
  const ruler = widths.map((width) => '-'.repeat(width)).join('  ');
  return [title, '', line(header), ruler, ...rows.map(line), ''].join('\n');
}

export function checkTable(checks: readonly Check[]): string {
  const rows = checks.map(({ name, value, unit, target, ok }) => [
    name,
    `${number(value)} ${unit}`,
    target,
    ok ? 'ok' : 'MISSED',
  ]);
  return table('What was asked for', ['figure', 'median', 'target', ''], rows);
}
