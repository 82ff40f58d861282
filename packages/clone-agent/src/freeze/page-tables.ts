// Walks the page tables of an x86-64 guest: virtual address → physical address. Each walk reads one entry a level, so it
// ends after four or five reads whatever the tables say. It reads through GuestMemory only. Called for the
// few addresses that the walk of the free lists can't derive from one another; not meant for hot loops.

import type { GuestMemory } from './guest-memory.js';
import { GuestLayoutError } from './layout-error.js';

export interface Translation {
  readonly physicalAddress: number;
  /** Bytes from there to the end of the (huge) page. */
  readonly lengthBytes: number;
}

const PRESENT = 1n;
const HUGE = 0x80n;
const ADDRESS_MASK = 0x000f_ffff_ffff_f000n;

export class PageTables {
  readonly #memory: GuestMemory;
  readonly #rootAddress: number;
  readonly #levels: 4 | 5;
  readonly #addressMask: bigint;

  /** `rootAddress` is physical; `encryptionMask` are bits of an entry that are no part of the address. */
  constructor(
    memory: GuestMemory,
    options: { rootAddress: number; levels: 4 | 5; encryptionMask: bigint },
  ) {
    this.#memory = memory;
    this.#rootAddress = options.rootAddress;
    this.#levels = options.levels;
    this.#addressMask = ADDRESS_MASK & ~options.encryptionMask;
  }

  /** @throws GuestLayoutError when the address is not mapped or a table lies outside of the RAM. */
  translate(virtualAddress: bigint): Translation {
    let table = this.#rootAddress;
    for (let level = this.#levels; ; level--) {
      const shift = 12 + 9 * (level - 1);
      const index = Number((virtualAddress >> BigInt(shift)) & 511n);
      const entry = this.#memory.read(table + index * 8, 8).readBigUInt64LE();
      if ((entry & PRESENT) === 0n) {
        throw new GuestLayoutError(`address 0x${virtualAddress.toString(16)} is not mapped`);
      }
      const isHuge = level > 1 && (entry & HUGE) !== 0n;
      if (level > 1 && !isHuge) {
        table = Number(entry & this.#addressMask);
        continue;
      }
      const pageBytes = 2 ** shift;
      const inPage = Number(virtualAddress & BigInt(pageBytes - 1));
      const frame = Number(entry & this.#addressMask & ~BigInt(pageBytes - 1));
      return { physicalAddress: frame + inPage, lengthBytes: pageBytes - inPage };
    }
  }

  /** Bytes at a virtual address, across pages. @throws GuestLayoutError */
  read(virtualAddress: bigint, length: number): Buffer {
    const { physicalAddress, lengthBytes } = this.translate(virtualAddress);
    if (length <= lengthBytes) return this.#memory.read(physicalAddress, length);
    const bytes = Buffer.alloc(length);
    for (let done = 0; done < length; ) {
      const part = this.translate(virtualAddress + BigInt(done));
      const count = Math.min(part.lengthBytes, length - done);
      this.#memory.read(part.physicalAddress, count).copy(bytes, done);
      done += count;
    }
    return bytes;
  }
}
