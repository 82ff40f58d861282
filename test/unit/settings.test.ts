// The settings file: defaults, what is refused and how it is told.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { readSettings } from '../../packages/clone-agent/src/settings.js';

let folder: string;
let file: string;
beforeAll(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'sf-settings-'));
  file = path.join(folder, 'settings.json');
});
afterAll(() => fs.rmSync(folder, { recursive: true }));

function read(content: string, environment: NodeJS.ProcessEnv = {}) {
  fs.writeFileSync(file, content);
  return readSettings(file, environment);
}

/** The message of the refusal. */
function refusal(content: string, environment: NodeJS.ProcessEnv = {}): string {
  try {
    read(content, environment);
  } catch (error) {
    expect(error).toMatchObject({ code: 'SF_BAD_REQUEST' });
    return (error as Error).message;
  }
  throw new Error(`accepted: ${content}`);
}

const documented = fs
  .readFileSync(path.join(import.meta.dirname, '../../docs/reference/settings.md'), 'utf8')
  .split('\n')
  .flatMap((line) => /^\| `(\w+)` \|/.exec(line)?.[1] ?? []);

it('are all documented, and no others', () => {
  const known = [
    ...Object.keys(readSettings(path.join(folder, 'none'), {})),
    'accelerator',
    'guestKernel',
    'linkBitsPerSecond',
  ];
  expect(documented.toSorted()).toEqual([...new Set(known)].sort());
});

it('have defaults that a fork of 256 clones fits into', () => {
  const settings = readSettings(path.join(folder, 'none'), {});
  expect(settings.vmsMax).toBeGreaterThan(256);
  expect(settings.familyVmsMax).toBeGreaterThan(256);
  expect(settings.familyVmsMax).toBeLessThan(settings.vmsMax);
  expect(settings.familyForksBurst).toBeGreaterThan(256);
  expect(settings.familyLayersBytesMax).toBeLessThan(settings.layersBytesMax);
});

it('are read from the file, and what it does not say stays as it is', () => {
  const settings = read('{"vmsMax": 7, "layersBytesMax": 1073741824}');
  expect(settings).toMatchObject({ vmsMax: 7, familyLayersBytesMax: 536_870_912 });
  expect(read('{"familyLayersBytesMax": 12}').familyLayersBytesMax).toBe(12);
});

it('take the kernel of guests from the environment before the file', () => {
  const stored = '{"guestKernel":"linux-image-cloud-amd64/trixie"}';
  const { guestKernel } = read(stored);
  expect(guestKernel).toEqual({ package: 'linux-image-cloud-amd64', suite: 'trixie' });
  const named = { SNOWFORK_GUEST_KERNEL: 'linux-image-cloud-amd64/bookworm-backports' };
  expect(read(stored, named).guestKernel?.suite).toBe('bookworm-backports');
  expect(refusal('{}', { SNOWFORK_GUEST_KERNEL: 'bookworm' })).toContain('guestKernel');
});

it('take the accelerator from the environment before the file', () => {
  const forced = { SNOWFORK_ACCEL: 'tcg' };
  expect(read('{}').accelerator).toBeUndefined();
  expect(read('{"accelerator": "kvm"}', forced).accelerator).toBe('tcg');
  expect(refusal('{}', { SNOWFORK_ACCEL: 'warp' })).toContain('accelerator');
});

it.each([
  ['{', 'is no JSON'],
  ['[]', ''],
  ['null', ''],
  ['5', ''],
  ['{"vmMax": 3}', 'vmMax'],
  ['{"vmsMax": 0}', 'vmsMax'],
  ['{"vmsMax": "many"}', 'vmsMax'],
  ['{"familyForksPerSecond": 0}', 'familyForksPerSecond'],
  ['{"familyLifetimeMs": -1}', 'familyLifetimeMs'],
  ['{"layersBytesMax": 1.5}', 'layersBytesMax'],
])('are refused when they are %s, with the name of what is wrong', (content, named) => {
  expect(refusal(content)).toContain(named);
  expect(refusal(content)).toContain(file);
  expect(() => read(content, { SNOWFORK_ACCEL: 'tcg' })).toThrow(
    expect.objectContaining({ code: 'SF_BAD_REQUEST' }),
  );
});

it('are settings or one kind of error, whatever the file holds', () => {
  const content = fc.oneof(fc.json(), fc.string());
  fc.assert(
    fc.property(content, (text) => {
      try {
        read(text);
      } catch (error) {
        expect(error).toMatchObject({ code: 'SF_BAD_REQUEST' });
      }
    }),
  );
});
