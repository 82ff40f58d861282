// The `sf` command as a process of its own, against the real server over a fake service: output for
// people and programs, exit codes, signals, and that the documentation is what it does.

import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { errorRegistry, SnowforkError } from '@snowfork/sdk/api';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type RunningServer, startServer } from '../../packages/clone-agent/src/api/server.js';
import { formatBytes, formatDuration } from '../../packages/sdk/src/cli/format.js';
import { cliReference, errorReference } from '../../packages/sdk/src/cli/reference.js';
import { familyTree, renderTree } from '../../packages/sdk/src/cli/tree.js';
import { eventually } from '../support/eventually.js';
import { FakeService, machine } from '../support/fake-service.js';

const SF = fileURLToPath(new URL('../../packages/sdk/dist/cli/main.js', import.meta.url));
const FAKE_AGENT = fileURLToPath(new URL('../support/fake-agent.mjs', import.meta.url));

let folder: string;
let service: FakeService;
let server: RunningServer;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'sf-cli-'));
  service = new FakeService();
  server = await startServer({ service, socketPath: join(folder, 'agent.sock'), version: '1' });
});

afterEach(async () => {
  await server.close();
  rmSync(folder, { recursive: true });
});

interface Ran {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function start(args: string[], env: Record<string, string> = {}): ChildProcessWithoutNullStreams {
  const environment = {
    ...process.env,
    SNOWFORK_STATE: folder,
    SNOWFORK_AGENT: FAKE_AGENT,
    ...env,
  };
  return spawn(process.execPath, [SF, ...args], { env: environment, cwd: folder });
}

async function finish(child: ChildProcessWithoutNullStreams): Promise<Ran> {
  const exit = new Promise<number | null>((resolve) => child.once('close', resolve));
  const [stdout, stderr] = await Promise.all([child.stdout.toArray(), child.stderr.toArray()]);
  return { code: await exit, stdout: stdout.join(''), stderr: stderr.join('') };
}

interface RanJson {
  readonly code: number | null;
  /** The first document. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look into documents of every shape.
  readonly answer: any;
  // biome-ignore lint/suspicious/noExplicitAny: likewise.
  readonly lines: any[];
}

async function sf(...args: string[]): Promise<Ran> {
  const child = start(args);
  child.stdin.end();
  return finish(child);
}

/** Runs with --json. */
async function json(...args: string[]): Promise<RanJson> {
  const end = args.indexOf('--');
  const at = end === -1 ? args.length : end;
  const ran = await sf(...args.slice(0, at), '--json', ...args.slice(at));
  const text = ran.stdout === '' ? ran.stderr : ran.stdout;
  const lines = text.trimEnd().split('\n');
  const parsed = lines.map((line) => JSON.parse(line));
  return { code: ran.code, answer: parsed[0], lines: parsed };
}

async function launched(image = 'minimal'): Promise<string> {
  return (await service.launch({ image }, new AbortController().signal)).id;
}

describe('the agent', () => {
  test('is started by up, and ended by down; both succeed twice', async () => {
    const state = join(folder, 'state');
    const first = await json('up', '--state', state);
    expect(first).toMatchObject({ code: 0, answer: { started: true, version: '0.1.0' } });
    expect((await json('up', '--state', state)).answer.started).toBe(false);
    expect((await sf('--state', state, 'ps')).code).toBe(0);
    expect(await json('up', '--accel', 'kvm', '--state', state)).toMatchObject({
      code: 5,
      answer: { error: { code: 'SF_INCOMPATIBLE' } },
    });
    expect(await json('down', '--state', state)).toMatchObject({
      code: 0,
      answer: { stopped: true },
    });
    expect(() => process.kill(first.answer.pid, 0)).toThrow();
    const second = await sf('down', '--state', state);
    expect(second).toMatchObject({ code: 0, stdout: 'no agent was running\n' });
  });

  test('is started by any other command', async () => {
    const state = join(folder, 'state');
    expect(await json('ps', '--state', state)).toMatchObject({ code: 0, answer: { vms: [] } });
    expect((await sf('down', '--state', state)).stdout).toBe('the agent has ended\n');
  });

  test('that cannot start is an exit code of 3 with its last words', async () => {
    const env = { FAKE_AGENT_MODE: 'fail', SNOWFORK_STATE: join(folder, 'state') };
    const ran = await finish(start(['ps'], env));
    expect(ran.code).toBe(3);
    expect(ran.stderr).toContain('no room on the moon');
  });
});

describe('doctor', () => {
  const named = (answer: { checks: { name: string }[] }, name: string) =>
    answer.checks.filter((check) => check.name === name);

  test('forks a VM, and kills it and its clone', async () => {
    const { answer } = await json('doctor');
    expect(named(answer, 'fork')).toMatchObject([{ status: 'ok' }]);
    expect(service.calls.some((call) => call.startsWith('fork'))).toBe(true);
    expect(await service.vms(false)).toEqual([]);
  });

  test("shows the agent's word in place of its own where they are about the same", async () => {
    const { answer } = await json('doctor', '--quick');
    expect(named(answer, 'qemu')).toEqual([{ name: 'qemu', status: 'ok', message: '7.2.22' }]);
    expect(named(answer, 'kernel')).toHaveLength(1);
    expect(await service.vms(true)).toEqual([]);
  });

  test('fails when a check failed, and shows the mend', async () => {
    service.checks = [{ name: 'layers', status: 'fail', message: 'full', mend: 'make room' }];
    expect(await json('doctor', '--quick')).toMatchObject({ code: 1, answer: { ok: false } });
    const ran = await sf('doctor', '--quick');
    expect(ran.code).toBe(1);
    expect(ran.stdout).toMatch(/^FAIL +layers +full\n +→ make room$/m);
    expect(ran.stdout).toMatch(/no VM can be forked here/);
  });

  test('fails when a VM can be launched and not forked', async () => {
    await service.buildImage(
      { name: 'flaky', file: '/flaky.yaml' },
      () => {},
      new AbortController().signal,
    );
    await service.removeImage('minimal');
    service.fork = async () => {
      throw new SnowforkError('SF_LAYERS_FULL', 'the tmpfs is full');
    };
    const { code, answer } = await json('doctor');
    expect(code).toBe(1);
    expect(named(answer, 'fork')).toMatchObject([
      { status: 'fail', message: expect.stringContaining('the tmpfs is full') },
    ]);
    expect(await service.vms(false)).toEqual([]);
  });

  test('fails as long as there is no image, and says how to build one', async () => {
    await service.removeImage('minimal');
    const { code, answer } = await json('doctor');
    expect(code).toBe(1);
    const mend = expect.stringContaining('sf image build minimal');
    expect(named(answer, 'fork')).toMatchObject([{ status: 'fail', mend }]);
  });

  test('starts no agent with --quick, and says what was not looked at', async () => {
    const state = join(folder, 'state');
    const { answer } = await json('doctor', '--quick', '--state', state);
    expect(named(answer, 'agent')).toMatchObject([{ status: 'warn' }]);
    expect(existsSync(state)).toBe(false);
  });

  test('has the last words of an agent that does not start', async () => {
    const env = { FAKE_AGENT_MODE: 'fail', SNOWFORK_STATE: join(folder, 'state') };
    const ran = await finish(start(['doctor'], env));
    expect(ran.code).toBe(1);
    expect(ran.stdout).toMatch(/^FAIL +agent +.*no room on the moon/m);
  });
});

describe('launch, ps, wait, kill', () => {
  test('for people', async () => {
    const ran = await sf('launch', 'minimal');
    expect(ran).toMatchObject({ code: 0, stderr: '' });
    const id = ran.stdout.trim();
    const listed = (await sf('ps')).stdout.split('\n');
    expect(listed[0]).toMatch(/^ID +IMAGE +STATE/);
    expect(listed[1]).toMatch(new RegExp(`^${id} +minimal +running`));
    expect(await sf('kill', id)).toMatchObject({ code: 0, stdout: `${id}\n` });
    expect((await sf('ps')).stdout).not.toContain(id);
    expect((await sf('ps', '--all')).stdout).toContain('killed: ');
    const waited = await sf('wait', id);
    expect(waited.code).toBe(1);
    expect(waited.stdout).toMatch(/^killed: /);
  });

  test('for programs', async () => {
    const { answer } = await json('launch', 'minimal');
    expect(answer).toMatchObject({ image: 'minimal', state: 'running' });
    service.end(answer.id, { how: 'exited', value: Buffer.from('x') });
    const packed = { how: 'exited', value: { $msgpack: expect.any(String) } };
    expect(await json('wait', answer.id)).toMatchObject({ code: 0, answer: packed });
    expect((await json('ps', '--all')).answer.vms[0].end).toEqual(packed);
    expect((await json('ps')).answer).toEqual({ vms: [] });
  });

  test('wait no longer than --timeout', async () => {
    const ran = await sf('wait', await launched(), '--timeout', '0.05');
    expect(ran.code).toBe(7);
    expect(ran.stderr).toMatch(/^sf: .*50 ms/);
  });
});

describe('fork, checkpoint, clone, join', () => {
  test('for people', async () => {
    const id = await launched();
    const forked = await sf('fork', id, '-n', '2');
    expect(forked.code).toBe(0);
    expect(forked.stdout.split('\n')).toHaveLength(4);
    expect(forked.stderr).toMatch(/^ticket t\d+, snapshot s\d+, paused for 13 ms/);
    const snapshot = (await sf('checkpoint', id)).stdout.trim();
    expect((await sf('snapshot', 'ls')).stdout).toContain(snapshot);
    expect((await sf('clone', snapshot, '-n', '3')).stdout.split('\n')).toHaveLength(5);
    expect(await sf('snapshot', 'rm', snapshot)).toMatchObject({ stdout: `${snapshot}\n` });
    const crowd = await sf('fork', id, '-n', '20');
    expect(crowd.stderr).toContain('16 of 20 clones: room for 16 only');
  });

  test('for programs', async () => {
    const id = await launched();
    const { answer } = await json('fork', id, '-n', '2');
    expect(answer).toMatchObject({ ticket: { clones: 2 }, freeze: { pauseMs: 12.5 } });
    expect(answer.clones[1]).toMatchObject({ status: 'fulfilled', cloneId: 2, vm: { parent: id } });
    const { snapshot } = (await json('checkpoint', id)).answer;
    expect((await json('clone', snapshot.id)).answer.clones).toHaveLength(1);
    expect((await json('snapshot', 'ls')).answer.snapshots).toHaveLength(3);
    expect((await json('snapshot', 'rm', snapshot.id)).answer).toEqual({ removed: [snapshot.id] });
  });

  test('say with an exit code that a clone did not come up', async () => {
    const signal = new AbortController().signal;
    await service.buildImage({ name: 'flaky', file: '/flaky' }, () => {}, signal);
    const id = await launched('flaky');
    const ran = await sf('fork', id, '-n', '3');
    expect(ran.code).toBe(8);
    expect(ran.stdout).toContain('identity repair failed (SF_CLONE_FAILED)');
    const clones = (await json('fork', id, '-n', '3')).answer.clones;
    expect(clones[1]).toMatchObject({ status: 'rejected', error: { code: 'SF_CLONE_FAILED' } });
  });

  test.each(['0', '-1', '1.5', 'many'])('refuse %s clones', async (count) => {
    const id = await launched();
    const ran = await sf('fork', id, '-n', count);
    expect(ran.code).toBe(2);
    expect(ran.stderr).toMatch(/^sf: the number of clones is a whole number from 1 to 256, not /);
  });

  test('join: values, losses, and those that still run', async () => {
    service.slots = [
      { cloneId: 1, status: 'exited', value: { sum: 3 } },
      { cloneId: 2, status: 'exited', value: 7n },
    ];
    const ran = await sf('join', 't1');
    expect(ran.code).toBe(0);
    expect(ran.stdout).toContain('{ sum: 3 }');
    expect((await json('join', 't1')).answer.slots[1].value).toEqual({
      $msgpack: expect.any(String),
    });
    service.slots = [{ cloneId: 1, status: 'lost', reason: 'crashed' }];
    expect(await sf('join', 't1')).toMatchObject({
      code: 1,
      stdout: expect.stringContaining('crashed'),
    });
    service.slots = [{ cloneId: 1, status: 'running' }];
    expect((await sf('join', 't1', '--timeout', '2')).code).toBe(7);
    expect(service.calls.at(-1)).toBe('join t1 2000');
    expect((await sf('join', 'nobody')).code).toBe(4);
  });
});

describe('exec', () => {
  test("ends with the command's code and passes its streams", async () => {
    const id = await launched();
    expect(await sf('exec', id, '--', 'echo', '-n', 'hi')).toEqual({
      code: 0,
      stdout: '-n hi\n',
      stderr: '',
    });
    expect(await sf('exec', id, 'warn', 'oh')).toEqual({ code: 0, stdout: '', stderr: 'oh\n' });
    expect((await sf('exec', id, '--', 'exit', '42')).code).toBe(42);
  });

  test('collects with --json', async () => {
    const id = await launched();
    expect(await json('exec', id, '--', 'echo', '--json')).toMatchObject({
      code: 0,
      answer: { code: 0, signal: null, stdout: '--json\n', stderr: '' },
    });
    expect((await json('exec', id, '--', 'exit', '5')).code).toBe(5);
    expect((await sf('exec', id, '--', 'echo', '--json')).stdout).toBe('--json\n');
  });

  test('hands over folder, environment and input', async () => {
    const id = await launched();
    const ran = await sf('exec', id, '--cwd', '/tmp', '-e', 'A=1=2', '--env', 'B=', '--', 'show');
    expect(JSON.parse(ran.stdout)).toMatchObject({ cwd: '/tmp', env: { A: '1=2', B: '' } });
    for (const args of [
      ['exec', id, '-i', '--', 'cat'],
      ['exec', '-i', '--json', id, 'cat'],
    ]) {
      const child = start(args);
      child.stdin.end('some input');
      const { code, stdout } = await finish(child);
      expect(code).toBe(0);
      expect(stdout).toContain('some input');
    }
  });

  test('ends though its own input stays open', async () => {
    const id = await launched();
    const child = start(['exec', id, '-i', '--', 'exit', '3']);
    expect((await finish(child)).code).toBe(3);
    const collecting = start(['exec', id, '-i', '--json', '--', 'exit', '4']);
    expect((await finish(collecting)).code).toBe(4);
  });

  test('carries much output whole', async () => {
    const child = start(['exec', await launched(), '--', 'flood', '20000000']);
    let received = 0;
    child.stdout.on('data', (chunk: Buffer) => {
      received += chunk.length;
    });
    expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0);
    expect(received).toBe(20_000_000);
  });

  test('sends Ctrl-C to the command first', async () => {
    const child = start(['exec', await launched(), '--', 'sleep']);
    child.stdout.once('data', () => child.kill('SIGINT'));
    expect(await finish(child)).toMatchObject({ code: 3, stdout: 'asleep\ninterrupted\n' });
  });

  test('kills the command at the deadline', async () => {
    const id = await launched();
    let timeoutS = 0.05;
    await eventually(async () => {
      const ran = await sf('exec', id, '--timeout', String(timeoutS), '--', 'sleep');
      expect(ran.code).toBe(7);
      // It may have come before the command was begun.
      timeoutS *= 2;
      expect(service.aborted).toContain('exec');
    });
  });

  test('kills the command when nobody reads its output any more', async () => {
    const child = start(['exec', await launched(), '--', 'flood', '500000000']);
    child.stdout.once('data', () => child.stdout.destroy());
    const code = new Promise((resolve) => child.once('close', resolve));
    expect(await child.stderr.toArray()).toEqual([]);
    expect(await code).toBe(0);
    await eventually(() => expect(service.aborted).toEqual(['exec']));
  });
});

describe('console and logs', () => {
  test('print what was and what comes, and type', async () => {
    const child = start(['console', await launched()]);
    child.stdin.write('root\n');
    await eventually(() => expect(service.typed.toString()).toBe('root\n'));
    await eventually(() => expect(service.consoleFeed.listeners).toBe(1));
    service.consoleFeed.push(Buffer.from('bye\n'));
    service.consoleFeed.end();
    const ran = await finish(child);
    expect(ran.code).toBe(0);
    expect(ran.stdout).toContain('boot\r\nlogin: ');
    expect(ran.stdout).toContain('bye\n');
  });

  test('on a terminal Ctrl-] leaves, other keys go to the guest', async () => {
    const words = [process.execPath, SF, 'console', await launched()].join(' ');
    const env = { ...process.env, SNOWFORK_STATE: folder };
    const child = spawn('script', ['-qec', words, '/dev/null'], { env });
    let seen = '';
    child.stdout.on('data', (chunk: Buffer) => {
      seen += chunk;
    });
    await eventually(() => expect(seen).toContain('login: '));
    child.stdin.write('\u0003');
    await eventually(() => expect(service.typed).toEqual(Buffer.from([3])));
    child.stdin.write('ls\u001d');
    expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0);
    expect(service.typed.toString()).toBe('\u0003ls');
    expect(seen).toContain('Ctrl-] leaves');
  });

  test('logs end, or follow until Ctrl-C', async () => {
    const id = await launched();
    expect(await sf('logs', id)).toMatchObject({ code: 0, stdout: 'guest side: ready\n' });
    expect((await json('logs', id)).lines).toEqual([{ output: 'guest side: ready\n' }]);
    const child = start(['logs', '-f', id]);
    child.stdout.once('data', () => child.kill('SIGINT'));
    const ran = await finish(child);
    expect(ran).toMatchObject({ code: 130, stderr: 'sf: interrupted\n' });
    await eventually(() => expect(service.logFeed.listeners).toBe(0));
  });
});

