// Gives each QEMU a user id that no other living process of the host has: one of a block that this
// agent claims for itself. The ids are in no /etc/passwd; as group ids they are used the same way.
// Knows nothing of files and processes but whose they are. Owned by `confinement.ts`.

import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import { hasCapability, readCapabilities } from '../system/rights.js';

/** Users of one agent: more than it has QEMUs, running and warm. */
export const BLOCK_USERS = 8192;
/** Blocks from the first user on, so agents on one host. */
const BLOCKS_MAX = 256;
/** Bits of capabilities(7). */
const CAPABILITIES = { setgid: 6n, setuid: 7n } as const;

export interface UserRange {
  readonly first: number;
  readonly count: number;
}

export class VmUsers implements Disposable {
  readonly range: UserRange;
  readonly #claim: net.Server;
  readonly #busy: Set<number>;
  #next: number;

  /**
   * Claims the first free block from `first` on. The claim is the name of an abstract socket, which
   * the kernel gives back; QEMUs that outlive their agent keep their ids by being alive.
   * @returns a string that says why this agent can give no users
   */
  static async claim(first: number): Promise<VmUsers | string> {
    if (first === 0) return 'the setting `vmUserFirst` is 0';
    const count = BLOCK_USERS * BLOCKS_MAX;
    const hindrance = whyNoUsers({ first, count }, readRights());
    if (hindrance !== undefined) return hindrance;
    for (let block = 0; block < BLOCKS_MAX; block++) {
      const range = { first: first + block * BLOCK_USERS, count: BLOCK_USERS };
      const claim = await listen(`\0snowfork-users-${range.first}`);
      if (claim !== undefined) return new VmUsers(range, claim);
    }
    return `${BLOCKS_MAX} agents of this host have all users from ${first} on`;
  }

  private constructor(range: UserRange, claim: net.Server) {
    this.range = range;
    this.#claim = claim;
    this.#next = range.first;
    this.#busy = new Set(livingUsers().filter((user) => this.has(user)));
  }

  has(user: number): boolean {
    return user >= this.range.first && user < this.range.first + this.range.count;
  }

  /** A user that nobody has; the one given back longest ago comes last. */
  take(): number {
    for (let tried = 0; tried < this.range.count; tried++) {
      const user = this.#next;
      this.#next = this.has(user + 1) ? user + 1 : this.range.first;
      if (this.#busy.has(user)) continue;
      this.#busy.add(user);
      return user;
    }
    throw new Error(`all ${this.range.count} users are taken`);
  }

  /** Its last process has gone, and its files. */
  giveBack(user: number): void {
    this.#busy.delete(user);
  }

  [Symbol.dispose](): void {
    this.#claim.close();
  }
}

export interface UserRights {
  readonly capabilities: bigint;
  /** `/proc/self/uid_map` and `gid_map`. */
  readonly uidMap: string;
  readonly gidMap: string;
}

/** Undefined when processes can be started as any user of the range. */
export function whyNoUsers(range: UserRange, rights: UserRights): string | undefined {
  const { capabilities } = rights;
  if (!Object.values(CAPABILITIES).every((bit) => hasCapability(capabilities, bit))) {
    return 'the agent is not root';
  }
  if (isMapped(range, rights.uidMap) && isMapped(range, rights.gidMap)) return undefined;
  return `the agent's user namespace does not have the users ${range.first} and up`;
}

function isMapped({ first, count }: UserRange, map: string): boolean {
  return map.split('\n').some((line) => {
    const [inside, , length] = line.trim().split(/\s+/).map(Number);
    return inside! <= first && inside! + length! >= first + count;
  });
}

function readRights(): UserRights {
  return {
    capabilities: readCapabilities(),
    uidMap: fs.readFileSync('/proc/self/uid_map', 'latin1'),
    gidMap: fs.readFileSync('/proc/self/gid_map', 'latin1'),
  };
}

/** Whose the processes of this host are. */
function livingUsers(): number[] {
  const users: number[] = [];
  for (const name of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const status = fs.readFileSync(`/proc/${name}/status`, 'latin1');
      users.push(Number(/^Uid:\s+(\d+)/m.exec(status)?.[1]));
    } catch {
      // It has gone.
    }
  }
  return users;
}

async function listen(name: string): Promise<net.Server | undefined> {
  const server = net.createServer((socket) => socket.destroy());
  server.listen(name);
  server.unref();
  try {
    await once(server, 'listening');
    return server;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EADDRINUSE') return undefined;
    throw error;
  }
}
