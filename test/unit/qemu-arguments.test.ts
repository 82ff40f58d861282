// QEMU's command line, what is read from its help texts, and which accelerator is chosen from what was
// tried. No QEMU is started.

import { describe, expect, it } from 'vitest';
import {
  DEFAULT_CPU_MODEL,
  defaultCpuModel,
  type MachineShape,
  qemuArguments,
  shapeKey,
} from '../../packages/clone-agent/src/hypervisor/arguments.js';
import {
  BOOT_SECTOR_WORDS,
  probeBootSector,
} from '../../packages/clone-agent/src/hypervisor/boot-sector.js';
import {
  isRecent,
  locateQemu,
  parseMachineType,
  parseProperties,
  parseVersion,
} from '../../packages/clone-agent/src/hypervisor/locate.js';
import { chooseAccelerator } from '../../packages/clone-agent/src/hypervisor/probe.js';

const shape: MachineShape = {
  machineType: 'pc-q35-7.2',
  accelerator: 'tcg',
  cpuModel: DEFAULT_CPU_MODEL,
  memoryBytes: 256 * 2 ** 20,
  vcpus: 1,
  diskPath: '/mnt/s1/disk0',
};
const machineProperties = new Set(['hpet', 'graphics', 'suppress-vmdesc']);
const common = { shape, name: 'vm', machineProperties };

/** The value behind a flag. */
function value(parameters: string[], flag: string): string {
  const index = parameters.indexOf(flag);
  expect(index, flag).toBeGreaterThanOrEqual(0);
  return parameters[index + 1]!;
}

describe('qemuArguments', () => {
  it('names the machine by its version, and only properties that this QEMU has', () => {
    const machine = value(qemuArguments(common), '-machine');
    expect(machine).toBe('pc-q35-7.2,graphics=off,hpet=off,suppress-vmdesc=on');
  });

  it('starts without RAM, stopped, waiting for a device state', () => {
    const parameters = qemuArguments(common);
    expect(parameters).toContain('--preconfig');
    expect(parameters).toContain('-S');
    expect(value(parameters, '-incoming')).toBe('defer');
    expect(parameters.join(' ')).not.toMatch(/memory-backend|mem-path|-kernel/);
    expect(value(parameters, '-m')).toBe('262144k');
  });

  it('boots a kernel with the same machine, differing in nothing else', () => {
    const boot = { kernel: '/k', initrd: '/i', commandLine: 'console=ttyS0' };
    const waiting = qemuArguments(common);
    const booting = qemuArguments({ ...common, boot });
    const source = ['-kernel', '/k', '-initrd', '/i', '-append', 'console=ttyS0'];
    const at = waiting.indexOf('-incoming');
    expect(booting).toEqual([...waiting.slice(0, at), ...source, ...waiting.slice(at + 2)]);
  });

  it('may start no process, and gains nothing by being QEMU', () => {
    const sandbox = value(qemuArguments(common), '-sandbox');
    for (const rule of ['on', 'spawn=deny', 'elevateprivileges=deny', 'resourcecontrol=deny']) {
      expect(sandbox.split(',')).toContain(rule);
    }
    expect(qemuArguments(common)).not.toContain('-daemonize');
  });

  it('opens the disk read-only, or has none', () => {
    const withDisk = qemuArguments(common).filter((argument) => argument.startsWith('driver='));
    expect(withDisk).toHaveLength(2);
    for (const node of withDisk) expect(node.split(',')).toContain('read-only=on');
    const without = qemuArguments({ ...common, shape: { ...shape, diskPath: undefined } });
    expect(without.join(' ')).not.toMatch(/blockdev|virtio-blk/);
  });

  it('makes its sockets in its working folder', () => {
    const parameters = qemuArguments(common);
    expect(parameters.join(' ')).toContain('path=qmp.sock,server=on,wait=on');
  });

  it('keeps commas in paths from starting an option of their own', () => {
    const parameters = qemuArguments({ ...common, shape: { ...shape, diskPath: '/a,share=on/b' } });
    expect(parameters.join(' ')).toContain('filename=/a,,share=on/b,locking=off');
  });
});

