// The agent's settings: what the file and the environment say, and what is refused.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { readSettings } from '../../packages/clone-agent/src/settings.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-settings-'));
afterAll(() => fs.rmSync(folder, { recursive: true, force: true }));

function read(text: string, environment: NodeJS.ProcessEnv = {}) {
  const file = path.join(folder, 'settings.json');
  fs.writeFileSync(file, text);
  return readSettings(file, environment);
}

describe('readSettings', () => {
  it('lets the environment choose the kernel of guests, over the file', () => {
    const file = '{"guestKernel":"linux-image-cloud-amd64/trixie"}';
    expect(read(file).guestKernel).toEqual({ package: 'linux-image-cloud-amd64', suite: 'trixie' });
    const named = 'linux-image-cloud-amd64/bookworm-backports';
    expect(read(file, { SNOWFORK_GUEST_KERNEL: named }).guestKernel?.suite).toBe(
      'bookworm-backports',
    );
    expect(() => read('{}', { SNOWFORK_GUEST_KERNEL: 'bookworm' })).toThrow('guestKernel');
  });

  it('lets the environment force an accelerator', () => {
    expect(read('{}').accelerator).toBeUndefined();
    expect(read('{"accelerator":"kvm"}', { SNOWFORK_ACCEL: 'tcg' }).accelerator).toBe('tcg');
  });

  it.each(['[]', '3', '"text"', 'null'])('refuses %s, whatever the environment says', (text) => {
    expect(() => read(text)).toThrow('settings.json');
    expect(() => read(text, { SNOWFORK_ACCEL: 'tcg' })).toThrow('settings.json');
  });
});
