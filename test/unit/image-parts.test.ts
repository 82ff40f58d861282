// The parts of a build that need neither root nor a network: apt sources, the order of modules,
// links in a root file system, imports of the guest SDK, child processes.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { SnowforkError } from '@snowfork/sdk/api';
import { afterAll, describe, expect, it } from 'vitest';
import {
  asBackports,
  narrowLines,
  narrowStanzas,
  ofSuite,
} from '../../packages/clone-agent/src/image/apt.js';
import { importsOf } from '../../packages/clone-agent/src/image/guest-sdk.js';
import { orderModules } from '../../packages/clone-agent/src/image/modules.js';
import { resolveInside } from '../../packages/clone-agent/src/image/root.js';
import { run, type StepContext } from '../../packages/clone-agent/src/image/run.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-parts-'));
afterAll(() => fs.rmSync(folder, { recursive: true, force: true }));

describe('apt sources', () => {
  const bookworm = { choice: ofSuite('bookworm'), archiveOnly: false };
  const backports = { choice: asBackports('bookworm-backports'), archiveOnly: true };

  it('keeps the lines of the suite and its updates, with their options', () => {
    const kept = [
      'deb http://a.example/debian bookworm main',
      'deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm-updates main # why',
      'deb http://s.example/security bookworm-security main',
    ];
    const dropped = [
      '# deb http://a.example/debian bookworm contrib',
      'deb-src http://a.example/debian bookworm main',
      'deb http://a.example/debian trixie main',
      'deb http://a.example/debian bookworm-backports main',
      'deb http://other.example/apt stable main',
      '',
    ];
    expect(narrowLines([...kept, ...dropped].join('\n'), bookworm)).toBe(`${kept.join('\n')}\n`);
  });

  it('narrows stanzas and keeps their other fields, keys included', () => {
    const sources = `# comment
Types: deb deb-src
URIs: http://a.example/debian
Suites: bookworm bookworm-backports bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://b.example
Suites: trixie

Enabled: no
Types: deb
URIs: http://c.example
Suites: bookworm
`;
    expect(narrowStanzas(sources, bookworm)).toBe(`Types: deb
Suites: bookworm bookworm-updates
URIs: http://a.example/debian
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
`);
  });

  it('gives nothing where the suite is not', () => {
    expect(narrowStanzas('Types: deb\nSuites: sid\nURIs: http://a.example', bookworm)).toBe('');
  });

  it("takes backports from where Debian's archive is, and from nowhere else", () => {
    const lines = [
      'deb [signed-by=/k.gpg] http://a.example/debian/ bookworm main contrib',
      'deb http://a.example/debian bookworm-updates main',
      'deb http://a.example/debian-security bookworm main',
      'deb http://docker.example/linux/debian bookworm stable',
    ];
    expect(narrowLines(lines.join('\n'), backports)).toBe(
      'deb [signed-by=/k.gpg] http://a.example/debian/ bookworm-backports main contrib\n',
    );
    const stanza = (uri: string) =>
      `Types: deb\nURIs: ${uri}\nSuites: bookworm bookworm-updates\nComponents: main\n`;
    expect(narrowStanzas(stanza('http://a.example/debian'), backports)).toBe(
      'Types: deb\nSuites: bookworm-backports\nURIs: http://a.example/debian\nComponents: main\n',
    );
    expect(narrowStanzas(stanza('http://a.example/debian-security'), backports)).toBe('');
  });
});

describe('orderModules', () => {
  const dependencies = `kernel/virtio/virtio_ring.ko:
kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko
kernel/block/virtio_blk.ko: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko
kernel/char/qemu-fw-cfg.ko.xz:
`;

  it('loads what a module needs before it, each once', () => {
    const order = orderModules(['virtio_blk', 'virtio', 'qemu_fw_cfg'], dependencies, '');
    expect(order).toEqual({
      load: [
        'kernel/virtio/virtio_ring.ko',
        'kernel/virtio/virtio.ko',
        'kernel/block/virtio_blk.ko',
        'kernel/char/qemu-fw-cfg.ko.xz',
      ],
      missing: [],
    });
  });

  it('passes over what is built in, and names what is nowhere', () => {
    const order = orderModules(['squashfs', 'vmgenid'], dependencies, 'kernel/fs/squashfs.ko\n');
    expect(order).toEqual({ load: [], missing: ['vmgenid'] });
  });
});

