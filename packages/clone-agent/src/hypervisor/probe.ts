// Which accelerator works here. That /dev/kvm opens proves nothing: it is tried, by booting. First a
// boot sector of our own, which goes through the modes that a kernel goes through; then, when an image
// is built, the very kernel that its guests will run. The answers are kept in the cache folder until
// the host is booted anew, as a KVM that hangs takes seconds to find out. Called by `hypervisor.ts`.

import fs from 'node:fs';
import path from 'node:path';
import { type Accelerator, SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';
import type { BootSource } from './arguments.js';
import type { QemuBinary } from './locate.js';
import { bootsKernel, bootsSector } from './probe-boot.js';

/** Whether something ran under KVM: true, or why not; absent: not tried. */
const evidenceSchema = z.object({
  /** QEMU's version and the host's boot that this holds for. */
  of: z.string(),
  sector: z.union([z.literal(true), z.string()]).optional(),
  kernel: z.union([z.literal(true), z.string()]).optional(),
});
type Evidence = z.infer<typeof evidenceSchema>;
const EVIDENCE_FILE = 'accelerator.json';

export interface AcceleratorChoice {
  readonly accelerator: Accelerator;
  /** For the log: why. */
  readonly reason: string;
}

/** KVM only if all that was tried worked, and at least the boot sector was tried. */
export function chooseAccelerator(evidence: {
  readonly sector?: true | string | undefined;
  readonly kernel?: true | string | undefined;
}): AcceleratorChoice {
  const { sector, kernel } = evidence;
  if (sector !== true) {
    return { accelerator: 'tcg', reason: `KVM runs no boot sector: ${sector ?? 'not tried'}` };
  }
  if (kernel !== undefined && kernel !== true) {
    return { accelerator: 'tcg', reason: `the guest's kernel does not boot under KVM: ${kernel}` };
  }
  const ran = kernel === true ? "the guest's kernel" : 'a boot sector';
  return { accelerator: 'kvm', reason: `${ran} ran under KVM` };
}

export interface ProbeOptions {
  readonly binary: QemuBinary;
  readonly cacheFolder: string;
  /** From the settings: use this one. */
  readonly forced: Accelerator | undefined;
  /** /dev/kvm when not given. */
  readonly device?: string;
  readonly signal?: AbortSignal | undefined;
}

export class AcceleratorProbe {
  readonly #options: ProbeOptions;
  #evidence: Evidence;

  /** @throws SnowforkError SF_QEMU_FAILED when the forced accelerator runs nothing. */
  static async start(options: ProbeOptions): Promise<AcceleratorProbe> {
    const probe = new AcceleratorProbe(options);
    const { forced } = options;
    if (forced === 'tcg') return probe;
    await probe.#trySector();
    const { sector } = probe.#evidence;
    if (forced === 'kvm' && sector !== true) {
      const remedy =
        'take the setting `accelerator` (or SNOWFORK_ACCEL) back to use software emulation';
      throw new SnowforkError(
        'SF_QEMU_FAILED',
        `KVM was asked for and runs nothing: ${sector}; ${remedy}`,
      );
    }
    return probe;
  }

  private constructor(options: ProbeOptions) {
    this.#options = options;
    const of = `QEMU ${options.binary.version}, boot ${bootId()}`;
    const kept = readEvidence(path.join(options.cacheFolder, EVIDENCE_FILE));
    this.#evidence = kept?.of === of ? kept : { of };
  }

  get choice(): AcceleratorChoice {
    const { forced } = this.#options;
    if (forced !== undefined) return { accelerator: forced, reason: 'the settings say so' };
    return chooseAccelerator(this.#evidence);
  }

  get accelerator(): Accelerator {
    return this.choice.accelerator;
  }

  /** The same, after the kernel was booted under KVM, if that has not been done yet. */
  async decide(boot: BootSource): Promise<Accelerator> {
    const { binary, forced, signal } = this.#options;
    if (forced === undefined && this.accelerator === 'kvm' && this.#evidence.kernel === undefined) {
      this.#remember({ kernel: await bootsKernel(binary, 'kvm', boot, signal) });
    }
    return this.accelerator;
  }

  async #trySector(): Promise<void> {
    const { binary, signal, device = '/dev/kvm' } = this.#options;
    const error = openError(device);
    // Not kept: who may open it can change at any time, and asking costs nothing.
    if (error !== undefined) this.#evidence.sector = `${device}: ${error}`;
    else if (this.#evidence.sector === undefined) {
      this.#remember({ sector: await bootsSector(binary, 'kvm', signal) });
    }
  }

  #remember(found: Omit<Evidence, 'of'>): void {
    this.#evidence = { ...this.#evidence, ...found };
    const file = path.join(this.#options.cacheFolder, EVIDENCE_FILE);
    fs.writeFileSync(file, `${JSON.stringify(this.#evidence)}\n`);
  }
}

function readEvidence(file: string): Evidence | undefined {
  try {
    return evidenceSchema.parse(JSON.parse(fs.readFileSync(file, 'utf8')));
  } catch {
    return undefined; // never written, or not by this version: found out anew
  }
}

function bootId(): string {
  return fs.readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim();
}

function openError(device: string): string | undefined {
  try {
    fs.closeSync(fs.openSync(device, 'r+'));
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}
