// Which accelerator this host's VMs run on, once for all: what the owner forces, what an earlier probe
// found with the same QEMU and the same host kernel, or a new probe. A probe that booted a guest's
// kernel is decisive and remembered; one with the boot sector alone holds until such a kernel is there.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type Accelerator, acceleratorSchema } from '@snowfork/sdk/api';
import type { Logger } from 'pino';
import { z } from 'zod';
import type { QemuBinary } from './locate.js';
import { type AcceleratorChoice, type ProbeKernel, probeAccelerator } from './probe.js';

const rememberedSchema = z.object({
  qemuVersion: z.string(),
  hostKernel: z.string(),
  accelerator: acceleratorSchema,
  reason: z.string(),
});

export interface AcceleratorOptions {
  readonly binary: QemuBinary;
  /** The state folder. */
  readonly folder: string;
  readonly forced: Accelerator | undefined;
  readonly log: Logger;
}

export class AcceleratorDecision {
  readonly #options: AcceleratorOptions;
  #choice: AcceleratorChoice;
  #decisive: boolean;

  static async start(options: AcceleratorOptions): Promise<AcceleratorDecision> {
    const { binary, forced } = options;
    const remembered = forced === undefined ? recall(options) : undefined;
    const choice = remembered ?? (await probeAccelerator(binary, { forced }));
    return new AcceleratorDecision(options, choice, forced !== undefined || remembered !== undefined);
  }

  private constructor(options: AcceleratorOptions, choice: AcceleratorChoice, decisive: boolean) {
    this.#options = options;
    this.#choice = choice;
    this.#decisive = decisive;
    options.log.info(choice, 'accelerator');
  }

  get accelerator(): Accelerator {
    return this.#choice.accelerator;
  }

  /** With the kernel that guests will run. */
  async decide(kernel: ProbeKernel): Promise<Accelerator> {
    if (this.#decisive) return this.accelerator;
    const { binary, log } = this.#options;
    // What the boot sector could not do, no kernel can.
    if (this.accelerator === 'kvm') this.#choice = await probeAccelerator(binary, { kernel });
    this.#decisive = true;
    remember(this.#options, this.#choice);
    log.info(this.#choice, 'accelerator');
    return this.accelerator;
  }
}

function fileOf({ folder }: AcceleratorOptions): string {
  return path.join(folder, 'accelerator.json');
}

function recall(options: AcceleratorOptions): AcceleratorChoice | undefined {
  try {
    const { qemuVersion, hostKernel, ...choice } = rememberedSchema.parse(
      JSON.parse(fs.readFileSync(fileOf(options), 'utf8')),
    );
    const isSameHost = qemuVersion === options.binary.version && hostKernel === os.release();
    return isSameHost ? choice : undefined;
  } catch {
    return undefined; // absent or of no use: a probe answers anew
  }
}

function remember(options: AcceleratorOptions, choice: AcceleratorChoice): void {
  const host = { qemuVersion: options.binary.version, hostKernel: os.release() };
  fs.writeFileSync(fileOf(options), JSON.stringify({ ...host, ...choice }));
}
