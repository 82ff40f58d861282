// The machine that every VM has, as QEMU's command line. Decides which devices there are and nothing
// about when they start; touches no file. Called by `qemu.ts`.
//
// QEMU always starts in `--preconfig`, without RAM: that is given to it later by QMP. So a QEMU can
// be started long before it is known which snapshot it will run (the warm pool), and there is one
// way to start, whether warm, cold or for the boot of an image.

import path from 'node:path';
import type { Accelerator } from '@snowfork/sdk/api';

/**
 * Instructions of x86-64-v2 and AES, which every processor since 2010 has, of either vendor. Under
 * KVM the vendor is the host's; under TCG it is AMD's, so that Linux leaves out page table isolation,
 * which would flush TCG's translations at each system call.
 */
export const DEFAULT_CPU_MODEL = 'qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes';
/** The first whose emulation of CMPXCHG16B gets the flags right. */
const QEMU_CMPXCHG16B_MAJOR = 8;
/** The first that reads the flags right behind that instruction, at each allocation. */
const LINUX_FLAGS_READ = { major: 6, minor: 5 } as const;

/** The name of the guest's port. */
export const PORT_NAME = 'org.snowfork.0';
/** QEMU's id of the RAM, and of the object that backs it. */
export const MEMORY_ID = 'pc.ram';

/** Megabytes of host memory for translated code; QEMU's own default is an eighth of all RAM. */
const TRANSLATION_CACHE_MIB = 64;

const MACHINE_PROPERTIES: readonly string[] = [
  'graphics=off',
  'usb=off',
  'vmport=off',
  'sata=off',
  'smbus=off',
  'smm=off',
  'hpet=off',
  'mem-merge=off',
  'dump-guest-core=off',
  'suppress-vmdesc=on',
];
const SANDBOX = 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny';

/** What a snapshot's device state depends on, and the disk that a warm QEMU has open. */
export interface MachineShape {
  /** A versioned name, such as `pc-q35-7.2`. */
  readonly machineType: string;
  readonly accelerator: Accelerator;
  readonly cpuModel: string;
  readonly memoryBytes: number;
  readonly vcpus: number;
  /** A read-only raw image. */
  readonly diskPath: string | undefined;
}

/** Boots a kernel instead of waiting for a device state. */
export interface BootSource {
  readonly kernel: string;
  readonly initrd?: string | undefined;
  readonly commandLine?: string | undefined;
}

/** Runs a program in place of QEMU's firmware, from the processor's reset on; no kernel. */
export interface FirmwareSource {
  readonly firmware: string;
}

export interface QemuFiles {
  readonly qmp: string;
  readonly port: string;
  readonly console: string;
}

/** The sockets of a QEMU in its folder. */
export function qemuFiles(folder: string): QemuFiles {
  // QEMU itself is given the names alone: it is started in the folder.
  return {
    qmp: path.join(folder, 'qmp.sock'),
    port: path.join(folder, 'port.sock'),
    console: path.join(folder, 'console.sock'),
  };
}

/**
 * The model of images that name none: without CMPXCHG16B where the emulated one makes the guest's
 * kernel panic now and then (`docs/adr/0007-no-cmpxchg16b-in-old-emulation.md`).
 */
export function defaultCpuModel(of: {
  readonly accelerator: Accelerator;
  readonly qemuVersion: string;
  readonly kernelRelease: string;
}): string {
  const [qemuMajor = 0] = of.qemuVersion.split('.').map(Number);
  const [major = 0, minor = 0] = of.kernelRelease.split(/[^0-9]+/).map(Number);
  const readsFlags =
    major > LINUX_FLAGS_READ.major ||
    (major === LINUX_FLAGS_READ.major && minor >= LINUX_FLAGS_READ.minor);
  const isWrong = of.accelerator === 'tcg' && qemuMajor < QEMU_CMPXCHG16B_MAJOR;
  return isWrong && readsFlags ? `${DEFAULT_CPU_MODEL},-cx16` : DEFAULT_CPU_MODEL;
}

