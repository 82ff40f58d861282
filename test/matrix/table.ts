// The table of the matrix's results as it stands in SPECIFICATION.md: one row a cell, each replaced when
// its cell was run again. Pure text; called by `main.ts`.

export const MATRIX_START = '<!-- matrix: written by npm run matrix -->';
export const MATRIX_END = '<!-- /matrix -->';

const HEADER = ['QEMU', 'guest kernel', 'passed', 'failed', 'skipped', 'run on'];

export interface CellResult {
  /** As `10.0.2`. */
  readonly qemu: string;
  /** As `6.12.95+deb12-cloud-amd64`. */
  readonly kernel: string;
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
  /** `2026-01-31`. */
  readonly date: string;
}

/** The document with the rows of these cells; other cells keep theirs. */
export function updateTable(document: string, results: readonly CellResult[]): string {
  const start = document.indexOf(MATRIX_START);
  const end = document.indexOf(MATRIX_END, start);
  if (start < 0 || end < 0) throw new Error(`no ${MATRIX_START} … ${MATRIX_END}`);
  const rows = new Map<string, string[]>();
  for (const line of document.slice(start, end).split('\n')) {
    const cells = line.split('|').slice(1, -1);
    const isRow = cells.length === HEADER.length && /^ \d/.test(cells[0]!);
    if (isRow)
      rows.set(
        rowKey(cells[0]!, cells[1]!),
        cells.map((cell) => cell.trim()),
      );
  }
  for (const { qemu, kernel, passed, failed, skipped, date } of results) {
    const cells = [qemu, kernel, String(passed), String(failed), String(skipped), date];
    rows.set(rowKey(qemu, kernel), cells);
  }
  const sorted = [...rows].sort(([a], [b]) => a.localeCompare(b, 'en', { numeric: true }));
  const lines = [
    tableLine(HEADER),
    `|${'---|'.repeat(HEADER.length)}`,
    ...sorted.map(([, cells]) => tableLine(cells)),
  ];
  const table = lines.join('\n');
  return `${document.slice(0, start)}${MATRIX_START}\n${table}\n${document.slice(end)}`;
}

function tableLine(cells: readonly string[]): string {
  return `| ${cells.join(' | ')} |`;
}

/** A cell is a minor version of each: a newer patch replaces the older one's row. */
function rowKey(qemu: string, kernel: string): string {
  const minor = (version: string) => /\d+\.\d+/.exec(version)?.[0] ?? version;
  return `${minor(qemu)} ${minor(kernel)}`;
}
