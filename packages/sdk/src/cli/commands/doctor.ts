// `sf doctor`: can a VM be forked here, and if not, what is to be done. Called by `program.ts`.

import type { DoctorCheck } from '../../api/doctor.js';
import { SnowforkError } from '../../api/errors.js';
import type { Host } from '../../host/host.js';
import { type CommandSpec, EXIT_FAILED, EXIT_OK, type Session } from '../command.js';
import { readFacts } from '../doctor/facts.js';
import { fail, judgeHost, warn } from '../doctor/judge.js';
import { tryFork } from '../doctor/trial.js';
import { type Output, STATUS_STYLES } from '../output.js';

export const doctor: CommandSpec = {
  syntax: 'doctor',
  summary: 'say whether a VM can be forked here, and what to do if not',
  details:
    'Looks at the host, asks the agent what it sees, and forks a VM of the smallest image: a ' +
    'line of OK, WARN or FAIL for each, with the mend. Starts the agent when it is not there, as ' +
    'other commands do; with --quick nothing is started and nothing forked.',
  options: [{ flags: '--quick', summary: 'only look: start no agent and fork no VM' }],
  examples: [
    { line: 'sf doctor', says: 'everything, about a second' },
    { line: 'sf doctor --quick', says: 'what can be seen without an agent' },
    { line: 'sf doctor --json | jq \'.checks[] | select(.status != "ok")\'', says: 'for programs' },
  ],
  exits: [
    { code: '0', when: 'a VM was forked; with --quick: no check failed' },
    { code: '1', when: 'no VM can be forked here' },
  ],
  async run(session, _args, { quick = false }) {
    const { output, interrupts } = session;
    const own = judgeHost(await readFacts(process.env));
    const agents = await askAgent(session, quick === true);
    const names = new Set(agents.map(({ name }) => name));
    const checks = [...own.filter(({ name }) => !names.has(name)), ...agents];
    if (interrupts.signal.aborted) throw interrupts.signal.reason;
    const works = checks.every(({ status }) => status !== 'fail');
    if (output.json) output.document({ ok: works, checks });
    else print(output, checks, works, quick === true);
    return works ? EXIT_OK : EXIT_FAILED;
  },
};

/** What a running agent says, and the trial; or why there is none. */
async function askAgent(session: Session, quick: boolean): Promise<DoctorCheck[]> {
  const { signal } = session.interrupts;
  let host: Host;
  try {
    host = await session.connect({ start: !quick });
  } catch (cause) {
    return [describeAbsence(SnowforkError.from(cause), quick)];
  }
  try {
    const { checks } = await host.doctor({ signal });
    return quick ? checks : [...checks, await tryFork(host, signal)];
  } catch (cause) {
    if (signal.aborted) throw cause;
    return [fail('agent', SnowforkError.from(cause).message, 'see agent.log in the state folder')];
  }
}

function describeAbsence(error: SnowforkError, quick: boolean): DoctorCheck {
  if (quick && error.details.running === false) {
    const message = 'none runs: QEMU, accelerator, mounts and room were not looked at';
    return warn('agent', message, '`sf doctor` without --quick');
  }
  const { log, logPath } = error.details;
  const words = Array.isArray(log) && log.length > 0 ? String(log.at(-1)) : error.message;
  const mend = logPath === undefined ? 'as it says' : `as it says; ${String(logPath)} has all`;
  return fail('agent', words, mend);
}

function print(
  output: Output,
  checks: readonly DoctorCheck[],
  works: boolean,
  quick: boolean,
): void {
  const width = Math.max(...checks.map(({ name }) => name.length));
  for (const { name, status, message, mend } of checks) {
    const word = output.style(STATUS_STYLES[status], status.toUpperCase().padEnd(4));
    output.line(`${word}  ${name.padEnd(width)}  ${message.replaceAll('\n', ' ')}`);
    if (mend !== undefined) output.line(`${' '.repeat(width + 8)}→ ${mend}`);
  }
  const failed = checks.filter(({ status }) => status === 'fail').length;
  output.line('');
  if (!works) output.line(`no VM can be forked here: ${failed} failed`);
  else if (quick) output.line('nothing seen that keeps VMs from being forked');
  else output.line('VMs can be forked here');
}
