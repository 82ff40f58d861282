// Decides whether a VM can be forked here by forking one: launch, fork, a command in the clone, kill.
// It leaves nothing behind. Called by `sf doctor`.

import type { DoctorCheck } from '../../api/doctor.js';
import { SnowforkError } from '../../api/errors.js';
import type { ImageInfo } from '../../api/schemas.js';
import type { Host } from '../../host/host.js';
import { formatDuration } from '../format.js';
import { fail, ok } from './judge.js';

const TRIAL_TIMEOUT_MS = 60_000;

/** Of the images the smallest that can be forked; fails when none can. */
export async function tryFork(host: Host, signal: AbortSignal): Promise<DoctorCheck> {
  const images = await host.images({ signal });
  if (images.length === 0) {
    return fail('fork', 'no image is built yet', '`sf image build minimal`');
  }
  const reasons: string[] = [];
  for (const image of [...images].sort(bySize)) {
    try {
      return ok('fork', await forkOne(host, image, signal));
    } catch (error) {
      if (signal.aborted) throw error;
      reasons.push(`${image.name}: ${SnowforkError.from(error).message}`);
    }
  }
  return fail('fork', reasons.join('; '), 'build an image anew: `sf image build minimal --force`');
}

async function forkOne(host: Host, image: ImageInfo, signal: AbortSignal): Promise<string> {
  const wait = { signal, timeoutMs: TRIAL_TIMEOUT_MS };
  const launchedAt = performance.now();
  await using vm = await host.launch(image.name, wait);
  const forkedAt = performance.now();
  const { clones, freeze } = await vm.fork(1, wait);
  const answeredAt = performance.now();
  const clone = clones[0];
  if (clone?.status !== 'fulfilled') throw clone?.reason ?? new Error('there was no clone');
  await using copy = clone.value;
  const { code } = await copy.exec('true', wait);
  if (code !== 0) throw new Error(`\`true\` ended with ${code} in the clone`);
  const launched = formatDuration(forkedAt - launchedAt);
  const forked = formatDuration(answeredAt - forkedAt);
  const paused = formatDuration(freeze.pauseMs);
  return `${image.name} launched in ${launched}, forked in ${forked}, paused for ${paused}`;
}

function bySize(left: ImageInfo, right: ImageInfo): number {
  return left.machine.memoryBytes - right.machine.memoryBytes || left.builtAt - right.builtAt;
}
