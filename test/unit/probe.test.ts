// The probe of the accelerator, with both answers: scripts stand for QEMU, one that boots, one that
// hangs, one that fails, and each writes down that it was started. That the boot sector itself is
// right is seen under software emulation (`test/vm/hypervisor`).

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { BOOT_SECTOR_WORDS } from '../../packages/clone-agent/src/hypervisor/boot-sector.js';
import type { QemuBinary } from '../../packages/clone-agent/src/hypervisor/locate.js';
import {
  AcceleratorProbe,
  type ProbeOptions,
} from '../../packages/clone-agent/src/hypervisor/probe.js';

/** It opens for everybody. */
const DEVICE = '/dev/null';
const SECTOR_BOOTS = `echo "${BOOT_SECTOR_WORDS}"; exec sleep 1000`;
const HANGS = 'echo "SeaBIOS and no more"; exec sleep 1000';
const FAILS = 'echo "qemu: failed to initialize kvm" >&2; exit 1';
const KERNEL_BOOTS = 'echo "VFS: Unable to mount root fs"; exec sleep 1000';

let folder: string;

beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-probe-unit-'));
});

afterEach(() => fs.rmSync(folder, { recursive: true, force: true }));

/** A program that does so in place of QEMU, and differently when it is given a kernel. */
function standIn(script: string, withKernel = FAILS, version = '7.2.22'): QemuBinary {
  const file = path.join(folder, `qemu-${version}`);
  const choose = `case " $* " in *" -kernel "*) ${withKernel} ;; *) ${script} ;; esac`;
  fs.writeFileSync(file, `#!/bin/sh\necho "$$ $*" >> "${started()}"\n${choose}\n`, { mode: 0o755 });
  return { path: file, version, machineType: 'pc-q35-7.2', machineProperties: new Set() };
}

function started(): string {
  return path.join(folder, 'started');
}

/** The command lines of all that were started, with their process ids. */
function starts(): string[] {
  return fs.existsSync(started()) ? fs.readFileSync(started(), 'utf8').trim().split('\n') : [];
}

function probe(binary: QemuBinary, options: Partial<ProbeOptions> = {}): Promise<AcceleratorProbe> {
  return AcceleratorProbe.start({
    ...{ binary, cacheFolder: folder, forced: undefined, device: DEVICE },
    ...options,
  });
}

function isRunning(pid: number): boolean {
  return fs.existsSync(`/proc/${pid}`);
}

