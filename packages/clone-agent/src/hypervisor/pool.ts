// QEMUs that are started before they are needed. They have no RAM yet and belong to no snapshot, so
// any of them serves any clone of its shape. Starts them in the background with low priority, one at
// a time, and not while forks are under way; never touches a QEMU that was taken. The agent owns one.

import fs from 'node:fs';
import { SnowforkError } from '@snowfork/sdk/api';
import { type MachineShape, shapeKey } from './arguments.js';

/** Shapes that are kept warm at a time; the one wanted longest ago goes. */
export const SHAPES_MAX = 8;
/** After a failed start the pool rests, twice as long each time. */
const REST_MIN_MS = 1_000;
const REST_MAX_MS = 60_000;
const KIB = 1024;

/** What the pool needs of a QEMU. */
export interface PooledProcess {
  readonly pid: number;
  readonly ended: AbortSignal;
  kill(): Promise<unknown>;
  /** It was started in the background, and somebody waits for it now. */
  foreground(): void;
}

export interface WarmPoolOptions<P extends PooledProcess> {
  /** QEMUs kept ready, of each wanted shape. */
  readonly size: number;
  /** Starts one; `background`: nobody waits for it, so it takes low priority (`lowerPriority`). */
  start(
    shape: MachineShape,
    options: { readonly background: boolean; readonly signal: AbortSignal },
  ): Promise<P>;
  /** A start in the background failed; the pool goes on trying. */
  onError(error: SnowforkError): void;
}

interface Shelf<P> {
  readonly shape: MachineShape;
  readonly ready: P[];
}

export interface WarmPoolStats {
  readonly size: number;
  readonly ready: number;
  readonly pssBytes: number;
}

export class WarmPool<P extends PooledProcess> implements AsyncDisposable {
  readonly #options: WarmPoolOptions<P>;
  /** By shape key; the order of insertion is the order in which shapes were wanted. */
  readonly #shelves = new Map<string, Shelf<P>>();
  readonly #ending = new Set<Promise<unknown>>();
  readonly #disposed = new AbortController();
  #pauses = 0;
  #refill: Promise<void> | undefined;
  #restMs = 0;
  #restTimer: NodeJS.Timeout | undefined;

  constructor(options: WarmPoolOptions<P>) {
    this.#options = options;
  }