describe('defaultCpuModel', () => {
  const old = {
    accelerator: 'tcg',
    qemuVersion: '7.2.22',
    kernelRelease: '6.12.95-cloud',
  } as const;

  it('lacks CMPXCHG16B where the emulated one harms the kernel', () => {
    expect(defaultCpuModel(old)).toBe(`${DEFAULT_CPU_MODEL},-cx16`);
    expect(defaultCpuModel({ ...old, kernelRelease: '6.5.0' })).toContain('-cx16');
    expect(defaultCpuModel({ ...old, kernelRelease: '7.0.1' })).toContain('-cx16');
  });

  it.each([
    { accelerator: 'kvm' },
    { qemuVersion: '8.0.0' },
    { qemuVersion: '10.0.2' },
    { kernelRelease: '6.1.0-56-cloud-amd64' },
    { kernelRelease: '5.10.0' },
  ] as const)('has it with %j', (difference) => {
    expect(defaultCpuModel({ ...old, ...difference })).toBe(DEFAULT_CPU_MODEL);
  });
});

describe('shapeKey', () => {
  it('is equal for equal shapes, and differs in every field', () => {
    const others: MachineShape[] = [
      { ...shape, machineType: 'pc-q35-8.0' },
      { ...shape, accelerator: 'kvm' },
      { ...shape, cpuModel: 'max' },
      { ...shape, memoryBytes: 1 },
      { ...shape, vcpus: 2 },
      { ...shape, diskPath: undefined },
    ];
    expect(shapeKey({ ...shape })).toBe(shapeKey(shape));
    expect(new Set([shape, ...others].map(shapeKey)).size).toBe(others.length + 1);
  });
});

describe('what QEMU says of itself', () => {
  it('is read for version, machine type and properties', () => {
    expect(parseVersion('QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\n')).toBe('7.2.22');
    expect(parseVersion('no emulator')).toBeUndefined();
    const machines = 'pc   Standard PC (alias of pc-i440fx-7.2)\nq35   Q35 (alias of pc-q35-7.2)\n';
    expect(parseMachineType(machines)).toBe('pc-q35-7.2');
    expect(parseMachineType('none   empty machine\n')).toBeUndefined();
    const help = 'options:\n  hpet=<bool>   - Enable\n  smm=<OnOffAuto>\n';
    expect(parseProperties(help)).toEqual(new Set(['hpet', 'smm']));
  });

  it('tells which versions are recent enough', () => {
    expect(['7.2', '7.2.22', '7.10.0', '10.0.2'].filter(isRecent)).toHaveLength(4);
    expect(['7.1.9', '6.2.0', '2.12'].filter(isRecent)).toHaveLength(0);
  });

  it('is missed with the remedy', async () => {
    const missing = { code: 'SF_QEMU_MISSING', message: expect.stringMatching(/install/) };
    await expect(locateQemu({ PATH: '/nowhere' })).rejects.toMatchObject(missing);
    await expect(locateQemu({ SNOWFORK_QEMU: '/nowhere/qemu' })).rejects.toMatchObject(missing);
    await expect(locateQemu({ SNOWFORK_QEMU: '/bin/true' })).rejects.toMatchObject(missing);
  });
});

describe('chooseAccelerator', () => {
  it('takes KVM only when all that was tried ran', () => {
    expect(chooseAccelerator({ sector: true }).accelerator).toBe('kvm');
    expect(chooseAccelerator({ sector: true, kernel: true }).accelerator).toBe('kvm');
  });

  it.each([
    [{}, /not tried/],
    [{ sector: '/dev/kvm: EACCES' }, /EACCES/],
    [{ sector: 'no answer in 3000 ms' }, /no answer/],
    [{ sector: true, kernel: 'no answer in 15000 ms' } as const, /kernel.*no answer/],
    [{ sector: 'no answer', kernel: true } as const, /no answer/],
  ])('falls back with the reason: %j', (evidence, words) => {
    const { accelerator, reason } = chooseAccelerator(evidence);
    expect(accelerator).toBe('tcg');
    expect(reason).toMatch(words);
  });
});

describe('the boot sector', () => {
  it('fits a sector, carries its words and the signature', () => {
    const disk = probeBootSector();
    expect(disk.readUInt16LE(510)).toBe(0xaa55);
    expect(disk.indexOf(`${BOOT_SECTOR_WORDS}\n\0`)).toBe(0x124);
    expect(disk.subarray(512).every((byte) => byte === 0)).toBe(true);
  });
});

it('stands still when its disk can not be read, and tells its guest nothing', () => {
  const devices = qemuArguments(common).filter((argument) => argument.startsWith('virtio-blk'));
  expect(devices).toHaveLength(1);
  expect(devices[0]!.split(',')).toContain('rerror=stop');
});