describe('resolveInside', () => {
  it('follows links as the guest would, never out of the root', async () => {
    const root = path.join(folder, 'root');
    fs.mkdirSync(path.join(root, 'var'), { recursive: true });
    fs.symlinkSync('/run', path.join(root, 'var/run'));
    fs.symlinkSync('../../../../etc', path.join(root, 'up'));
    expect(await resolveInside(root, '/var/run/x')).toBe(path.join(root, 'run/x'));
    expect(await resolveInside(root, '/up/passwd')).toBe(path.join(root, 'etc/passwd'));
  });

  it('gives up on links that lead to themselves', async () => {
    const root = path.join(folder, 'loop');
    fs.mkdirSync(root);
    fs.symlinkSync('/a', path.join(root, 'a'));
    await expect(resolveInside(root, '/a/b')).rejects.toThrow(/too many links/);
  });
});

describe('importsOf', () => {
  it('finds every form that the compiler writes', () => {
    const source = `import { a } from './a.js';
import * as b from "./b.js";
import './c.js';
export { d } from './d.js';
export * from './e.js';
const f = await import('f');
const g = require('g');
// from './no.js' in a comment, and const from = './no.js';
`;
    const found = ['./a.js', './b.js', './d.js', './e.js', './c.js', 'f', 'g'];
    expect(importsOf(source)).toEqual(found);
  });
});

describe('run', () => {
  const context = (signal: AbortSignal): StepContext => ({
    step: 'test',
    signal,
    onProgress: () => {},
  });
  const never = new AbortController().signal;
  const failure = (command: string, parameters: string[], signal = never) =>
    run(command, parameters, context(signal)).then(
      () => undefined,
      (error: unknown) => error as SnowforkError,
    );

  it('gives the standard output', async () => {
    expect(await run('printf', ['a\\nb\\n'], context(never))).toBe('a\nb\n');
  });

  it('tells the step and the last lines of both outputs', async () => {
    const script = 'for i in $(seq 50); do echo line $i; done; sleep 0.1; echo bad >&2; exit 7';
    const error = await failure('sh', ['-c', script]);
    expect(error?.code).toBe('SF_IMAGE_BUILD_FAILED');
    expect(error?.message).toMatch(/^step "test" failed: sh ended with code 7\n {2}line 22\n/);
    expect(error?.message).toMatch(/ {2}line 50\n {2}bad$/);
    expect(error?.details.step).toBe('test');
  });

  it('names the package of a program that is missing', async () => {
    const path = process.env.PATH;
    process.env.PATH = '/nowhere';
    try {
      expect((await failure('mksquashfs-of-no-distribution', []))?.message).toMatch(/is missing/);
    } finally {
      process.env.PATH = path;
    }
  });

  it('kills all of a group when the build is given up', async () => {
    const controller = new AbortController();
    const stamp = path.join(folder, 'pid');
    const script = `sleep 1000 & echo $! > ${stamp}; echo started; wait`;
    const running = run('sh', ['-c', script], context(controller.signal), {
      onLine: () => controller.abort(),
    });
    await expect(running).rejects.toMatchObject({ code: 'SF_ABORTED' });
    const pid = Number(fs.readFileSync(stamp, 'utf8'));
    // It is gone, or a zombie that its new parent has not reaped yet.
    const state = fs.existsSync(`/proc/${pid}/stat`)
      ? fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.[0]
      : 'gone';
    expect(['Z', 'X', 'gone']).toContain(state);
  });

  it('does not start anything once the build is given up', async () => {
    const error = await failure('touch', [path.join(folder, 'never')], AbortSignal.abort());
    expect(error).toBeInstanceOf(SnowforkError);
    expect(error?.code).toBe('SF_ABORTED');
    expect(fs.existsSync(path.join(folder, 'never'))).toBe(false);
  });
});
