// Every shell snippet of the documentation is run as it stands: the blocks of a page one after the
// other in one shell, on an agent of their own; blocks for a guest, and those of Python, in a guest.

import { type ChildProcess, spawn } from 'node:child_process';
import path from 'node:path';
import type { Host } from '@snowfork/sdk';
import { afterEach, expect, test } from 'vitest';
import { eventually } from '../support/eventually.js';
import { pages, root, type Snippet, snippetsOf } from '../support/snippets.js';
import { hostApart, whyNoVms } from '../support/test-host.js';

const GUEST_NOTE = /^in a VM of (\w+)$/;
/** A page's images are built before it is read, where they are not there from other tests. */
const BUILD_LINE = /^(?:npx )?sf image build (\w+)$/gm;

const shellSnippets = pages()
  // The reference shows single lines that belong to no story.
  .filter((page) => !page.startsWith('docs/reference/'))
  .flatMap(snippetsOf)
  .filter(({ language, note }) => language === 'sh' && !note?.startsWith('not run, '));
const pythonSnippets = pages()
  .flatMap(snippetsOf)
  .filter(({ language }) => language === 'python');
const forHost = shellSnippets.filter(({ note }) => note === undefined);
const forGuests = shellSnippets.filter(({ note }) => note !== undefined);

/** With the time that building an image takes. */

let dispose: (() => Promise<void>) | undefined;
let shell: ChildProcess | undefined;

afterEach(async () => {
  // With all that it has started, also when the test ran out of time.
  if (shell?.pid !== undefined && shell.exitCode === null) process.kill(-shell.pid, 'SIGKILL');
  await dispose?.();
  dispose = undefined;
});

interface Ran {
  readonly code: number | null;
  readonly output: string;
}

function scriptOf(page: string): string {
  return forHost
    .filter((snippet) => snippet.page === page)
    .map(({ line, code }) => `# ${page}:${line}\n${code}`)
    .join('\n');
}

/** The blocks of a page, in a shell that ends at the first failure. */
async function runPage(page: string, state: string): Promise<Ran> {
  const env = {
    ...process.env,
    SNOWFORK_STATE: state,
    PATH: `${path.join(root, 'node_modules/.bin')}:${process.env.PATH}`,
  };
  const child = spawn('sh', ['-eu', '-c', scriptOf(page)], { cwd: root, env, detached: true });
  shell = child;
  let output = '';
  const take = (chunk: Buffer) => {
    output += chunk;
  };
  child.stdout.on('data', take);
  child.stderr.on('data', take);
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve));
  return { code, output };
}

/** What the pages' readers are told that they see. */
const seen: Readonly<Record<string, readonly RegExp[]>> = {
  'README.md': [/vm1[\s\S]*vm2/, /^\d+\.\d+ \d+\.\d+$/m, /the agent has ended/],
  'docs/python.md': [/<- best$/m, /^on fresh noise, 4 times: 0\.\d+ \(noise 0.090\)$/m],
  'docs/http.md': [
    /^event: stdout$/m,
    /^Linux \d/m,
    /^HELLO FROM THE HOST$/m,
    /^ticket t\d+: vm\d+ vm\d+$/m,
    /"status":"exited","value":"the value of vm\d+"/,
    /SF_VM_NOT_FOUND[\s\S]*curl ended with 22/,
    /"vms":\[\]/,
  ],
};

test.skipIf(whyNoVms() !== undefined).each([...new Set(forHost.map(({ page }) => page))])(
  'the shell lines of %s do what they say',
  async (page) => {
    const images = [...scriptOf(page).matchAll(BUILD_LINE)].map(([, name]) => name!);
    const apart = await hostApart({ warmPoolSize: 2 }, 'minimal', ...images);
    dispose = apart.dispose;
    const { code, output } = await runPage(page, apart.state);
    expect(code, output).toBe(0);
    for (const expected of seen[page] ?? []) expect(output).toMatch(expected);
  },
);

test.skipIf(whyNoVms() !== undefined).each(forGuests.map((snippet) => [snippet]))(
  'the lines for a guest at $page:$line do what they say',
  async ({ code, note }: Snippet) => {
    const image = GUEST_NOTE.exec(note!)?.[1];
    expect(image, `the note: ${note}`).toBeDefined();
    const apart = await hostApart({ warmPoolSize: 2 }, image!);
    dispose = apart.dispose;
    await runInGuest(apart.host, image!, ['sh', '-euc', code]);
  },
);

test.skipIf(whyNoVms() !== undefined)('the lines of Python do what they say', async () => {
  const apart = await hostApart({ warmPoolSize: 2 }, 'python');
  dispose = apart.dispose;
  expect(pythonSnippets.length).toBeGreaterThan(0);
  for (const { page, line, code, note } of pythonSnippets) {
    const given = note?.startsWith('given ') ? note.slice('given '.length) : '';
    const program = `# ${page}:${line}\n${given}\n${code}`;
    await runInGuest(apart.host, 'python', ['python3', '-c', program]);
  }
});

/** Clones that the command makes end by themselves, as they were told to. */
async function runInGuest(host: Host, image: string, command: string[]): Promise<void> {
  const vm = await host.launch(image);
  const result = await vm.exec(command);
  expect(result, command.at(-1)).toMatchObject({ code: 0 });
  await eventually(() => expect(host.vms()).resolves.toHaveLength(1));
  const clones = (await host.vms({ all: true })).filter(
    ({ family, id }) => family === vm.id && id !== vm.id,
  );
  for (const { end } of clones) expect(end?.how).toBe('exited');
  await vm.kill();
}