describe('images', () => {
  test('are built from the file beside you, or the one you name', async () => {
    mkdirSync(join(folder, 'images'));
    const file = join(folder, 'images', 'mine.yaml');
    writeFileSync(file, '');
    const ran = await sf('image', 'build', 'mine');
    expect(ran.code).toBe(0);
    expect(ran.stderr).toBe(
      '[   0.1 s] packages: fetching 12 packages\n[   1.5 s] boot: waiting for the guest\n',
    );
    expect(ran.stdout).toMatch(/^image mine is built: snapshot image-mine, 47.7 MiB\n/);
    expect(service.calls.at(-1)).toContain(file);
    const again = await json('image', 'build', 'mine', '--file', file);
    expect(again.lines.map(({ event }) => event)).toEqual(['progress', 'progress', 'done']);
    expect(again.lines[2]).toMatchObject({ unchanged: true, image: { name: 'mine' } });
    expect((await json('image', 'ls')).answer.images).toHaveLength(2);
    expect((await sf('image', 'ls')).stdout).toContain('mine');
    expect(await json('image', 'rm', 'mine')).toMatchObject({ answer: { removed: ['mine'] } });
    expect((await sf('image', 'rm', 'mine')).code).toBe(4);
  });

  test('without a file are refused with the places looked at', async () => {
    const ran = await sf('image', 'build', 'unheard');
    expect(ran.code).toBe(2);
    expect(ran.stderr).toContain(join(folder, 'images', 'unheard.yaml'));
  });

  test('that fail to build, or are interrupted, have their exit codes', async () => {
    const file = join(folder, 'any.yaml');
    writeFileSync(file, '');
    const broken = await sf('image', 'build', 'broken', '--file', file);
    expect(broken.code).toBe(9);
    expect(broken.stderr).toContain('sf: step boot: the guest did not come up');
    const child = start(['image', 'build', 'slow', '--file', file]);
    child.stderr.once('data', () => child.kill('SIGINT'));
    expect((await finish(child)).code).toBe(130);
    await eventually(() => expect(service.aborted).toEqual(['buildImage']));
  });
});

