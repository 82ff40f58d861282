// The hash of an image: it changes with all that goes into the image, and with nothing else.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { hashImage, parseImageFile } from '../../packages/clone-agent/src/image/index.js';

let folder: string;
beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-hash-'));
  for (const name of ['guest/python/snowfork', 'images/data', 'sdk/dist/guest']) {
    fs.mkdirSync(path.join(folder, name), { recursive: true });
  }
  for (const name of ['sf-guestd', 'sf-guest', 'init', 'init-initramfs'])
    put(`guest/${name}`, name);
  put('sdk/package.json', '{}');
  put('sdk/dist/guest/index.js', "import { one } from './part.js';\nimport fs from 'node:fs';\n");
  put('sdk/dist/guest/part.js', 'export const one = 1;\n');
  put('guest/python/snowfork/__init__.py', 'pass');
  put('images/job.mjs', 'job');
  put('images/data/a', 'a');
});
afterEach(() => fs.rmSync(folder, { recursive: true, force: true }));

function put(name: string, text: string): void {
  fs.writeFileSync(path.join(folder, name), text);
}

const DECLARED = `packages: [PACKAGES]
files:
  - { source: job.mjs, target: /opt/job.mjs }
  - { source: data, target: /opt/data }
`;

async function hash(declared = DECLARED, packages = 'nodejs'): Promise<string> {
  put('images/x.yaml', declared.replace('PACKAGES', packages));
  const spec = await parseImageFile(path.join(folder, 'images/x.yaml'));
  const folders = { guestFolder: path.join(folder, 'guest'), sdkFolder: path.join(folder, 'sdk') };
  return await hashImage(spec, folders);
}

describe('hashImage', () => {
  it('is the same for the same content', async () => {
    expect(await hash()).toBe(await hash());
  });

  it('does not change with comments and the description', async () => {
    expect(await hash(`# a comment\ndescription: new\n${DECLARED}`)).toBe(await hash());
  });

  it('does not change with the place of the checkout', async () => {
    const before = await hash();
    const moved = `${folder}-moved`;
    fs.renameSync(folder, moved);
    folder = moved;
    expect(await hash()).toBe(before);
  });

  it.each([
    ['images/job.mjs', 'a file that is copied in'],
    ['images/data/a', 'a file of a folder that is copied in'],
    ['images/data/new', 'one more file in that folder'],
    ['guest/sf-guestd', 'the daemon of the guest side'],
    ['guest/sf-guest', 'the command of the guest side'],
    ['guest/init', 'the init'],
    ['guest/init-initramfs', 'the init of the initramfs'],
    ['sdk/dist/guest/part.js', 'what the guest SDK imports'],
  ])('changes with %s, %s', async (name) => {
    const before = await hash();
    put(name, 'something else');
    expect(await hash()).not.toBe(before);
  });

  it('changes with permissions that matter', async () => {
    const before = await hash();
    fs.chmodSync(path.join(folder, 'images/data/a'), 0o755);
    expect(await hash()).not.toBe(before);
  });

  it.each([
    ...['memory: 1G', 'vcpus: 2', 'base: trixie', 'warm: [a]', 'commands: [a]', 'cpu: max'],
    'kernel: linux-image-cloud-amd64/bookworm-backports',
  ])('changes with %s', async (line) => {
    expect(await hash(`${DECLARED}${line}\n`)).not.toBe(await hash());
  });

  it('keeps images without Node apart from the guest SDK', async () => {
    const before = await hash(DECLARED, 'curl');
    put('sdk/dist/guest/part.js', 'something else');
    expect(await hash(DECLARED, 'curl')).toBe(before);
  });

  it('changes with the Python module for images with Python, and for no others', async () => {
    const before = [await hash(DECLARED, 'python3'), await hash(DECLARED, 'curl')];
    put('guest/python/snowfork/__init__.pyc', 'what Python keeps beside it');
    expect([await hash(DECLARED, 'python3'), await hash(DECLARED, 'curl')]).toEqual(before);
    put('guest/python/snowfork/_part.py', 'pass');
    expect(await hash(DECLARED, 'python3')).not.toBe(before[0]);
    expect(await hash(DECLARED, 'curl')).toBe(before[1]);
  });

  it('says what to do when the guest SDK is not compiled', async () => {
    fs.rmSync(path.join(folder, 'sdk/dist'), { recursive: true });
    await expect(hash()).rejects.toThrow(/step "guest" failed: .*npm run build/);
  });
});
