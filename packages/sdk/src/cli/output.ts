// What `sf` prints: words and tables for people, JSON for programs, never both. Results go to
// standard output, everything else to standard error. Called by the commands.

import { errorRegistry, type SnowforkError } from '../api/errors.js';

const STYLES = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33, cyan: 36 } as const;
export type Style = keyof typeof STYLES;
/** Of the checks of `sf doctor`. */
export const STATUS_STYLES = { ok: 'green', warn: 'yellow', fail: 'red' } as const;

type Stream = NodeJS.WriteStream;

export class Output {
  readonly json: boolean;
  readonly #stdout: Stream;
  readonly #stderr: Stream;

  constructor(stdout: Stream, stderr: Stream, json: boolean) {
    this.#stdout = stdout;
    this.#stderr = stderr;
    this.json = json;
  }

  /** Whether progress can be drawn in place. */
  get isTerminal(): boolean {
    return this.#stderr.isTTY === true && !this.json;
  }

  get columns(): number {
    return this.#stderr.columns ?? 80;
  }

  /** Whether results can be drawn over what was drawn before. */
  get hasScreen(): boolean {
    return this.#stdout.isTTY === true && !this.json && process.env.TERM !== 'dumb';
  }

  /** Lines of the terminal; some that are no real ones say 0. */
  get rows(): number {
    return this.#stdout.rows || 24;
  }

  /** Bytes for the terminal itself; for `hasScreen` only. */
  control(sequence: string): void {
    this.#stdout.write(sequence);
  }

  /** One JSON document, on a line of its own. */
  document(value: unknown): void {
    this.#stdout.write(`${JSON.stringify(value)}\n`);
  }

  /** For people only. */
  line(text: string): void {
    if (!this.json) this.#stdout.write(`${text}\n`);
  }

  /** Words beside the result, such as progress; not in JSON mode. */
  note(text: string): void {
    if (!this.json) this.#stderr.write(`${text}\n`);
  }

  /** Replaces the last line of the terminal; for `isTerminal` only. */
  inPlace(text: string): void {
    this.#stderr.write(`\r\u001b[K${text.slice(0, this.columns - 1)}`);
  }

  endInPlace(): void {
    this.#stderr.write('\n');
  }

  /** Bytes of a guest, as they are. Resolves when there is room for more. */
  async bytes(chunk: Uint8Array, to: 'stdout' | 'stderr' = 'stdout'): Promise<void> {
    const stream = to === 'stdout' ? this.#stdout : this.#stderr;
    if (stream.write(chunk)) return;
    await new Promise<void>((resolve) => stream.once('drain', () => resolve()));
  }

  /** Columns as wide as their longest cell; the head in bold. */
  table(head: readonly string[], rows: readonly (readonly string[])[]): void {
    for (const line of formatTable(head, rows, (text) => this.style('bold', text))) this.line(line);
  }

  error(error: SnowforkError): void {
    if (this.json) {
      this.#stderr.write(`${JSON.stringify({ error: error.toJSON() })}\n`);
      return;
    }
    this.#stderr.write(`${this.style('red', 'sf:', 'stderr')} ${error.message}\n`);
    // Who pressed Ctrl-C knows why it ended.
    if (error.code === 'SF_ABORTED') return;
    const hint = `    ${errorRegistry[error.code].help} (${error.code})`;
    this.#stderr.write(`${this.style('dim', hint, 'stderr')}\n`);
  }

  /** `text` in a style, if that stream is a terminal and the user has nothing against colours. */
  style(style: Style, text: string, on: 'stdout' | 'stderr' = 'stdout'): string {
    const stream = on === 'stdout' ? this.#stdout : this.#stderr;
    const { NO_COLOR, TERM } = process.env;
    if (stream.isTTY !== true || NO_COLOR || TERM === 'dumb') return text;
    return `\u001b[${STYLES[style]}m${text}\u001b[0m`;
  }

  /** In `sf ps | head` the reader leaves first: that is no error. */
  endProcessOnClosedPipe(): void {
    this.#stdout.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EPIPE') process.exit(0);
      throw error;
    });
  }

  async flush(): Promise<void> {
    for (const stream of [this.#stdout, this.#stderr]) {
      await new Promise<void>((resolve) => stream.write('', () => resolve()));
    }
  }
}

/**
 * Lines of a table; the last column is not padded. Widths count characters, so style heads last.
 */
export function formatTable(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  styleHead: (text: string) => string = (text) => text,
): string[] {
  const widths = head.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => (row[column] ?? '').length)),
  );
  const format = (cells: readonly string[]) =>
    cells
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd();
  return [styleHead(format(head)), ...rows.map(format)];
}