/** Equal for shapes whose QEMUs can stand for each other. */
export function shapeKey(shape: MachineShape): string {
  const { machineType, accelerator, cpuModel, memoryBytes, vcpus, diskPath } = shape;
  return JSON.stringify([machineType, accelerator, cpuModel, memoryBytes, vcpus, diskPath ?? null]);
}

export interface QemuArguments {
  readonly shape: MachineShape;
  /** Shown in process lists. */
  readonly name: string;
  /** Of the machine type, in this QEMU: those that it lacks are left alone. */
  readonly machineProperties: ReadonlySet<string>;
  /** Boot this; without it QEMU waits for a device state. */
  readonly boot?: BootSource | FirmwareSource | undefined;
}

export function qemuArguments(options: QemuArguments): string[] {
  const { shape, boot } = options;
  // In its working folder: QEMU may not be allowed to pass those above.
  const files = qemuFiles('');
  const machine = [
    shape.machineType,
    ...MACHINE_PROPERTIES.filter(known(options.machineProperties)),
  ];
  return [
    ...['-name', `guest=${quoted(options.name)}`],
    ...['-machine', machine.join(',')],
    ...['-accel', acceleratorArgument(shape.accelerator)],
    ...['-cpu', shape.cpuModel],
    ...['-smp', String(shape.vcpus)],
    ...['-m', `${Math.ceil(shape.memoryBytes / 1024)}k`],
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none'],
    ...['-sandbox', SANDBOX],
    // QEMU goes on when the agent has connected: its monitor moves to a thread of its own, and a
    // connection that is made meanwhile may end up with two that read it.
    ...['-chardev', socketServer('qmp', files.qmp, 'wait=on'), '-mon', 'chardev=qmp,mode=control'],
    ...['-chardev', socketServer('console', files.console), '-serial', 'chardev:console'],
    ...['-device', 'virtio-serial-pci,max_ports=2'],
    ...['-chardev', socketServer('port', files.port)],
    ...['-device', `virtserialport,chardev=port,name=${PORT_NAME}`],
    ...diskArguments(shape.diskPath),
    ...['-device', 'vmcoreinfo', '-device', 'vmgenid,guid=auto'],
    ...(boot === undefined ? ['-incoming', 'defer'] : bootArguments(boot)),
    ...['--preconfig', '-S'],
  ];
}

function known(properties: ReadonlySet<string>): (setting: string) => boolean {
  return (setting) => properties.has(setting.split('=', 1)[0]!);
}

function acceleratorArgument(accelerator: Accelerator): string {
  return accelerator === 'kvm' ? 'kvm' : `tcg,tb-size=${TRANSLATION_CACHE_MIB}`;
}

function socketServer(id: string, socketPath: string, wait = 'wait=off'): string {
  return `socket,id=${id},path=${quoted(socketPath)},server=on,${wait}`;
}

function diskArguments(diskPath: string | undefined): string[] {
  if (diskPath === undefined) return [];
  // No lock: the file is immutable, and a lock would be one more request to the pager.
  const file = `driver=file,filename=${quoted(diskPath)},locking=off`;
  const options = 'node-name=disk0,read-only=on,auto-read-only=off';
  return [
    ...['-blockdev', `${file},node-name=disk0-file,read-only=on,auto-read-only=off`],
    ...['-blockdev', `driver=raw,file=disk0-file,${options}`],
    // A guest that was told of an error would go on without what it wanted to read.
    ...['-device', 'virtio-blk-pci,drive=disk0,num-queues=1,rerror=stop'],
  ];
}

function bootArguments(boot: BootSource | FirmwareSource): string[] {
  if ('firmware' in boot) return ['-bios', boot.firmware];
  const { kernel, initrd, commandLine } = boot;
  return [
    ...['-kernel', kernel],
    ...(initrd === undefined ? [] : ['-initrd', initrd]),
    ...(commandLine === undefined ? [] : ['-append', commandLine]),
  ];
}

/** A comma ends a value, two stand for one. */
function quoted(value: string): string {
  return value.replaceAll(',', ',,');
}
