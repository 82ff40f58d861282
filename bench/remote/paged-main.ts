// A host's pager and a program whose faults it answers, as a process, so that it can be started on
// any host of the bench's network: `node paged-main.js RUN COUNT`. Prints `PagedFaults` as JSON.

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import {
  abortConnection,
  fuseConnection,
  mountFuse,
  openFuse,
  startPager,
  unmountFuse,
} from '../support/agent-parts.js';
import { processorUse } from '../support/machine.js';

export interface PagedFaults {
  readonly latencyUs: readonly number[];
  /** Of the pager, all threads, for each page that was touched. */
  readonly pagerUsPerPage: number;
}

const FAULTS_MAIN = fileURLToPath(new URL('./faults-main.js', import.meta.url));
const JSON_BYTES_MAX = 16 * 1024 * 1024;

const [runFolder, count] = process.argv.slice(2) as [string, string];
const mountPoint = path.join(runFolder, 'mount');
fs.mkdirSync(mountPoint);
const fuseFd = openFuse();
await mountFuse({ fd: fuseFd, mountPoint });
const connection = await fuseConnection(mountPoint);
try {
  const pager = await startPager({ fuseFd, runFolder });
  try {
    const args = [FAULTS_MAIN, path.join(mountPoint, 's1', 'ram'), count];
    const before = processorUse(pager.pid).processMs;
    const run = await promisify(execFile)(process.execPath, args, { maxBuffer: JSON_BYTES_MAX });
    const latencyUs = JSON.parse(run.stdout) as number[];
    const pagerMs = processorUse(pager.pid).processMs - before;
    const faults: PagedFaults = { latencyUs, pagerUsPerPage: (pagerMs * 1000) / latencyUs.length };
    process.stdout.write(JSON.stringify(faults));
  } finally {
    await pager.stop();
  }
} finally {
  await unmountFuse(mountPoint);
  if (connection !== undefined) await abortConnection(connection);
  fs.closeSync(fuseFd);
}
