// Which user may open which object of the mount. The kernel asks for each `open`, and names are cached
// by it, so this is the place where a QEMU is kept from the memory of another's snapshot. The agent
// writes a file for each user; it is read anew each time, so a pager that was started again knows the
// same. Called by `filesystem.ts`.
//
//   run/openers/<user>    a line for each object: SNAPSHOT/OBJECT

import fs from 'node:fs';
import path from 'node:path';

export class Openers {
  readonly #folder: string;
  readonly #owner: number;

  /** @param owner the user that the agent and the pager run as: it may open everything */
  constructor(runFolder: string, owner: number) {
    this.#folder = path.join(runFolder, 'openers');
    this.#owner = owner;
  }

  mayOpen(user: number, object: string): boolean {
    if (user === this.#owner) return true;
    try {
      const lines = fs.readFileSync(path.join(this.#folder, String(user)), 'utf8').split('\n');
      return lines.includes(object);
    } catch {
      return false; // no such user
    }
  }
}
