// The log of a process that others depend on: what it says must neither stop it nor fill a disk.
// Used by the main programs of the pager and the memory server.

import fs from 'node:fs';

const COMPLAINTS_PER_SECOND_MAX = 10;

export interface Complaints {
  /** Says it. */
  log(message: string): void;
  /** Says it, or counts it when there was too much in this second. */
  complain(message: string): void;
}

/** `name`: who says it. To the standard error. */
export function newComplaints(name: string): Complaints {
  let complaints = 0;
  const log = (message: string): void => {
    try {
      fs.writeSync(process.stderr.fd, `${new Date().toISOString()} ${name}: ${message}\n`);
    } catch {
      // Whoever read the log has gone; the process must go on.
    }
  };
  const sumUp = (): void => {
    const unsaid = complaints - COMPLAINTS_PER_SECOND_MAX;
    if (unsaid > 0) log(`and ${unsaid} complaints more`);
    complaints = 0;
  };
  return {
    log,
    complain: (message) => {
      if (complaints === 0) setTimeout(sumUp, 1000);
      complaints += 1;
      if (complaints <= COMPLAINTS_PER_SECOND_MAX) log(message);
    },
  };
}
