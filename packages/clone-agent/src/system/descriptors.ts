// Keeps what this process has open from what it starts. Node closes its own descriptors in children, but
// not those that it inherited, say from a shell: a QEMU must have nothing that it was not given. Called
// once, when the agent starts.

import koffi from 'koffi';

const FIRST_DESCRIPTOR = 3;
const ALL = 0xffff_ffff;
const CLOSE_RANGE_CLOEXEC = 4;

/** @returns false where it cannot be done (before Linux 5.11, not glibc 2.34 or later) */
export function keepDescriptors(): boolean {
  try {
    const closeRange = koffi
      .load('libc.so.6')
      .func('int close_range(unsigned int first, unsigned int last, int flags)');
    return closeRange(FIRST_DESCRIPTOR, ALL, CLOSE_RANGE_CLOEXEC) === 0;
  } catch {
    return false;
  }
}
