// Every block of TypeScript in the documentation is run, and says what its page says: those that import
// the guest's SDK in a VM of the image `node`, the others on this host.

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { describeVms } from '../fixtures/guests.js';
import { compileTypeScript, root, type Snippet, typeScriptSnippets } from '../support/snippets.js';
import { hostApart } from '../support/test-host.js';

const PROGRAM_TIMEOUT_MS = 240_000;

/** What readers of a page are told that they see, in the order of its blocks. */
const seen: Readonly<Record<string, readonly RegExp[]>> = {
  'README.md': [/^$/, /stdout: 'vm\d+\\n'/],
  'docs/parallel-jobs.md': [/^\[ 0, 1, 2 \]$/m, /^true$/m, /^\[ 1, 4, 9 \]$/m],
  'docs/servers.md': [/^200 hello$/m, /^$/],
  'docs/untrusted-code.md': [/status: 'exited', value: 'done'/],
  'docs/branching.md': [/^2\n2 2\n2 2 2$/m, /^base\nbranch 1\n\nbase\nbranch 2$/m],
  'docs/opportunistic.md': [/^true$/m, /^a-part$/m],
};

const isForGuest = ({ code, note }: Snippet) => !`${note}${code}`.includes("'@snowfork/sdk'");
const runnable = typeScriptSnippets().filter(({ note }) => !note?.startsWith('not run, '));

describeVms('the TypeScript of the documentation', () => {
  let apart: Awaited<ReturnType<typeof hostApart>>;
  let programs: Map<string, string>;

  beforeAll(async () => {
    apart = await hostApart({ warmPoolSize: 2 }, 'minimal', 'node');
    const compiled = compileTypeScript(path.join(root, 'test/dist/programs'), { emit: true });
    expect({ status: compiled.status, stdout: compiled.stdout }).toEqual({ status: 0, stdout: '' });
    programs = new Map(
      compiled.snippets.map(({ page, line, program }) => [`${page}:${line}`, program]),
    );
  });

  afterAll(async () => {
    await apart?.dispose();
  });

  async function runOnHost(program: string): Promise<string> {
    const options = {
      env: { ...process.env, SNOWFORK_STATE: apart.state },
      timeout: PROGRAM_TIMEOUT_MS,
    };
    return (await promisify(execFile)(process.execPath, [program], options)).stdout;
  }

  async function runInGuest(program: string): Promise<string> {
    await using vm = await apart.host.launch('node');
    await vm.writeFile('/root/snippet.mjs', fs.readFileSync(program));
    const command = ['node', '/root/snippet.mjs'];
    const { code, stdout, stderr } = await vm.exec(command, { timeoutMs: PROGRAM_TIMEOUT_MS });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    return stdout;
  }

  it.each(runnable)('at $page:$line does what it says', async (snippet) => {
    const { page, line } = snippet;
    const program = programs.get(`${page}:${line}`)!;
    const stdout = await (isForGuest(snippet) ? runInGuest(program) : runOnHost(program));
    const index = runnable.filter((each) => each.page === page).indexOf(snippet);
    const expected = seen[page]?.[index];
    if (expected !== undefined) expect(stdout.trim()).toMatch(expected);
    for (const { family } of await apart.host.vms()) await (await apart.host.vm(family)).kill();
  });
});
