// The declared file of an image: what is accepted, and that an error says where and what instead.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { SnowforkError } from '@snowfork/sdk/api';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { parseImageFile, parseMemory } from '../../packages/clone-agent/src/image/index.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-spec-'));
afterAll(() => fs.rmSync(folder, { recursive: true, force: true }));
const images = path.resolve(import.meta.dirname, '../../images');
const MiB = 1024 * 1024;

function write(text: string): string {
  const file = path.join(folder, 'test.yaml');
  fs.writeFileSync(file, text);
  return file;
}

async function problemOf(text: string): Promise<string> {
  const error: unknown = await parseImageFile(write(text)).catch((reason) => reason);
  expect(error).toBeInstanceOf(SnowforkError);
  expect((error as SnowforkError).code).toBe('SF_BAD_REQUEST');
  expect((error as SnowforkError).message).toContain(path.join(folder, 'test.yaml'));
  return (error as SnowforkError).message;
}

describe('parseImageFile', () => {
  it('reads the images that ship', async () => {
    const minimal = await parseImageFile(path.join(images, 'minimal.yaml'));
    expect(minimal).toMatchObject({ name: 'minimal', system: 'busybox', memoryBytes: 256 * MiB });
    const node = await parseImageFile(path.join(images, 'node.yaml'));
    expect(node).toMatchObject({ name: 'node', system: 'debian', vcpus: 1, base: 'bookworm' });
    expect(node.packages).toContain('nodejs');
  });

  it('takes Debian as it is when nothing is said', async () => {
    expect(await parseImageFile(write(''))).toEqual({
      ...{ name: 'test', description: '', base: 'bookworm', system: 'debian', cpu: undefined },
      ...{ packages: [], files: [], commands: [], warm: [], memoryBytes: 256 * MiB, vcpus: 1 },
      kernel: undefined,
    });
  });

  it('takes a kernel of another suite, written as apt writes it', async () => {
    const spec = await parseImageFile(write('kernel: linux-image-cloud-amd64/bookworm-backports'));
    expect(spec.kernel).toEqual({
      package: 'linux-image-cloud-amd64',
      suite: 'bookworm-backports',
    });
    expect(await problemOf('kernel: bookworm-backports')).toContain('a package and its suite');
    expect(await problemOf('kernel: bash/bookworm')).toContain('a package and its suite');
  });

  it('resolves sources beside the file, and reads permissions as octal', async () => {
    fs.writeFileSync(path.join(folder, 'job.mjs'), '1');
    const spec = await parseImageFile(
      write(`files:
  - { source: job.mjs, target: /opt/job.mjs, mode: '0755' }
  - { text: hello, target: /etc/motd }`),
    );
    expect(spec.files).toEqual([
      { source: path.join(folder, 'job.mjs'), target: '/opt/job.mjs', mode: 0o755 },
      { text: 'hello', target: '/etc/motd', mode: 0o644 },
    ]);
  });

  it('lets the caller set another amount of memory', async () => {
    const spec = await parseImageFile(write('memory: 512M'), '2G');
    expect(spec.memoryBytes).toBe(2048 * MiB);
  });

  it.each([
    ['sytem: debian', /unknown key sytem; known are description, base, system/],
    [
      'files: [{ text: a, target: /x, owner: me }]',
      /files\[0\]: unknown key owner; known are source/,
    ],
    ['system: alpine', /system: `busybox` or `debian`/],
    ['memory: 256', /memory: .*such as `256M` or `2G`/],
    ['memory: 256MB', /memory: "256MB" is not an amount of memory such as `256M`/],
    ['memory: 1M', /from 64M to 1024G/],
    ['vcpus: 0', /vcpus: a whole number from 1 to 64/],
    ['vcpus: 1.5', /vcpus: a whole number from 1 to 64/],
    ['cpu: -accel kvm', /cpu: a CPU model as QEMU names it/],
    ["packages: ['a,b']", /packages\[0\]: a name of a Debian package/],
    ["packages: ['--force']", /packages\[0\]: a name of a Debian package/],
    ["base: '../x'", /base: the code name of a Debian suite/],
    ['commands: [""]', /commands\[0\]: a command is a line of shell/],
    ['files: [{ text: a, target: x }]', /files\[0\]\.target: an absolute path/],
    ['files: [{ text: a, target: /x/../y }]', /files\[0\]\.target: a path without/],
    ['files: [{ text: a, target: /x, mode: 0755 }]', /files\[0\]\.mode: permissions in quotes/],
    ["files: [{ text: a, target: /x, mode: '9' }]", /files\[0\]\.mode: .*octal digits in quotes/],
    ['files: [{ target: /x }]', /files\[0\]: exactly one of `source`/],
    ['files: [{ target: /x, text: a, source: b }]', /files\[0\]: exactly one of `source`/],
    ['files: [{ target: /x, source: gone }]', /files\[0\]\.source: .*gone is not there/],
    ["files: [{ target: /x, source: ., mode: '0755' }]", /files\[0\]\.mode: a folder's files/],
    ['packages: [a\nmemory: 1G', /test\.yaml:2:\d+: no YAML/],
    ['- a list', /expected object/],
  ])('says what is wrong with %j', async (text, problem) => {
    expect(await problemOf(text)).toMatch(problem);
  });

  it('names every problem, not only the first', async () => {
    expect(await problemOf('vcpus: x\nbase: 7')).toMatch(/base: (.|\n)*vcpus: /);
  });

  it('names a file that is not there', async () => {
    await expect(parseImageFile('/nowhere/x.yaml')).rejects.toThrow(
      /\/nowhere\/x\.yaml can't be read/,
    );
  });

  it('gives a spec or SF_BAD_REQUEST, whatever the file holds', async () => {
    await fc.assert(
      fc.asyncProperty(fc.oneof(fc.string(), fc.json()), async (text) => {
        const outcome: unknown = await parseImageFile(write(text)).catch((reason) => reason);
        if (outcome instanceof SnowforkError) expect(outcome.code).toBe('SF_BAD_REQUEST');
        else expect(outcome).toHaveProperty('memoryBytes');
      }),
    );
  });
});

describe('parseMemory', () => {
  it('knows mebibytes and gibibytes', () => {
    expect(parseMemory('64M')).toBe(64 * MiB);
    expect(parseMemory('2G')).toBe(2048 * MiB);
  });

  it.each(['', '64', '64m', '0M', '1.5G', '-1G', '9999999G'])('refuses %j', (memory) => {
    expect(() => parseMemory(memory)).toThrow(/such as `256M`/);
  });
});
