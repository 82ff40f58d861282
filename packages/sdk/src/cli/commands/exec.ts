// `sf exec`: a command in a guest, with its streams and exit code as if it ran here. Called by
// `program.ts`.

import type { ExecExit } from '../../api/schemas.js';
import type { GuestProcess } from '../../host/guest-process.js';
import type { Vm } from '../../host/vm.js';
import { type CommandSpec, parseSeconds, type Session } from '../command.js';

/** Shells report the end by signal N as 128 + N. */
const EXIT_SIGNAL_BASE = 128;

export const exec: CommandSpec = {
  syntax: 'exec <vm> <command...>',
  summary: 'run a command in a VM',
  details:
    'Put -- before a command that has options. Ctrl-C sends SIGINT to the command; the second ' +
    'one kills it. With --json the output is collected: { code, signal, stdout, stderr }.',
  options: [
    { flags: '-i, --stdin', summary: 'hand standard input on to the command' },
    { flags: '--cwd <folder>', summary: 'working folder in the guest' },
    {
      flags: '-e, --env <name=value...>',
      summary: 'environment of the command',
    },
    { flags: '--timeout <seconds>', summary: 'kill the command after this', parse: parseSeconds },
  ],
  examples: [
    { line: 'sf exec 7f3a -- uname -a', says: 'one command' },
    { line: 'tar c src | sf exec 7f3a -i -- tar x -C /tmp', says: 'with input' },
    { line: "sf exec 7f3a --timeout 5 -- sh -c 'echo $HOME'", says: 'a line for the shell' },
  ],
  exits: [
    { code: 'n', when: "the command's own exit code" },
    { code: '128+n', when: 'signal n ended the command' },
    { code: '7', when: 'the time was over' },
  ],
  async run(session, [id = '', ...command], options) {
    const { output, interrupts } = session;
    const { signal } = interrupts;
    const vm = await (await session.connect()).vm(id, { signal });
    const wanted = {
      cwd: options.cwd as string | undefined,
      env: parseEnvironment(options.env as string[] | undefined),
      timeoutMs: options.timeout as number | undefined,
      signal,
    };
    const stdin = options.stdin === true;
    try {
      if (output.json) {
        const input = stdin ? { stdin: process.stdin } : {};
        const result = await vm.exec(command, { ...wanted, ...input });
        output.document(result);
        return exitCodeOf(result);
      }
      return exitCodeOf(await runHere(session, vm, command, { ...wanted, stdin }));
    } finally {
      // A terminal or pipe that is still open would keep this process alive.
      process.stdin.destroy();
    }
  },
};

async function runHere(
  { output, interrupts }: Session,
  vm: Vm,
  command: readonly string[],
  options: Parameters<Vm['spawn']>[1],
): Promise<ExecExit> {
  const child = await vm.spawn(command, options);
  interrupts.interceptNext(() => void child.kill('SIGINT').catch(() => {}));
  if (options?.stdin) process.stdin.pipe(child.stdin);
  const copy = async (name: 'stdout' | 'stderr', process: GuestProcess) => {
    for await (const chunk of process[name]) await output.bytes(chunk, name);
  };
  const [exit] = await Promise.all([child.exit, copy('stdout', child), copy('stderr', child)]);
  return exit;
}

function exitCodeOf({ code, signal }: ExecExit): number {
  return code ?? EXIT_SIGNAL_BASE + (signal ?? 0);
}

function parseEnvironment(
  pairs: readonly string[] | undefined,
): Record<string, string> | undefined {
  if (pairs === undefined) return undefined;
  return Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf('=');
      return at === -1 ? [pair, ''] : [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
}
