// Completion of half-typed lines: what the engine proposes, that asking starts no agent, and that bash
// gets it through the script that `sf completion bash` prints.

import { execFile } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type RunningServer, startServer } from '../../packages/clone-agent/src/api/server.js';
import {
  type Ask,
  type Completion,
  complete,
} from '../../packages/sdk/src/cli/completion/complete.js';
import { SHELLS } from '../../packages/sdk/src/cli/completion/scripts.js';
import { Interrupts } from '../../packages/sdk/src/cli/interrupts.js';
import { Output } from '../../packages/sdk/src/cli/output.js';
import { buildProgram } from '../../packages/sdk/src/cli/program.js';
import { FakeService } from '../support/fake-service.js';

const SF = fileURLToPath(new URL('../../packages/sdk/dist/cli/main.js', import.meta.url));

const program = buildProgram({
  output: new Output(process.stdout, process.stderr, false),
  interrupts: new Interrupts(),
  outcome: { exitCode: 0 },
});
const names: Record<string, string[]> = { vm: ['vm1', 'vm2', 'vm10'], image: ['minimal'] };
let asked: [string, string | undefined][];
const ask: Ask = async (kind, stateFolder) => {
  asked.push([kind, stateFolder]);
  return (names[kind] ?? []).map((value) => ({ value, says: '' }));
};

async function propose(...words: string[]): Promise<Completion> {
  return complete(program, words, ask);
}

async function values(...words: string[]): Promise<string[]> {
  return (await propose(...words)).candidates.map(({ value }) => value);
}

beforeEach(() => {
  asked = [];
});

describe('what can come next', () => {
  test('is a command at first', async () => {
    expect(await values('ki')).toEqual(['kill']);
    const all = await values('');
    expect(all).toEqual(expect.arrayContaining(['launch', 'fork', 'tree', 'image', 'doctor']));
    expect(all).not.toContain('__complete');
    expect(asked).toEqual([]);
  });

  test('is a command of a group', async () => {
    expect(await values('image', '')).toEqual(['build', 'ls', 'rm']);
    expect(await values('snapshot', 'r')).toEqual(['rm']);
  });

  test('is an option after a dash, and a few words about it', async () => {
    const { candidates } = await propose('fork', 'vm1', '--cl');
    expect(candidates).toEqual([{ value: '--clones', says: 'how many, 1 to 256' }]);
    expect(await values('exec', 'vm1', '--', '--')).toEqual([]);
  });

  test('is the id of a VM where a VM is asked for', async () => {
    expect(await values('fork', '-n', '4', 'vm1')).toEqual(['vm1', 'vm10']);
    expect(await values('exec', '')).toEqual(['vm1', 'vm2', 'vm10']);
    expect(await values('exec', 'vm1', '')).toEqual([]);
  });

  test('is what is not on the line yet where several are asked for', async () => {
    expect(await values('kill', 'vm1', '')).toEqual(['vm2', 'vm10']);
  });

  test('is of the kind that the command asks for', async () => {
    for (const [line, kind] of [
      ['launch', 'image'],
      ['clone', 'snapshot'],
      ['snapshot rm', 'snapshot'],
      ['join', 'ticket'],
      ['image build', 'name'],
      ['image rm', 'image'],
    ] as const) {
      asked = [];
      await propose(...line.split(' '), '');
      expect(asked, line).toEqual([[kind, undefined]]);
    }
  });

  test('is a value of the option before it', async () => {
    expect(await values('up', '--accel', '')).toEqual(['kvm', 'tcg']);
    expect(await propose('--state', '')).toMatchObject({ candidates: [], paths: 'folders' });
    expect(await propose('image', 'build', 'x', '--file', './')).toMatchObject({ paths: 'files' });
    expect(await propose('exec', 'vm1', '--cwd', '/')).toEqual({ candidates: [], paths: 'none' });
    expect(await values('fork', '-n', '')).toEqual([]);
  });

  test('is a shell after completion', async () => {
    expect(await values('completion', '')).toEqual([...SHELLS]);
  });

  test.each([
    [['--state', '/x', 'kill', '']],
    [['kill', '--state', '/x', '']],
    [['--state=/x', 'kill', '']],
    [['--state', '=', '/x', 'kill', '']],
  ])('is asked of the agent that the line names: %s', async (line) => {
    await propose(...line);
    expect(asked).toEqual([['vm', '/x']]);
  });

  test('is nothing for a command that is not known', async () => {
    expect(await values('nonsense', '')).toContain('launch');
    expect(await values('ps', '')).toEqual([]);
  });
});

describe('in a shell', () => {
  let folder: string;
  let service: FakeService;
  let server: RunningServer;

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), 'sf-comp-'));
    service = new FakeService();
    server = await startServer({ service, socketPath: join(folder, 'agent.sock'), version: '1' });
  });

  afterEach(async () => {
    await server.close();
    rmSync(folder, { recursive: true });
  });

  /** What bash would show after `words`. */
  async function bash(state: string, ...words: string[]): Promise<string[]> {
    const sf = join(folder, 'sf');
    writeFileSync(sf, `#!/bin/sh\nexec '${process.execPath}' '${SF}' "$@"\n`, { mode: 0o755 });
    const script = `
      source <("$1" completion bash)
      COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
      _sf_complete
      printf '%s\\n' "\${COMPREPLY[@]}"`;
    const { stdout } = await promisify(execFile)('bash', ['-c', script, 'bash', sf, ...words], {
      env: { ...process.env, SNOWFORK_STATE: state },
    });
    return stdout.split('\n').filter(Boolean);
  }

  test('bash shows commands, and VMs that run', async () => {
    const { id } = await service.launch({ image: 'minimal' }, new AbortController().signal);
    expect(await bash(folder, 'ki')).toEqual(['kill']);
    expect(await bash(folder, 'kill', '')).toEqual([id]);
    expect(await bash(folder, 'launch', 'm')).toEqual(['minimal']);
  });

  test('completing starts no agent', async () => {
    const state = join(folder, 'nobody');
    expect(await bash(state, 'kill', '')).toEqual([]);
    expect(existsSync(state)).toBe(false);
  });

  test('the scripts of all shells are printed, and others are refused', async () => {
    for (const shell of SHELLS) {
      const { stdout } = await promisify(execFile)(process.execPath, [SF, 'completion', shell]);
      expect(stdout).toContain('__complete');
    }
    const refused = promisify(execFile)(process.execPath, [SF, 'completion', 'csh']);
    await expect(refused).rejects.toMatchObject({ code: 2 });
  });
});
