// What this program must not share with the copies of its VM. `sf-guestd` tells every connected
// program when the VM was forked, before it passes on any answer; then the generators are renewed at
// once, and the program's own hooks run. A call that forks resolves after both. In a clone that can't
// be renewed this program ends, and the clone with it: nothing is handed out that has a twin. Called
// by `client.ts` (notices) and `calls.ts`.

import { SnowforkError } from '../api/errors.js';
import { assertRenewable, renewGenerators } from './generators.js';

/** Where a program finds itself after a fork. */
export interface ForkNotice {
  /** `clone` also in a VM that was launched from an image, or made of a checkpoint. */
  readonly role: 'parent' | 'clone';
  /** 0 in the parent, else the clone's id within its ticket. */
  readonly id: number;
}
export type ForkHook = (fork: ForkNotice) => void | Promise<void>;

interface Renewal {
  /**
   * Resolves when all is renewed; `id` as the call was answered.
   * @throws SnowforkError SF_IDENTITY_FAILED, in the parent
   */
  finish(id: number): Promise<void>;
  /** The call is over, however it ended. */
  end(): void;
}

const HOOKS_MAX = 1024;
/** All hooks together; a clone whose hooks hang is of no use to anybody. */
const HOOKS_TIMEOUT_MS = 30_000;

export class Identity {
  readonly #hooks = new Set<{ readonly hook: ForkHook }>();
  #noticeCount = 0;
  #callers = 0;
  #settled: Promise<void> = Promise.resolve();

  /** @returns a function that takes the hook back */
  addHook(hook: ForkHook): () => void {
    if (typeof hook !== 'function') {
      throw new SnowforkError('SF_BAD_REQUEST', `a function is asked for, not ${String(hook)}`);
    }
    if (this.#hooks.size >= HOOKS_MAX) {
      throw new SnowforkError('SF_BAD_REQUEST', `at most ${HOOKS_MAX} hooks`);
    }
    const entry = { hook };
    this.#hooks.add(entry);
    return () => {
      this.#hooks.delete(entry);
    };
  }

  /** The VM was forked: renews what has to be other than in its copies. */
  take(notice: ForkNotice): void {
    this.#noticeCount += 1;
    try {
      renewGenerators();
    } catch (error) {
      this.#settled = this.#fail(notice, error);
      this.#settled.catch(() => {});
      return;
    }
    if (this.#hooks.size === 0) return;
    // A fork within a fork's hooks: its own come after them.
    this.#settled = this.#settled.catch(() => {}).then(() => this.#runHooks(notice));
    this.#settled.catch(() => {});
  }

  /**
   * Before a call that forks; what it gives is for after it.
   * @throws SnowforkError SF_IDENTITY_FAILED when renewing would fail
   */
  begin(): Renewal {
    assertRenewable();
    const noticesBefore = this.#noticeCount;
    this.#callers += 1;
    return {
      finish: async (id) => {
        const told = this.#noticeCount > noticesBefore;
        if (!told) this.take({ role: id === 0 ? 'parent' : 'clone', id });
        await this.#settled;
      },
      end: () => {
        this.#callers -= 1;
      },
    };
  }

  async #runHooks(notice: ForkNotice): Promise<void> {
    const deadline = createDeadline();
    try {
      for (const { hook } of [...this.#hooks]) {
        await Promise.race([hook(notice), deadline.passed]);
      }
    } catch (error) {
      await this.#fail(notice, error);
    } finally {
      deadline.clear();
    }
  }

  async #fail(notice: ForkNotice, cause: unknown): Promise<never> {
    const error = failure(cause);
    if (notice.role === 'clone') {
      console.error('sf: this clone is given up, what has to be its own was not renewed:', error);
      process.exit(1);
    }
    if (this.#callers === 0) process.emitWarning(error);
    throw error;
  }
}

function failure(cause: unknown): SnowforkError {
  if (cause instanceof SnowforkError && cause.code === 'SF_IDENTITY_FAILED') return cause;
  const message = cause instanceof Error ? cause.message : String(cause);
  return new SnowforkError('SF_IDENTITY_FAILED', `a hook of sf.onFork failed: ${message}`, {
    cause,
  });
}

function createDeadline(): { passed: Promise<never>; clear(): void } {
  let timer: NodeJS.Timeout | undefined;
  const passed = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`the hooks took more than ${HOOKS_TIMEOUT_MS} ms`));
    }, HOOKS_TIMEOUT_MS);
  });
  passed.catch(() => {});
  return { passed, clear: () => clearTimeout(timer) };
}
