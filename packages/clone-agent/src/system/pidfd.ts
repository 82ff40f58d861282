// Takes a file descriptor out of another process (pidfd_getfd, Linux 5.6), which Node cannot do. The
// agent gets the FUSE connection so, from a pager that has outlived its agent.

import { SnowforkError } from '@snowfork/sdk/api';
import koffi from 'koffi';

/** x86-64 and arm64 alike. */
const SYSCALL_PIDFD_OPEN = 434;
const SYSCALL_PIDFD_GETFD = 438;

/**
 * A copy of descriptor `descriptor` of process `pid`, closed in children.
 * @throws SnowforkError SF_PERMISSION when this process may not.
 */
export function takeDescriptor(pid: number, descriptor: number): number {
  const libc = koffi.load('libc.so.6');
  const syscall = libc.func('long syscall(long number, long first, long second, long third)');
  const close = libc.func('int close(int descriptor)');
  const process = Number(syscall(SYSCALL_PIDFD_OPEN, pid, 0, 0));
  const taken = process < 0 ? -1 : Number(syscall(SYSCALL_PIDFD_GETFD, process, descriptor, 0));
  const error = koffi.errno();
  if (process >= 0) close(process);
  if (taken >= 0) return taken;
  throw new SnowforkError(
    'SF_PERMISSION',
    `descriptor ${descriptor} of process ${pid} can't be taken over (errno ${error}): ` +
      'run as the user that started it',
  );
}
