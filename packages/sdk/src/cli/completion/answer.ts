// Answers a shell that completes a line: `sf __complete WORD…`, one candidate a line, a tab and a few
// words after it; `:files` and `:folders` leave it to the shell. It never starts an agent, waits for
// a second at most, and says nothing when something fails. Called by `run.ts`.

import type { Host } from '../../host/host.js';
import { describedImages } from '../commands/images.js';
import { formatDuration } from '../format.js';
import { Interrupts } from '../interrupts.js';
import { Output } from '../output.js';
import { buildProgram } from '../program.js';
import { type Ask, type Candidate, complete, type Kind } from './complete.js';

/** The word that stands in place of a command's. */
export const COMPLETE_WORD = '__complete';
const ANSWER_TIMEOUT_MS = 1000;

/** The lines for a shell; `words` are those after `sf`, the last one half typed. */
export async function answerShell(words: readonly string[]): Promise<string[]> {
  const program = buildProgram({
    output: new Output(process.stdout, process.stderr, false),
    interrupts: new Interrupts(),
    outcome: { exitCode: 0 },
  });
  const { candidates, paths } = await complete(program, words, askHost);
  if (paths !== 'none') return [`:${paths}`];
  return candidates.map(({ value, says }) => (says === '' ? value : `${value}\t${says}`));
}

const askHost: Ask = async (kind, stateFolder) => {
  if (kind === 'name') return describedImages().map((value) => ({ value, says: '' }));
  const { connect } = await import('../../host/index.js');
  const signal = AbortSignal.timeout(ANSWER_TIMEOUT_MS);
  try {
    await using host = await connect({ stateFolder, start: false, signal });
    return await namesOf(host, kind, signal);
  } catch {
    return []; // there is no agent, or none that answers in time
  }
};

async function namesOf(
  host: Host,
  kind: Exclude<Kind, 'name'>,
  signal: AbortSignal,
): Promise<Candidate[]> {
  const age = (since: number) => formatDuration(Date.now() - since);
  if (kind === 'image') {
    const images = await host.images({ signal });
    return images.map(({ name, kernel }) => ({ value: name, says: `Linux ${kernel}` }));
  }
  if (kind === 'snapshot') {
    const snapshots = await host.snapshots({ signal });
    return snapshots.map(({ id, image, vm, createdAt }) => ({
      value: id,
      says: `of ${image ?? vm ?? 'a VM'}, ${age(createdAt)}`,
    }));
  }
  if (kind === 'ticket') {
    const vms = await host.vms({ all: true, signal });
    const tickets = new Map(vms.map(({ ticket, parent }) => [ticket, parent]));
    return [...tickets].flatMap(([value, parent]) =>
      value === undefined || parent === undefined ? [] : [{ value, says: `clones of ${parent}` }],
    );
  }
  const vms = await host.vms({ signal });
  return vms.map(({ id, image, state, startedAt }) => ({
    value: id,
    says: `${image}, ${state}, ${age(startedAt)}`,
  }));
}
