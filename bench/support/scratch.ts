// A folder in memory for one measurement: sockets, and files whose disk must not be measured with them.

import fs from 'node:fs';

const FOLDER = '/dev/shm/snowfork-bench';

/** `work` with the folder, empty; what a run that was killed has left there goes first. */
export async function inScratch<T>(work: (folder: string) => Promise<T>): Promise<T> {
  fs.rmSync(FOLDER, { recursive: true, force: true });
  fs.mkdirSync(FOLDER, { mode: 0o700 });
  try {
    return await work(FOLDER);
  } finally {
    fs.rmSync(FOLDER, { recursive: true, force: true });
  }
}
