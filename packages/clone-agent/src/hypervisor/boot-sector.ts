// A program of 512 bytes that a PC boots without a kernel: real mode, protected mode, paging, long
// mode, floating point, a breakpoint, and three ticks of the timer while halted. Then it writes
// BOOT_SECTOR_WORDS to the serial port. Where it comes that far the processor is really there. Called
// by the probe of the accelerator.
//
// Memory: 0x1000 page tables (2 MiB, identity), 0x4000 interrupt table, 0x7c00 the sector.

export const BOOT_SECTOR_WORDS = 'snowfork-probe: ok';
/** SeaBIOS boots no disk that is as small as a sector. */
const DISK_BYTES = 1024 * 1024;
const SECTOR_BYTES = 512;
const SIGNATURE = 0xaa55;

const PROGRAM = [
  // 7c00  cli; cld; ds = es = ss = 0; sp = 0x7c00
  'fafc 31c0 8ed8 8ec0 8ed0 bc007c',
  // 7c0d  clear 0x1000 … 0x4fff
  'bf0010 b90010 6631c0 66f3ab',
  // 7c19  page tables: one entry on each level, the last for 2 MiB
  'c70600100320 c70600200330 c606003083',
  // 7c2a  interrupt gates 3 (breakpoint, 7ce9) and 8 (timer, 7cf0)
  'bf3040 66b8e97c0000 e82800  bf8040 66b8f07c0000 e81c00',
  // 7c42  lgdt; lidt; cr0.PE; jump to the 32-bit code
  '660f0116187d 660f011e1e7d 0f20c0 0c01 0f22c0 66ea697c00000800',
  // 7c5e  gate: offset ax, segment 0x18, an interrupt gate
  '8905 66c745021800008e c3',
  // 7c69  ds = es = ss = 0x10; cr4: PAE, SSE; cr3
  '66b81000 8ed8 8ec0 8ed0 0f20e0 0d20060000 0f22e0 b800100000 0f22d8',
  // 7c86  efer.LME; cr0: paging, no emulation; jump to the 64-bit code
  'b9800000c0 0f32 80cc01 0f30 0f20c0 24fb 0d02000080 0f22c0 eaa67c00001800',
  // 7ca6  esp = 0x7c00; cpuid; int3 sets ebx to 42
  'bc007c0000 31db 0fa2 31db cc',
  // 7cb2  twice 42 in floating point is 84, or stop
  '89d8 f2480f2ac0 f20f58c0 f2480f2cc0 83f854 751f',
  // 7cc7  only the timer; sti; hlt until it ticked three times; cli
  'b0fe e621 31db fb f4 83fb03 72fa fa',
  // 7cd5  write the words to port 0x3f8; stop: hlt for ever
  'be247d0000 66baf803 ac 84c0 7403 ee ebf8 f4 ebfd',
  // 7ce9  breakpoint: ebx = 42
  'bb2a000000 48cf',
  // 7cf0  timer: count, end of interrupt
  'ffc3 b020 e620 48cf',
  // 7cf8  segments: none, 32-bit code, data, 64-bit code
  '0000000000000000 ffff0000009acf00 ffff00000092cf00 ffff0000009aaf00',
  // 7d18  what lgdt and lidt load; the words follow
  '1f00f87c0000 8f0000400000',
].join('');

/** A disk image whose first sector is the program. */
export function probeBootSector(): Buffer {
  const disk = Buffer.alloc(DISK_BYTES);
  const program = Buffer.from(PROGRAM.replaceAll(' ', ''), 'hex');
  program.copy(disk);
  disk.write(`${BOOT_SECTOR_WORDS}\n\0`, program.length, 'latin1');
  disk.writeUInt16LE(SIGNATURE, SECTOR_BYTES - 2);
  return disk;
}
