// Where an agent keeps everything when nobody says where: one answer for the agent, the SDK and the
// command, so that they find the same socket. Touches no file.

import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { SnowforkError } from './errors.js';

/** Of root. */
export const STATE_FOLDER_DEFAULT = '/var/lib/snowfork';
/** The sockets below it have paths of up to 40 bytes more; the kernel takes 107. */
export const STATE_FOLDER_BYTES_MAX = 67;

/**
 * /var/lib/snowfork for root; for others `$XDG_STATE_HOME/snowfork` or `~/.local/state/snowfork`, as
 * the XDG base directory specification has it.
 * @throws SnowforkError SF_BAD_REQUEST for a user without a home.
 */
export function defaultStateFolder(environment: NodeJS.ProcessEnv = process.env): string {
  if (process.getuid?.() === 0) return STATE_FOLDER_DEFAULT;
  const named = environment.XDG_STATE_HOME;
  if (named && isAbsolute(named)) return join(named, 'snowfork');
  return join(homeFolder(), '.local/state/snowfork');
}

/** @throws SnowforkError SF_BAD_REQUEST. */
export function assertStateFolderLength(folder: string): void {
  if (Buffer.byteLength(folder) <= STATE_FOLDER_BYTES_MAX) return;
  throw new SnowforkError(
    'SF_BAD_REQUEST',
    `the state folder's path is longer than ${STATE_FOLDER_BYTES_MAX} bytes, too long for the ` +
      `sockets below it: set SNOWFORK_STATE to a shorter one (${folder})`,
  );
}

function homeFolder(): string {
  try {
    return homedir();
  } catch (cause) {
    const message = 'this user has no home folder: set SNOWFORK_STATE to a folder of its own';
    throw new SnowforkError('SF_BAD_REQUEST', message, { cause });
  }
}
