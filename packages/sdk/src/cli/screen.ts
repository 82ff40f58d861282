// A view that redraws itself: on a terminal in place, on its alternate screen, until q or Ctrl-C; else
// one text after the other. The terminal is left as it was, however the process ends. Called by
// `sf top` and `sf tree --watch`.

import { SnowforkError } from '../api/errors.js';
import { EXIT_OK, type Session } from './command.js';
import type { Interrupts } from './interrupts.js';
import type { Output } from './output.js';

/** Alternate screen, no cursor, no line wraps: what does not fit is cut off by the terminal. */
const ENTER = '\u001b[?1049h\u001b[?25l\u001b[?7l';
const LEAVE = '\u001b[?7h\u001b[?25h\u001b[?1049l';
const HOME = '\u001b[H';
const ERASE_REST_OF_LINE = '\u001b[K';
const ERASE_BELOW = '\u001b[J';
/** Of a terminal in raw mode, where Ctrl-C is a byte and no signal. */
const KEYS_TO_LEAVE = ['q', 'Q', '\u0003'];

export class LiveScreen {
  readonly #output: Output;
  readonly #left = new AbortController();
  readonly #restore: () => void;
  #lines: readonly string[] = [];

  constructor(output: Output, interrupts: Interrupts) {
    this.#output = output;
    const onAbort = () => this.#left.abort(interrupts.signal.reason);
    interrupts.signal.addEventListener('abort', onAbort, { once: true });
    if (interrupts.signal.aborted) onAbort();
    interrupts.interceptNext(() => this.#leave());
    this.#restore = output.hasScreen ? this.#takeTerminal() : () => {};
  }

  /** Aborts when the user has seen enough, or wants the command to end. */
  get signal(): AbortSignal {
    return this.#left.signal;
  }

  /** The user has seen enough. */
  get hasLeft(): boolean {
    return this.#left.signal.reason === LEFT;
  }

  /** Lines that can be seen at once. */
  get rows(): number {
    return this.#output.hasScreen ? this.#output.rows - 1 : Number.POSITIVE_INFINITY;
  }

  draw(lines: readonly string[]): void {
    this.#lines = lines;
    if (!this.#output.hasScreen) {
      for (const line of [...lines, '']) this.#output.line(line);
      return;
    }
    const shown = lines.slice(0, this.rows).map((line) => `${line}${ERASE_REST_OF_LINE}\r\n`);
    this.#output.control(`${HOME}${shown.join('')}${ERASE_BELOW}`);
  }

  close(): void {
    this.#restore();
  }

  #leave(): void {
    this.#left.abort(LEFT);
  }

  #takeTerminal(): () => void {
    const { stdin } = process;
    const onKey = (bytes: Buffer) => {
      if (KEYS_TO_LEAVE.some((key) => bytes.includes(key))) this.#leave();
    };
    const onResize = () => this.draw(this.#lines);
    this.#output.control(ENTER);
    if (stdin.isTTY) {
      stdin.setRawMode(true);
      stdin.on('data', onKey);
    }
    process.stdout.on('resize', onResize);
    let restored = false;
    const restore = () => {
      if (restored) return;
      restored = true;
      process.off('exit', restore);
      process.stdout.off('resize', onResize);
      this.#output.control(LEAVE);
      if (!stdin.isTTY) return;
      stdin.setRawMode(false);
      stdin.off('data', onKey);
      stdin.destroy();
    };
    process.once('exit', restore);
    return restore;
  }
}

const LEFT = new SnowforkError('SF_ABORTED', 'the view was left');

/** Runs `show` until it returns or the user leaves, which is no failure. */
export async function withScreen(
  { output, interrupts }: Session,
  show: (screen: LiveScreen) => Promise<void>,
): Promise<number> {
  const screen = new LiveScreen(output, interrupts);
  try {
    await show(screen);
  } catch (error) {
    if (!screen.hasLeft) throw error;
  } finally {
    screen.close();
  }
  return EXIT_OK;
}