describe('stats and tree', () => {
  test('of the host and of a VM', async () => {
    const id = await launched();
    expect((await sf('stats')).stdout).toContain('3 of 4 ready');
    expect((await json('stats')).answer.pager.objects).toHaveLength(1);
    const { stdout } = await sf('stats', id);
    expect(stdout).toContain('256 pages, 1.0 MiB');
    expect(stdout).toContain('50 of other hosts waited for, 40 that had come before');
    expect((await json('stats', id)).answer).toMatchObject({ vm: id, privatePages: 256 });
  });

  test('draws families that live', async () => {
    const { signal } = new AbortController();
    const id = await launched();
    const { clones } = await service.fork(id, { clones: 2 }, signal);
    const first = clones[0]?.status === 'fulfilled' ? clones[0].vm.id : '';
    await service.fork(first, { clones: 1 }, signal);
    const gone = await launched();
    await service.kill(gone, 'test');
    const drawn = (await sf('tree')).stdout.split('\n');
    expect(drawn.map((line) => line.split(' minimal')[0]?.trimEnd())).toEqual([
      id,
      `├─ ${first}`,
      expect.stringMatching(/^│ {2}└─ v\d+$/),
      expect.stringMatching(/^└─ v\d+$/),
      '',
    ]);
    const { families } = (await json('tree', '--all')).answer;
    expect(families).toHaveLength(2);
    expect(families[0]).toMatchObject({ id, privateBytes: 1_048_576 });
    expect(families[0].children[0].children).toHaveLength(1);
  });

  test('aligns its columns and says how VMs ended', () => {
    const vm = { image: 'minimal', snapshot: 's', family: 'a', startedAt: 0, machine };
    const vms = [
      { ...vm, id: 'a', state: 'running' as const },
      {
        ...vm,
        id: 'b',
        parent: 'a',
        state: 'ended' as const,
        endedAt: 1500,
        end: { how: 'exited' as const, value: [1] },
      },
    ];
    expect(renderTree(familyTree(vms, new Map([['a', 4096]])), 65_000)).toEqual([
      'a     minimal  running     4.0 KiB     1 m',
      '└─ b  minimal  ended             -   1.5 s  exited: [ 1 ]',
    ]);
  });

  test('numbers are said as people read them', () => {
    expect([0, 1023, 1536, 3 * 1024 ** 3].map(formatBytes)).toEqual([
      '0 B',
      '1023 B',
      '1.5 KiB',
      '3.0 GiB',
    ]);
    expect([0.4, 999, 1000, 61_000, 7_200_000, 200_000_000].map(formatDuration)).toEqual([
      '0 ms',
      '999 ms',
      '1.0 s',
      '1 m',
      '2 h',
      '2 d',
    ]);
  });
});

