// The cpio archive ("newc") that the kernel unpacks as initramfs. Nothing here touches a file;
// called by `initramfs.ts`. One entry after the other, each padded to 4 bytes, the last named
// TRAILER!!!:
//
//  0      6   14   22  30  38    46    54   62      70    78      86    94   102   110
//  +------+---+----+---+---+-----+-----+----+-------+-----+-------+-----+----+-----+------+------+
//  |070701|ino|mode|uid|gid|links|mtime|size|    device   | device node |name|check| name | data |
//  |      |   |    |   |   |     |     |    | major |minor| major |minor|len |  0  | \0   |      |
//  +------+---+----+---+---+-----+-----+----+-------+-----+-------+-----+----+-----+------+------+
//
// All numbers are 8 hexadecimal digits; the length of the name counts its NUL. After name and data
// stands padding. Owner and times are 0, so that the same entries always give the same bytes. See
// the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

import assert from 'node:assert';

const MAGIC = '070701';
const HEADER_BYTES = 110;
const ALIGNMENT_BYTES = 4;
const TRAILER = 'TRAILER!!!';
/** The kernel's PATH_MAX, the NUL included. */
const NAME_BYTES_MAX = 4096;
const DATA_BYTES_MAX = 0xffff_ffff;

/** Kind of file and permissions, as in `st_mode`. */
export const FileKind = {
  regular: 0o100000,
  folder: 0o040000,
  link: 0o120000,
  characterDevice: 0o020000,
} as const;

export interface CpioEntry {
  /** Relative to the root, without leading slash: `dev/console`. */
  readonly path: string;
  /** A FileKind and the permissions. */
  readonly mode: number;
  /** Of a regular file its bytes, of a link its target. */
  readonly data?: Uint8Array;
  /** Of a device node. */
  readonly device?: { readonly major: number; readonly minor: number };
}

/** The whole archive. A folder must come before what lies in it: the kernel creates none itself. */
export function encodeCpio(entries: Iterable<CpioEntry>): Buffer {
  const parts: Buffer[] = [];
  let inode = 0;
  for (const entry of entries) {
    assertEntry(entry);
    inode += 1;
    parts.push(...encodeEntry(inode, entry));
  }
  parts.push(...encodeEntry(0, { path: TRAILER, mode: 0 }));
  return Buffer.concat(parts);
}

function encodeEntry(inode: number, entry: CpioEntry): Buffer[] {
  const data = entry.data ?? new Uint8Array(0);
  const name = Buffer.from(`${entry.path}\0`, 'utf8');
  const fields = [
    inode,
    entry.mode,
    0, // uid
    0, // gid
    1, // links
    0, // mtime
    data.length,
    0, // the archive's own device
    0,
    entry.device?.major ?? 0,
    entry.device?.minor ?? 0,
    name.length,
    0, // checksum: of another variant
  ];
  const header = MAGIC + fields.map((field) => field.toString(16).padStart(8, '0')).join('');
  assert.equal(header.length, HEADER_BYTES);
  return [
    Buffer.from(header, 'latin1'),
    name,
    padding(HEADER_BYTES + name.length),
    Buffer.from(data.buffer, data.byteOffset, data.length),
    padding(data.length),
  ];
}

function padding(lengthBytes: number): Buffer {
  return Buffer.alloc((ALIGNMENT_BYTES - (lengthBytes % ALIGNMENT_BYTES)) % ALIGNMENT_BYTES);
}

function assertEntry({ path, data }: CpioEntry): void {
  const steps = path.split('/');
  assert(!steps.some((step) => step === '' || step === '.' || step === '..'), `cpio path ${path}`);
  assert(!path.includes('\0') && path !== TRAILER, `cpio path ${path}`);
  assert(Buffer.byteLength(path) < NAME_BYTES_MAX, 'cpio path too long');
  assert((data?.length ?? 0) <= DATA_BYTES_MAX, 'cpio file too large');
}
