// The agent's stream of changes as "has anything changed since I looked last": changes that come while
// nobody waits are remembered as one. That the stream has begun counts as a change: what was before it
// was not heard. Called by `sf tree --watch`.

import type { Host } from '../host/host.js';

export class Changes {
  #changed = false;
  #ended = false;
  #failure: unknown;
  #wake: (() => void) | undefined;

  constructor(host: Host, signal: AbortSignal) {
    void this.#follow(host, signal);
  }

  /** Resolves at the next change, or after `timeoutMs`; false when there will be none any more. */
  async next(timeoutMs: number | undefined): Promise<boolean> {
    if (!this.#changed && !this.#ended) await this.#wait(timeoutMs);
    this.#changed = false;
    if (this.#failure !== undefined) throw this.#failure;
    return !this.#ended;
  }

  async #follow(host: Host, signal: AbortSignal): Promise<void> {
    try {
      const onReady = () => this.#note();
      for await (const _change of host.watch({ signal, onReady })) this.#note();
    } catch (error) {
      this.#failure = error;
    }
    this.#ended = true;
    this.#wake?.();
  }

  #note(): void {
    this.#changed = true;
    this.#wake?.();
  }

  async #wait(timeoutMs: number | undefined): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      if (timeoutMs !== undefined) timer = setTimeout(resolve, timeoutMs);
    });
    clearTimeout(timer);
    this.#wake = undefined;
  }
}
