// Writes `docs/reference/cli.md` from the declarations of the commands, and `errors.md` from the
// registry, so that the pages are what `sf` does: `npx tsx packages/sdk/src/cli/reference.ts`. Tests
// check that the files are current.

import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Command } from 'commander';
import { errorRegistry } from '../api/errors.js';
import { specOf } from './command.js';
import { Interrupts } from './interrupts.js';
import { Output } from './output.js';
import { buildProgram } from './program.js';

const PAGES = new URL('../../../../docs/reference/', import.meta.url);

const HEAD = `# The \`sf\` command

Made by \`npx tsx packages/sdk/src/cli/reference.ts\` from the declarations of the commands.

Every command starts the agent of this host when it is not there, but \`sf down\`, \`sf completion\`
and \`sf doctor --quick\`: VMs outlive an agent that died, and only a running one can say what there
is. Results go to standard output, everything else to standard error. With \`--json\` a result is one
JSON document on one line, or one document per line for what streams (\`image build\`, \`console\`,
\`logs\`, \`top\`, \`tree --watch\`); errors are \`{ "error": { "code", "message", "details" } }\` on
standard error.

| variable | meaning |
|---|---|
| \`SNOWFORK_STATE\` | state folder of the agent; else \`/var/lib/snowfork\`, of an ordinary user \`~/.local/state/snowfork\`; \`--state\` goes first |
| \`SNOWFORK_ACCEL\` | accelerator of an agent that is started; \`sf up --accel\` goes first |
| \`SNOWFORK_AGENT\` | the agent's program, in place of the package @snowfork/clone-agent |
| \`NO_COLOR\` | no colours; there are none either where the output is no terminal |
`;

/** The whole page. */
export function cliReference(): string {
  const program = buildProgram({
    output: new Output(process.stdout, process.stderr, false),
    interrupts: new Interrupts(),
    outcome: { exitCode: 0 },
  });
  const sections = leaves(program).map(section);
  return [HEAD, exitCodes(), ...sections].join('\n');
}

/** Every code of the registry. */
export function errorReference(): string {
  const rows = Object.entries(errorRegistry).map(
    ([code, { status, exitCode, help }]) => `| \`${code}\` | ${help} | ${status} | ${exitCode} |`,
  );
  return [
    '# Errors',
    '',
    'Made by `npx tsx packages/sdk/src/cli/reference.ts` from the registry in',
    '`packages/sdk/src/api/errors.ts`. The codes are stable. A `SnowforkError` has `code`, `message`',
    '(what happened, what to do) and `details`; over HTTP it is `{ "error": { … } }`.',
    '',
    '| code | what it means, what to do | HTTP | `sf` exits with |',
    '|---|---|---|---|',
    ...rows,
    '',
  ].join('\n');
}

function leaves(command: Command): Command[] {
  return command.commands.flatMap((child) => (child.commands.length > 0 ? leaves(child) : [child]));
}

function section(command: Command): string {
  const spec = specOf(command);
  if (spec === undefined) throw new Error(`the command ${command.name()} is not declared`);
  const lines = [
    `## ${nameOf(command)}`,
    '',
    '```text',
    `${nameOf(command)} ${command.usage()}`,
    '```',
  ];
  lines.push('', sentence(spec.summary));
  if (spec.details !== undefined) lines.push('', spec.details);
  lines.push('', '| option | |', '|---|---|');
  for (const option of command.options) {
    const { defaultValue } = option;
    const otherwise = defaultValue === undefined ? '' : `; ${defaultValue} when not given`;
    const choices = option.argChoices === undefined ? '' : ` (${option.argChoices.join(', ')})`;
    lines.push(`| \`${option.flags}\` | ${option.description}${choices}${otherwise} |`);
  }
  lines.push('', '```sh');
  const width = Math.max(...spec.examples.map(({ line }) => line.length));
  for (const { line, says } of spec.examples) lines.push(`${line.padEnd(width)}  # ${says}`);
  lines.push('```', '');
  if (spec.exits !== undefined) {
    lines.push('| exit code | |', '|---|---|');
    for (const { code, when } of spec.exits) lines.push(`| ${code} | ${when} |`);
    lines.push('');
  }
  return lines.join('\n');
}

function exitCodes(): string {
  const byCode = new Map<number, string[]>();
  for (const [code, { exitCode }] of Object.entries(errorRegistry)) {
    byCode.set(exitCode, [...(byCode.get(exitCode) ?? []), `\`${code}\``]);
  }
  const lines = ['## Exit codes', '', 'The same for all commands; some have more, said there.', ''];
  lines.push('| code | |', '|---|---|', '| 0 | done |');
  lines.push('| 1 | it came to an end that is no success; the command says which |');
  for (const [code, errors] of [...byCode].sort(([left], [right]) => left - right)) {
    lines.push(`| ${code} | ${errors.join(', ')} |`);
  }
  lines.push(
    '',
    'Wrong usage of a command is `SF_BAD_REQUEST`. Signals: Ctrl-C ends with 130.',
    '',
  );
  return lines.join('\n');
}

function nameOf(command: Command): string {
  return command.parent === null ? command.name() : `${nameOf(command.parent)} ${command.name()}`;
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  writeFileSync(new URL('cli.md', PAGES), cliReference());
  writeFileSync(new URL('errors.md', PAGES), errorReference());
}
