// Ctrl-C: the first one goes to whoever asked for it (a command in a guest), else it aborts what
// the `sf` command waits for; the next one always aborts. SIGTERM aborts at once.

import { SnowforkError } from '../api/errors.js';

export class Interrupts {
  readonly #controller = new AbortController();
  #handler: (() => void) | undefined;
  readonly #onInterrupt = () => this.#interrupt();
  readonly #onTerminate = () => this.#abort();

  /** Aborts when the user wants the command to end. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  start(): void {
    process.on('SIGINT', this.#onInterrupt);
    process.on('SIGTERM', this.#onTerminate);
  }

  stop(): void {
    process.off('SIGINT', this.#onInterrupt);
    process.off('SIGTERM', this.#onTerminate);
  }

  /** The next Ctrl-C calls `handler` in place of aborting. */
  interceptNext(handler: () => void): void {
    this.#handler = handler;
  }

  #interrupt(): void {
    const handler = this.#handler;
    this.#handler = undefined;
    if (handler === undefined) this.#abort();
    else handler();
  }

  #abort(): void {
    this.#controller.abort(new SnowforkError('SF_ABORTED', 'interrupted'));
  }
}
