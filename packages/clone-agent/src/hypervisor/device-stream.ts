// The device state that QEMU writes (`xen-save-devices-state`) and the stream that a clone's QEMU is
// given. Reads no file and no guest memory; never changes the devices' own bytes. Called by the
// freeze (where the guest's VMCOREINFO lies) and by whoever starts a clone.
//
// A stream; integers are big endian:
//
//   0        4         8
//  +--------+---------+-----------------+---------+-----+---------+----+---------------+
//  | "QEVM" | version | [configuration] | section | …   | section | 00 | [description] |
//  +--------+---------+-----------------+---------+-----+---------+----+---------------+
//
//  configuration  07 | u32 length | name of the machine type      only in what a clone is given
//  section        04 | u32 id | u8 n | idstr | u32 instance | u32 version | payload | 7e | u32 id
//  description    06 | u32 length | JSON                          likewise
//
// The payload's length is nowhere: only the device that reads it knows. So a section ends at the
// first footer that carries its id and has a section, or the stream's end, right behind it.

const MAGIC = 0x5145564d; // "QEVM"
const VERSION = 3;
const HEADER_BYTES = 8;
const OFFSET = { magic: 0, version: 4 } as const;
/** Within a section. */
const SECTION_OFFSET = { id: 1, idstrLength: 5, idstr: 6 } as const;
/** What a section has besides its idstr and payload, without the footer. */
const SECTION_BYTES = 14;
const FOOTER_BYTES = 5;

const Mark = {
  end: 0x00,
  fullSection: 0x04,
  description: 0x06,
  configuration: 0x07,
  footer: 0x7e,
} as const;

/** Largest stream that is read at all; a q35 machine's has 0.1 MB. */
export const DEVICE_STATE_BYTES_MAX = 64 * 1024 * 1024;
export const SECTIONS_MAX = 1024;
const MACHINE_TYPE_BYTES_MAX = 255;
const SECTION_ID_MAX = 0xffff;
const SECTION_VERSION_MAX = 0xffff;
/** A reader that finds no description prints a warning; an empty one keeps it quiet. */
const EMPTY_DESCRIPTION = Buffer.from('{}');

/** What the `vmcoreinfo` device saves: flag u8, two formats u16, size u32, address u64. */
const VMCOREINFO = {
  idstr: 'vmcoreinfo',
  bytes: 17,
  present: 0,
  guestFormat: 3,
  sizeBytes: 5,
  physicalAddress: 9,
} as const;

/** Name, instance and version of the first section; then i64 ticks, 8 unused bytes, i64 ns. */
const TIMER_SECTION = Buffer.from('\x05timer\0\0\0\0\0\0\0\x02', 'latin1');
const TIMER_CLOCK_OFFSET = 16;

/** Thrown by this file's functions, and nothing else is: the bytes are no device state of QEMU's. */
export class DeviceStreamError extends Error {
  override readonly name = 'DeviceStreamError';
}

export interface DeviceSection {
  readonly id: number;
  readonly idstr: string;
  readonly instance: number;
  readonly version: number;
  readonly payloadStart: number;
  /** Just behind the payload. */
  readonly payloadEnd: number;
}

export interface DeviceState {
  /** The machine type of the configuration section; absent in what `xen-save-devices-state` writes. */
  readonly machineType: string | undefined;
  readonly sections: readonly DeviceSection[];
}

export interface VmcoreinfoLocation {
  readonly hasVmcoreinfo: boolean;
  /** 0 none, 1 ELF note. */
  readonly guestFormat: number;
  readonly sizeBytes: number;
  readonly physicalAddress: bigint;
}

/**
 * The sections of a device state. A guest that knows QEMU well can put bytes into its registers that
 * look like a section; believe of it what you would believe of the guest.
 * @throws DeviceStreamError
 */
export function parseDeviceState(stream: Buffer): DeviceState {
  checkHeader(stream);
  const configuration = readConfiguration(stream);
  const sections: DeviceSection[] = [];
  let offset = configuration.end;
  while (stream[offset] !== Mark.end) {
    if (sections.length >= SECTIONS_MAX) throw new DeviceStreamError('too many sections');
    const section = readSection(stream, offset);
    sections.push(section);
    offset = section.payloadEnd + FOOTER_BYTES;
  }
  if (!isEnd(stream, offset)) throw new DeviceStreamError('bytes after the end of the stream');
  return { machineType: configuration.machineType, sections };
}

/** Where the guest put its VMCOREINFO note; undefined when the machine has no such device. */
export function findVmcoreinfo(stream: Buffer): VmcoreinfoLocation | undefined {
  const { sections } = parseDeviceState(stream);
  const section = sections.find(({ idstr }) => idstr === VMCOREINFO.idstr);
  if (section === undefined) return undefined;
  const payload = stream.subarray(section.payloadStart, section.payloadEnd);
  if (payload.length !== VMCOREINFO.bytes)
    throw new DeviceStreamError('vmcoreinfo of wrong length');
  return {
    hasVmcoreinfo: payload[VMCOREINFO.present] !== 0,
    guestFormat: payload.readUInt16BE(VMCOREINFO.guestFormat),
    sizeBytes: payload.readUInt32BE(VMCOREINFO.sizeBytes),
    physicalAddress: payload.readBigUInt64BE(VMCOREINFO.physicalAddress),
  };
}

/**
 * What QEMU's virtual clock showed when the machine stood still; undefined when the stream does not
 * say. It goes on from there in the machine itself, and in every clone.
 */
