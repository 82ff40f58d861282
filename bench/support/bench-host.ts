// The bench's own agent, so that one in use on this machine is not touched; it ends when this process
// does, however it does. Its state folder stays from one run to the next for the images.

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { connect, type Host } from '@snowfork/sdk';

/** The project's folder; this file runs from `bench/dist/support`. */
export const projectFolder = path.resolve(fileURLToPath(import.meta.url), '../../../..');
export const stateFolder = process.env.SNOWFORK_BENCH_STATE ?? '/var/tmp/snowfork-bench';
export const imageFile = path.join(projectFolder, 'images/minimal.yaml');

/** A QEMU takes less than that to start. */
const POOL_POLL_MS = 300;
const POOL_TIMEOUT_MS = 120_000;

export interface BenchImage {
  readonly name: string;
  readonly memoryMib: number;
}

/** `minimal` with other sizes of RAM. */
export const benchImages: readonly BenchImage[] = [256, 1024, 2048].map((memoryMib) => ({
  name: `bench-${memoryMib}`,
  memoryMib,
}));

export function benchImage(memoryMib: number): BenchImage {
  return benchImages.find((image) => image.memoryMib === memoryMib)!;
}

export function say(words: string): void {
  process.stderr.write(`bench: ${words}\n`);
}

/** An agent with these settings; the one before it must have been ended. */
export async function startHost(settings: { warmPoolSize: number }): Promise<Host> {
  process.env.SNOWFORK_OWNER = String(process.pid);
  fs.mkdirSync(stateFolder, { recursive: true, mode: 0o700 });
  const left = await connect({ stateFolder, start: false }).catch(() => undefined);
  if (left !== undefined) await endHost(left);
  fs.writeFileSync(path.join(stateFolder, 'settings.json'), JSON.stringify(settings));
  return connect({ stateFolder });
}

export async function endHost(host: Host): Promise<void> {
  await host.shutDown();
  await host.close();
}

/** Builds those of the images that are missing or out of date; of all sizes when none is said. */
export async function buildImages(host: Host, sizesMib?: readonly number[]): Promise<void> {
  for (const { name, memoryMib } of benchImages) {
    if (sizesMib !== undefined && !sizesMib.includes(memoryMib)) continue;
    const startedAt = performance.now();
    const request = { name, file: imageFile, memory: `${memoryMib}M` };
    const { unchanged } = await host.buildImage(request);
    if (unchanged) continue;
    say(`built ${name} in ${Math.round((performance.now() - startedAt) / 1000)} s`);
  }
}

/** Until the pool holds as many QEMUs as it may, for every shape that was launched. */
export async function poolFilled(host: Host): Promise<void> {
  const deadline = performance.now() + POOL_TIMEOUT_MS;
  let readyBefore = -1;
  for (;;) {
    const { pool } = await host.stats();
    if (pool.size === 0) return;
    const isFull = pool.ready > 0 && pool.ready % pool.size === 0;
    if (isFull && pool.ready === readyBefore) return;
    if (performance.now() > deadline) throw new Error(`the pool stays at ${pool.ready}`);
    readyBefore = pool.ready;
    await delay(POOL_POLL_MS);
  }
}
