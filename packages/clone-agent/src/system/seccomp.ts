// Keeps QEMU from asking for huge pages of its RAM. QEMU always asks (`madvise(…, MADV_HUGEPAGE)`), and
// Linux 5.18 and later then read 2 MiB and more ahead of each first touch of a mapped file: hundreds
// of pages for one. A seccomp filter answers that one call with success. Called once by the agent,
// before it starts QEMUs: they inherit the filter. It does nothing else and cannot be taken back.

import koffi from 'koffi';

const PR_SET_SECCOMP = 22;
const SECCOMP_MODE_FILTER = 2;
const MADV_HUGEPAGE = 14;
const SYSCALL_MADVISE = 28;
const AUDIT_ARCH_X86_64 = 0xc000003e;
const SECCOMP_RET_ALLOW = 0x7fff0000;
/** The call is not made; it returns the error number in the low 16 bits: 0, success. */
const SECCOMP_RET_ERRNO_0 = 0x00050000;

const BPF_LOAD_WORD = 0x20;
const BPF_JUMP_IF_EQUAL = 0x15;
const BPF_RETURN = 0x06;
/** In the kernel's `struct seccomp_data`. */
const OFFSET = { number: 0, architecture: 4, thirdArgument: 32 } as const;

/** Code, jump if true, jump if false, operand. */
const FILTER: readonly (readonly [number, number, number, number])[] = [
  [BPF_LOAD_WORD, 0, 0, OFFSET.architecture],
  [BPF_JUMP_IF_EQUAL, 0, 5, AUDIT_ARCH_X86_64],
  [BPF_LOAD_WORD, 0, 0, OFFSET.number],
  [BPF_JUMP_IF_EQUAL, 0, 3, SYSCALL_MADVISE],
  [BPF_LOAD_WORD, 0, 0, OFFSET.thirdArgument],
  [BPF_JUMP_IF_EQUAL, 0, 1, MADV_HUGEPAGE],
  [BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO_0],
  [BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW],
];
const INSTRUCTION_BYTES = 8;

let installed: boolean | undefined;

/**
 * From now on neither this thread nor what it starts can ask for huge pages. Call it on the main
 * thread, which starts the children.
 * @returns false where it cannot be done (not root, another processor): QEMU's RAM is then read ahead
 */
export function ignoreHugePageAdvice(): boolean {
  installed ??= process.platform === 'linux' && process.arch === 'x64' && install();
  return installed;
}

function install(): boolean {
  try {
    const libc = koffi.load('libc.so.6');
    const prctl = libc.func('int prctl(int option, unsigned long mode, const void *program)');
    const code = encodeFilter();
    // struct sock_fprog: u16 number of instructions, then their address, 8-aligned
    const program = Buffer.alloc(16);
    program.writeUInt16LE(FILTER.length, 0);
    program.writeBigUInt64LE(BigInt(koffi.address(code)), 8);
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program) === 0;
  } catch {
    return false; // no such library: not glibc
  }
}

function encodeFilter(): Buffer {
  const code = Buffer.alloc(FILTER.length * INSTRUCTION_BYTES);
  for (const [index, [operation, jumpTrue, jumpFalse, operand]] of FILTER.entries()) {
    const at = index * INSTRUCTION_BYTES;
    code.writeUInt16LE(operation, at);
    code.writeUInt8(jumpTrue, at + 2);
    code.writeUInt8(jumpFalse, at + 3);
    code.writeUInt32LE(operand, at + 4);
  }
  return code;
}