  /** Keeps QEMUs of this shape ready from now on. */
  want(shape: MachineShape): void {
    const key = shapeKey(shape);
    const shelf = this.#shelves.get(key) ?? { shape, ready: [] };
    this.#shelves.delete(key);
    this.#shelves.set(key, shelf);
    for (const [oldest, { shape: old }] of this.#shelves) {
      if (this.#shelves.size <= SHAPES_MAX) break;
      if (oldest !== key) this.drop(old);
    }
    this.#wake();
  }

  /** Disks are gone: what was started with them serves nobody. */
  dropDisks(folder: string): void {
    for (const { shape } of [...this.#shelves.values()]) {
      if (shape.diskPath?.startsWith(`${folder}/`)) this.drop(shape);
    }
  }

  /** Keeps none of this shape any more, and ends those at hand. */
  drop(shape: MachineShape): void {
    const key = shapeKey(shape);
    const shelf = this.#shelves.get(key);
    this.#shelves.delete(key);
    for (const qemu of shelf?.ready.splice(0) ?? []) this.#end(qemu);
  }

  /** A warm QEMU, which is the caller's from now on; one started now when there is none. */
  async take(shape: MachineShape, signal: AbortSignal): Promise<{ qemu: P; warm: boolean }> {
    const shelf = this.#shelves.get(shapeKey(shape));
    for (let qemu = shelf?.ready.shift(); qemu !== undefined; qemu = shelf?.ready.shift()) {
      if (qemu.ended.aborted) continue;
      qemu.foreground();
      this.#wake();
      return { qemu, warm: true };
    }
    this.#wake();
    const qemu = await this.#options.start(shape, { background: false, signal });
    return { qemu, warm: false };
  }

  /** Starts nothing until as many `resume`s: a fork is under way. */
  pause(): void {
    this.#pauses += 1;
  }

  resume(): void {
    if (this.#pauses === 0) throw new Error('resume without pause');
    this.#pauses -= 1;
    this.#wake();
  }

  /** Resolves when every shelf is full, or the pool is paused or rests after a failure. */
  async settled(): Promise<void> {
    while (this.#refill !== undefined) await this.#refill;
  }

  stats(): WarmPoolStats {
    const ready = [...this.#shelves.values()].flatMap((shelf) => shelf.ready);
    const pssBytes = ready.reduce((sum, { pid }) => sum + processPssBytes(pid), 0);
    return { size: this.#options.size, ready: ready.length, pssBytes };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed.abort(new SnowforkError('SF_ABORTED', 'the agent ends'));
    clearTimeout(this.#restTimer);
    await this.#refill;
    for (const { shape } of [...this.#shelves.values()]) this.drop(shape);
    await Promise.all(this.#ending);
  }

  #end(qemu: P): void {
    const ending = qemu.kill().finally(() => this.#ending.delete(ending));
    this.#ending.add(ending);
  }

  #wake(): void {
    if (this.#refill !== undefined || this.#restTimer !== undefined) return;
    this.#refill = this.#fill().finally(() => {
      this.#refill = undefined;
    });
  }

  async #fill(): Promise<void> {
    // Later than whoever takes several at once: they come first.
    await new Promise((resolve) => setImmediate(resolve));
    while (this.#pauses === 0 && !this.#disposed.signal.aborted) {
      const shelf = this.#emptiest();
      if (shelf === undefined) return;
      try {
        await this.#add(shelf);
        this.#restMs = 0;
      } catch (error) {
        if (this.#disposed.signal.aborted) return;
        // Its disks have gone meanwhile: nobody's trouble, and no reason to rest.
        if (!this.#isWanted(shelf)) continue;
        this.#options.onError(SnowforkError.from(error, 'SF_QEMU_FAILED'));
        this.#rest();
        return;
      }
    }
  }

  #emptiest(): Shelf<P> | undefined {
    const wanting = [...this.#shelves.values()].filter(
      (shelf) => shelf.ready.length < this.#options.size,
    );
    // Of equals the one wanted last.
    return wanting.toReversed().toSorted((a, b) => a.ready.length - b.ready.length)[0];
  }

  async #add(shelf: Shelf<P>): Promise<void> {
    const { signal } = this.#disposed;
    const qemu = await this.#options.start(shelf.shape, { background: true, signal });
    if (!this.#isWanted(shelf) || signal.aborted) {
      await qemu.kill();
      return;
    }
    shelf.ready.push(qemu);
    const onEnd = () => {
      const index = shelf.ready.indexOf(qemu);
      if (index < 0) return; // taken
      shelf.ready.splice(index, 1);
      // One that dies waiting may do so at once and for ever: no faster than the rests allow.
      this.#rest();
    };
    qemu.ended.addEventListener('abort', onEnd, { once: true });
    if (qemu.ended.aborted) onEnd();
  }

  #isWanted(shelf: Shelf<P>): boolean {
    return this.#shelves.get(shapeKey(shelf.shape)) === shelf;
  }

  #rest(): void {
    if (this.#restTimer !== undefined || this.#disposed.signal.aborted) return;
    this.#restMs = Math.min(Math.max(this.#restMs * 2, REST_MIN_MS), REST_MAX_MS);
    this.#restTimer = setTimeout(() => {
      this.#restTimer = undefined;
      this.#wake();
    }, this.#restMs);
    this.#restTimer.unref();
  }
}

/** The process's share of the memory that it uses; 0 when it has gone. */
export function processPssBytes(pid: number): number {
  try {
    const rollup = fs.readFileSync(`/proc/${pid}/smaps_rollup`, 'latin1');
    return Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0) * KIB;
  } catch {
    return 0;
  }
}
