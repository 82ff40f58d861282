// `sf doctor` on a real host: it forks a real VM and leaves nothing; and what it finds where the agent
// cannot start. What it says of hosts that this one is not is tested in `test/unit/doctor`.

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { DoctorCheck } from '@snowfork/sdk';
import { afterEach, expect, test } from 'vitest';
import { hostApart, whyNoVms } from '../support/test-host.js';

const SF = fileURLToPath(new URL('../../packages/sdk/dist/cli/main.js', import.meta.url));

let undo: (() => Promise<void>)[] = [];

afterEach(async () => {
  for (const step of undo.reverse()) await step();
  undo = [];
});

async function doctor(
  state: string,
  environment: Record<string, string> = {},
): Promise<{ code: number; ok: boolean; checks: DoctorCheck[] }> {
  const env = { ...process.env, ...environment, SNOWFORK_STATE: state };
  const ran = await promisify(execFile)(process.execPath, [SF, 'doctor', '--json'], { env }).then(
    ({ stdout }) => ({ code: 0, stdout }),
    (error: { code: number; stdout: string }) => error,
  );
  return { code: ran.code, ...JSON.parse(ran.stdout) };
}

test.skipIf(whyNoVms() !== undefined)('forks a VM, says so, and leaves none', async () => {
  const { host, state, dispose } = await hostApart({ warmPoolSize: 1 }, 'minimal');
  undo.push(dispose);
  const { code, ok, checks } = await doctor(state);
  expect({ code, ok }).toEqual({ code: 0, ok: true });
  const fork = checks.find(({ name }) => name === 'fork');
  expect(fork).toMatchObject({ status: 'ok', message: expect.stringMatching(/^minimal launched/) });
  const names = checks.map(({ name }) => name);
  expect(names).toEqual(expect.arrayContaining(['qemu', 'accelerator', 'mounts', 'layers']));
  expect(new Set(names).size).toBe(names.length);
  expect(await host.vms()).toEqual([]);
  expect(await host.vms({ all: true })).toHaveLength(2);
});

test.skipIf(whyNoVms() !== undefined)(
  'says why the agent does not start, which leaves no mount behind',
  async () => {
    const state = fs.mkdtempSync('/var/tmp/sfd-');
    undo.push(async () => fs.rmSync(state, { recursive: true }));
    const { code, checks } = await doctor(state, { SNOWFORK_QEMU: '/nowhere/qemu' });
    expect(code).toBe(1);
    for (const name of ['qemu', 'agent']) {
      const check = checks.find((each) => each.name === name);
      expect(check).toMatchObject({
        status: 'fail',
        message: expect.stringContaining('/nowhere/qemu'),
      });
    }
    const mounts = fs.readFileSync('/proc/self/mountinfo', 'utf8');
    expect(mounts).not.toContain(path.basename(state));
  },
);
