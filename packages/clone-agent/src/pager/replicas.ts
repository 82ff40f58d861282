// Replicas: the files in which pages of other hosts' layers are kept here. Writes what has come, says
// what is here, and lets the oldest pages go when there are too many. Lives on the pager's main
// thread, which alone writes; other threads and the memory server read by the held bitmap.

import fs from 'node:fs';
import path from 'node:path';
import type { HeldPages } from '@snowfork/memserver/pages';
import { PAGE_BYTES } from '@snowfork/memserver/pages';
import koffi from 'koffi';
import { errorCode } from './session.js';

const KEEP_SIZE_AND_PUNCH_HOLE = 0x03;
const fallocate = koffi
  .load('libc.so.6')
  .func('int fallocate(int descriptor, int mode, long offset, long bytes)');
/** So many pages leave at a time. */
const LEAVING_PAGES = 256;

export class Replica {
  readonly id: string;
  readonly held: HeldPages;
  users = 0;
  /** Of its pages, those that are in the order in which pages leave. */
  ordered = 0;
  readonly #descriptor: number;

  constructor(id: string, file: string, held: HeldPages) {
    this.id = id;
    this.held = held;
    this.#descriptor = fs.openSync(file, 'r+');
  }

  /** @throws Error of the system, such as ENOSPC: then the page is not here. */
  put(page: number, bytes: Buffer, offset: number): void {
    const position = page * PAGE_BYTES;
    for (let done = 0; done < PAGE_BYTES; ) {
      const left = PAGE_BYTES - done;
      done += fs.writeSync(this.#descriptor, bytes, offset + done, left, position + done);
    }
    this.held.set(page);
  }

  /** A page of zeros takes no place. */
  putZero(page: number): void {
    this.held.set(page);
  }

  /** The pages are here no more. */
  leave(pages: readonly number[]): void {
    this.held.clear(pages, () => {
      for (const page of pages) {
        fallocate(this.#descriptor, KEEP_SIZE_AND_PUNCH_HOLE, page * PAGE_BYTES, PAGE_BYTES);
      }
    });
  }

  close(): void {
    fs.closeSync(this.#descriptor);
  }
}

export class Replicas {
  readonly #folder: string;
  readonly #pagesMax: () => number;
  readonly #open = new Map<string, Replica>();
  /** Pages in the order in which they came; those of replicas that are closed are passed over. */
  #order: { readonly replica: Replica; readonly page: number }[] = [];
  #oldest = 0;
  #pages = 0;
  /** Pages that had to go for others. */
  evicted = 0;

  /** `pagesMax`: of all replicas together. */
  constructor(runFolder: string, pagesMax: () => number) {
    this.#folder = path.join(runFolder, 'layers');
    this.#pagesMax = pagesMax;
  }

  get pages(): number {
    return this.#pages;
  }

  acquire(id: string, held: HeldPages): Replica {
    let replica = this.#open.get(id);
    if (replica === undefined) {
      replica = new Replica(id, path.join(this.#folder, id), held);
      this.#open.set(id, replica);
      // What a pager before this one kept counts as well; its order is not known any more.
      for (const page of held.pages()) this.#append(replica, page);
    }
    replica.users += 1;
    return replica;
  }

  release(replica: Replica): void {
    replica.users -= 1;
    if (replica.users > 0) return;
    this.#open.delete(replica.id);
    this.#pages -= replica.ordered;
    this.#tidy();
    replica.close();
  }

  find(id: string): Replica | undefined {
    return this.#open.get(id);
  }

  /**
   * Keeps a page; the oldest go for it when there are too many, or no more room on the tmpfs.
   * @throws Error of the system: then the page is not here
   */
  put(replica: Replica, page: number, bytes: Buffer, offset: number): void {
    for (;;) {
      try {
        replica.put(page, bytes, offset);
        break;
      } catch (error) {
        if (errorCode(error) !== 'ENOSPC' || !this.#evict()) throw error;
      }
    }
    this.note(replica, page);
  }

  /** A page that was put: the oldest go for it when there are too many. */
  note(replica: Replica, page: number): void {
    if (this.pages >= this.#pagesMax()) this.#evict();
    this.#append(replica, page);
  }

  #append(replica: Replica, page: number): void {
    this.#order.push({ replica, page });
    replica.ordered += 1;
    this.#pages += 1;
  }

  /** Lets some of the oldest pages go; `false` when none can. */
  #evict(): boolean {
    const leaving = new Map<Replica, number[]>();
    let count = 0;
    for (; count < LEAVING_PAGES && this.#oldest < this.#order.length; this.#oldest += 1) {
      const { replica, page } = this.#order[this.#oldest]!;
      if (replica.users === 0) continue;
      replica.ordered -= 1;
      this.#pages -= 1;
      if (replica.held.isPinned) continue;
      const pages = leaving.get(replica) ?? [];
      pages.push(page);
      leaving.set(replica, pages);
      count += 1;
    }
    for (const [replica, pages] of leaving) replica.leave(pages);
    this.evicted += count;
    this.#tidy();
    return count > 0;
  }

  /** When most of the order is of pages that have left: rarely, as it may be long. */
  #tidy(): void {
    if (this.#pages > this.#order.length / 2) return;
    this.#order = this.#order.slice(this.#oldest).filter(({ replica }) => replica.users > 0);
    this.#oldest = 0;
  }
}