export function virtualClockMs(stream: Buffer): number | undefined {
  const at = stream.indexOf(TIMER_SECTION);
  const nanoseconds = at + TIMER_SECTION.length + TIMER_CLOCK_OFFSET;
  if (at < 0 || stream.length < nanoseconds + 8) return undefined;
  return Number(stream.readBigInt64BE(nanoseconds)) / 1e6;
}

/**
 * The whole incoming stream of a clone: the device state with the configuration that
 * `xen-save-devices-state` leaves out. No RAM: that is mapped from the snapshot.
 * @throws DeviceStreamError
 */
export function synthesiseStream(deviceState: Buffer, machineType: string): Buffer {
  checkHeader(deviceState);
  const name = Buffer.from(machineType, 'latin1');
  if (name.length === 0 || name.length > MACHINE_TYPE_BYTES_MAX) {
    throw new DeviceStreamError(`not a machine type: ${machineType}`);
  }
  if (deviceState[HEADER_BYTES] !== Mark.fullSection) {
    throw new DeviceStreamError('the device state does not begin with a section');
  }
  if (deviceState.at(-1) !== Mark.end) throw new DeviceStreamError('the device state is cut short');
  return Buffer.concat([
    deviceState.subarray(0, HEADER_BYTES),
    marked(Mark.configuration, name),
    deviceState.subarray(HEADER_BYTES),
    marked(Mark.description, EMPTY_DESCRIPTION),
  ]);
}

function checkHeader(stream: Buffer): void {
  if (stream.length < HEADER_BYTES + 1) throw new DeviceStreamError('shorter than its header');
  if (stream.length > DEVICE_STATE_BYTES_MAX) throw new DeviceStreamError('too long');
  if (stream.readUInt32BE(OFFSET.magic) !== MAGIC) throw new DeviceStreamError('not a QEMU stream');
  const version = stream.readUInt32BE(OFFSET.version);
  if (version !== VERSION) throw new DeviceStreamError(`stream of version ${version}`);
}

function readConfiguration(stream: Buffer): { machineType: string | undefined; end: number } {
  if (stream[HEADER_BYTES] !== Mark.configuration) {
    return { machineType: undefined, end: HEADER_BYTES };
  }
  const start = HEADER_BYTES + FOOTER_BYTES;
  if (stream.length < start) throw new DeviceStreamError('configuration cut short');
  const length = stream.readUInt32BE(HEADER_BYTES + 1);
  if (length > MACHINE_TYPE_BYTES_MAX) throw new DeviceStreamError('machine type too long');
  return { machineType: stream.toString('latin1', start, start + length), end: start + length };
}

function readSection(stream: Buffer, offset: number): DeviceSection {
  if (!isSection(stream, offset)) throw new DeviceStreamError(`no section at byte ${offset}`);
  const idstrEnd = offset + SECTION_OFFSET.idstr + stream[offset + SECTION_OFFSET.idstrLength]!;
  const payloadStart = idstrEnd + 8;
  return {
    id: stream.readUInt32BE(offset + SECTION_OFFSET.id),
    idstr: stream.toString('latin1', offset + SECTION_OFFSET.idstr, idstrEnd),
    instance: stream.readUInt32BE(idstrEnd),
    version: stream.readUInt32BE(idstrEnd + 4),
    payloadStart,
    payloadEnd: findFooter(stream, offset, payloadStart),
  };
}

function findFooter(stream: Buffer, sectionStart: number, payloadStart: number): number {
  const footer = Buffer.alloc(FOOTER_BYTES);
  footer[0] = Mark.footer;
  stream.copy(
    footer,
    1,
    sectionStart + SECTION_OFFSET.id,
    sectionStart + SECTION_OFFSET.idstrLength,
  );
  let at = stream.indexOf(footer, payloadStart);
  while (at >= 0) {
    const next = at + FOOTER_BYTES;
    if (isEnd(stream, next) || isSection(stream, next)) return at;
    at = stream.indexOf(footer, at + 1);
  }
  throw new DeviceStreamError(`the section at byte ${sectionStart} has no footer`);
}

function isSection(stream: Buffer, offset: number): boolean {
  if (offset + SECTION_BYTES > stream.length || stream[offset] !== Mark.fullSection) return false;
  if (stream.readUInt32BE(offset + SECTION_OFFSET.id) > SECTION_ID_MAX) return false;
  const idstrStart = offset + SECTION_OFFSET.idstr;
  const idstrEnd = idstrStart + stream[offset + SECTION_OFFSET.idstrLength]!;
  if (idstrEnd === idstrStart || idstrEnd + 8 > stream.length) return false;
  if (stream.readUInt32BE(idstrEnd + 4) > SECTION_VERSION_MAX) return false;
  return stream.subarray(idstrStart, idstrEnd).every((byte) => byte > 0x20 && byte < 0x7f);
}

/** The end mark, and nothing or exactly a description behind it. */
function isEnd(stream: Buffer, offset: number): boolean {
  if (stream[offset] !== Mark.end) return false;
  const rest = stream.length - offset - 1;
  if (rest === 0) return true;
  if (stream[offset + 1] !== Mark.description || rest < FOOTER_BYTES) return false;
  return stream.readUInt32BE(offset + 2) === rest - FOOTER_BYTES;
}

/** A mark, the length, the bytes. */
function marked(mark: number, bytes: Buffer): Buffer {
  const head = Buffer.alloc(FOOTER_BYTES);
  head[0] = mark;
  head.writeUInt32BE(bytes.length, 1);
  return Buffer.concat([head, bytes]);
}
