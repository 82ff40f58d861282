// Resource limits of a process from outside, as a child has to be bounded that sets none for itself.
// Called for QEMUs right after they were spawned.

import koffi from 'koffi';

const RESOURCE = { fileBytes: 1, coreBytes: 4, openFiles: 7 } as const;

export type Limits = Readonly<Record<keyof typeof RESOURCE, number>>;

type Prlimit = (pid: number, resource: number, limit: BigUint64Array, old: null) => number;
let prlimit: Prlimit | undefined;

/** @returns false where it cannot be done: not glibc, or the process has gone */
export function limitProcess(pid: number, limits: Limits): boolean {
  try {
    prlimit ??= koffi
      .load('libc.so.6')
      .func('int prlimit64(int pid, int resource, const void *limit, void *old)') as Prlimit;
    const call = prlimit;
    return Object.entries(RESOURCE).every(([name, resource]) => {
      const value = BigInt(limits[name as keyof Limits]);
      // struct rlimit64: soft, then hard
      return call(pid, resource, new BigUint64Array([value, value]), null) === 0;
    });
  } catch {
    return false;
  }
}