describe('errors', () => {
  test('are words and a hint for people, JSON for programs', async () => {
    const people = await sf('launch', 'unheard');
    expect(people.code).toBe(4);
    expect(people.stdout).toBe('');
    expect(people.stderr).toBe(
      `sf: no image unheard\n    ${errorRegistry.SF_IMAGE_NOT_FOUND.help} (SF_IMAGE_NOT_FOUND)\n`,
    );
    expect(await json('launch', 'unheard')).toMatchObject({
      code: 4,
      answer: { error: { code: 'SF_IMAGE_NOT_FOUND', details: { image: 'unheard' } } },
    });
  });

  test('each have their exit code', async () => {
    const byExitCode = new Map(
      Object.entries(errorRegistry).map(([code, { exitCode }]) => [exitCode, code]),
    );
    const ended = await Promise.all(
      [...byExitCode].map(async ([exitCode, code]) => {
        const image = `fails-with-${code.toLowerCase().replaceAll('_', '-')}`;
        return [exitCode, code, (await sf('launch', image)).code];
      }),
    );
    expect(ended).toEqual([...byExitCode].map(([exitCode, code]) => [exitCode, code, exitCode]));
  });

  test.each([
    ['an unknown command', ['bogus']],
    ['an unknown option', ['ps', '--bogus']],
    ['no argument', ['launch']],
    ['too many arguments', ['ps', 'more']],
    ['a bad time', ['wait', 'v1', '--timeout', 'soon']],
    ['a bad accelerator', ['up', '--accel', 'magic']],
  ])('of usage end with 2: %s', async (_name, args) => {
    const ran = await sf(...args);
    expect(ran).toMatchObject({ code: 2, stdout: '' });
    expect(ran.stderr).toMatch(/^sf: /);
    expect(await json(...args)).toMatchObject({
      code: 2,
      answer: { error: { code: 'SF_BAD_REQUEST' } },
    });
  });

  test('have no colours where nobody sees them', async () => {
    expect((await sf('launch', 'unheard')).stderr).not.toContain('\u001b');
  });
});

describe('help', () => {
  test('needs no agent and shows examples', async () => {
    const env = { SNOWFORK_STATE: '/nowhere' };
    const ran = await finish(start(['fork', '--help'], env));
    expect(ran).toMatchObject({ code: 0, stderr: '' });
    expect(ran.stdout).toContain('Examples:\n  sf fork ');
    expect((await finish(start(['--version'], env))).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    expect((await finish(start([], env))).code).toBe(2);
  });

  test('on the web is what the commands are', () => {
    const page = readFileSync(new URL('../../docs/reference/cli.md', import.meta.url), 'utf8');
    expect(page, 'run `npx tsx packages/sdk/src/cli/reference.ts`').toBe(cliReference());
  });

  test('has a current page of all errors', () => {
    const page = readFileSync(new URL('../../docs/reference/errors.md', import.meta.url), 'utf8');
    expect(page, 'run `npx tsx packages/sdk/src/cli/reference.ts`').toBe(errorReference());
  });
});