describe('the probe', () => {
  test('takes KVM where the boot sector says its words, and ends what it started', async () => {
    const { choice } = await probe(standIn(SECTOR_BOOTS));
    expect(choice).toEqual({ accelerator: 'kvm', reason: 'a boot sector ran under KVM' });
    const [line] = starts();
    expect(line).toContain('-accel kvm');
    expect(isRunning(Number.parseInt(line!, 10))).toBe(false);
  });

  test('takes software emulation where it hangs, says what came, and ends it', async () => {
    const { choice } = await probe(standIn(HANGS));
    expect(choice.accelerator).toBe('tcg');
    expect(choice.reason).toMatch(/^KVM runs no boot sector: no answer in \d+ ms: SeaBIOS and no/);
    expect(isRunning(Number.parseInt(starts()[0]!, 10))).toBe(false);
  });

  test("takes software emulation where QEMU fails, with QEMU's words", async () => {
    const { choice } = await probe(standIn(FAILS));
    expect(choice.accelerator).toBe('tcg');
    expect(choice.reason).toContain('QEMU ended: qemu: failed to initialize kvm');
  });

  test('and where the program cannot be started at all', async () => {
    const binary = { ...standIn(SECTOR_BOOTS), path: path.join(folder, 'nobody') };
    const { choice } = await probe(binary);
    expect(choice).toMatchObject({ accelerator: 'tcg', reason: expect.stringContaining('ENOENT') });
  });

  test('starts nothing where the device does not open, and asks again next time', async () => {
    const binary = standIn(SECTOR_BOOTS);
    const closed = await probe(binary, { device: path.join(folder, 'kvm') });
    expect(closed.choice.reason).toMatch(/kvm: ENOENT$/);
    expect(starts()).toEqual([]);
    expect((await probe(binary)).accelerator).toBe('kvm');
  });

  test.each([
    ['that it works', SECTOR_BOOTS, 'kvm'],
    ['that it fails', FAILS, 'tcg'],
  ])('remembers %s, until QEMU is another', async (_what, script, accelerator) => {
    const first = await probe(standIn(script));
    const second = await probe(standIn(script));
    expect(second.choice).toEqual(first.choice);
    expect(second.accelerator).toBe(accelerator);
    expect(starts()).toHaveLength(1);
    await probe(standIn(script, FAILS, '10.0.2'));
    expect(starts()).toHaveLength(2);
  });

  test('believes no older answer where the device does not open any more', async () => {
    const binary = standIn(SECTOR_BOOTS);
    await probe(binary);
    const closed = await probe(binary, { device: path.join(folder, 'kvm') });
    expect(closed.accelerator).toBe('tcg');
    expect((await probe(binary)).accelerator).toBe('kvm');
    expect(starts()).toHaveLength(1);
  });

  test.each(['', '{', '{"of":1}', 'null'])('does not believe a file with %j', async (content) => {
    fs.writeFileSync(path.join(folder, 'accelerator.json'), content);
    expect((await probe(standIn(SECTOR_BOOTS))).accelerator).toBe('kvm');
    expect(starts()).toHaveLength(1);
  });

  test('can be given up, and ends what it started', async () => {
    const caller = new AbortController();
    const probing = probe(standIn(HANGS), { signal: caller.signal });
    await expect.poll(starts).toHaveLength(1);
    caller.abort();
    await expect(probing).rejects.toMatchObject({ code: 'SF_ABORTED' });
    expect(isRunning(Number.parseInt(starts()[0]!, 10))).toBe(false);
  });
});

describe("the guest's kernel", () => {
  const boot = { kernel: '/boot/vmlinuz' };

  test('that boots confirms KVM', async () => {
    const tried = await probe(standIn(SECTOR_BOOTS, KERNEL_BOOTS));
    expect(await tried.decide(boot)).toBe('kvm');
    expect(tried.choice.reason).toBe("the guest's kernel ran under KVM");
  });

  test('that does not boot turns to software emulation, and is tried once', async () => {
    const binary = standIn(SECTOR_BOOTS, FAILS);
    const tried = await probe(binary);
    expect(tried.accelerator).toBe('kvm');
    expect(await tried.decide(boot)).toBe('tcg');
    expect(tried.choice.reason).toContain("the guest's kernel does not boot under KVM: QEMU ended");
    expect(await (await probe(binary)).decide(boot)).toBe('tcg');
    expect(starts()).toHaveLength(2);
  });

  test('is not tried where no boot sector ran', async () => {
    expect(await (await probe(standIn(FAILS, KERNEL_BOOTS))).decide(boot)).toBe('tcg');
    expect(starts()).toHaveLength(1);
  });
});

describe('an accelerator that is forced', () => {
  test('is software emulation without a try', async () => {
    const { choice } = await probe(standIn(SECTOR_BOOTS), { forced: 'tcg' });
    expect(choice).toEqual({ accelerator: 'tcg', reason: 'the settings say so' });
    expect(starts()).toEqual([]);
  });

  test("is KVM where the sector boots, whatever the guest's kernel does", async () => {
    const forced = await probe(standIn(SECTOR_BOOTS, FAILS), { forced: 'kvm' });
    expect(await forced.decide({ kernel: '/boot/vmlinuz' })).toBe('kvm');
    expect(starts()).toHaveLength(1);
  });

  test('is an error where KVM runs nothing, that says how to get back', async () => {
    await expect(probe(standIn(FAILS), { forced: 'kvm' })).rejects.toMatchObject({
      code: 'SF_QEMU_FAILED',
      message: expect.stringMatching(/failed to initialize kvm.*SNOWFORK_ACCEL/),
    });
  });
});
