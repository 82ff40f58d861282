// Images that fail, are given up, or change. Each test has an agent apart, with the shared cache.

import fs from 'node:fs';
import path from 'node:path';
import { afterEach, expect, it } from 'vitest';
import { describeVms, rejection, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { hostApart } from '../support/test-host.js';

type Apart = Awaited<ReturnType<typeof hostApart>>;

describeVms('an image build', () => {
  let apart: Apart | undefined;

  afterEach(async () => {
    await apart?.dispose();
    apart = undefined;
  });

  /** A file of an image that differs from `minimal` by these lines. */
  function declare(state: string, name: string, lines: string): string {
    const file = path.join(state, `${name}.yaml`);
    fs.writeFileSync(file, `description: a test\nsystem: busybox\nmemory: 128M\n${lines}`);
    return file;
  }

  function everything(state: string): string[] {
    const folders = ['images', 'snapshots', 'layers'];
    return folders.flatMap((folder) => fs.readdirSync(path.join(state, folder))).sort();
  }

  it('names the step of a build that fails, and leaves nothing half-made', async () => {
    apart = await hostApart({ warmPoolSize: 0 }, 'minimal');
    const { host, state } = apart;
    const before = everything(state);
    const file = declare(state, 'broken', 'commands: ["echo these are its words; exit 3"]\n');
    const error = await rejection(host.buildImage({ name: 'broken', file }));
    expect(error).toMatchObject({ code: 'SF_IMAGE_BUILD_FAILED' });
    expect(error.message).toContain('commands');
    expect(error.message).toContain('these are its words');
    expect(everything(state)).toEqual(before);
    expect(fs.readdirSync(path.join(state, 'cache')).filter((f) => f.startsWith('build-'))).toEqual(
      [],
    );
    expect((await host.images()).map(({ name }) => name)).not.toContain('broken');
  });

  it('shows the console of an image that does not come up, and keeps the older one', async () => {
    apart = await hostApart({ warmPoolSize: 0 }, 'minimal');
    const { host, state } = apart;
    const file = declare(state, 'mute', 'warm: ["echo last words >&2; exit 9"]\n');
    const error = await rejection(host.buildImage({ name: 'mute', file }));
    expect(error).toMatchObject({ code: 'SF_IMAGE_BUILD_FAILED' });
    expect(error.message).toContain('last words');
    expect((await host.images()).map(({ name }) => name)).not.toContain('mute');
    await using vm = await host.launch('minimal');
    expect(await sh(vm, 'echo runs')).toContain('runs');
  });

  it('gives up a build whose caller has gone, and leaves nothing', async () => {
    apart = await hostApart({ warmPoolSize: 0 }, 'minimal');
    const { host, state } = apart;
    const before = everything(state);
    const caller = new AbortController();
    const file = declare(state, 'gone', 'commands: ["sleep 1000"]\n');
    const onProgress = ({ step }: { step: string }) => {
      if (step === 'commands') caller.abort();
    };
    const building = host.buildImage({ name: 'gone', file }, { onProgress, signal: caller.signal });
    expect(await rejection(building)).toMatchObject({ code: 'SF_ABORTED' });
    await eventually(async () => {
      const cache = fs.readdirSync(path.join(state, 'cache'));
      expect(cache.filter((name) => name.startsWith('build-'))).toEqual([]);
    });
    expect(everything(state)).toEqual(before);
  });

  it('builds once what two ask for at the same time', async () => {
    apart = await hostApart({ warmPoolSize: 0 }, 'minimal');
    const { host, state } = apart;
    const file = declare(state, 'wanted', '');
    const steps: string[] = [];
    const onProgress = ({ step }: { step: string }) => steps.push(step);
    const caller = new AbortController();
    const first = host.buildImage({ name: 'wanted', file });
    const second = host.buildImage({ name: 'wanted', file }, { onProgress });
    const third = host.buildImage({ name: 'wanted', file }, { signal: caller.signal });
    const thirds = rejection(third);
    await eventually(() => expect(steps).toEqual(['wait']));
    caller.abort();
    expect(await thirds).toMatchObject({ code: 'SF_ABORTED' });
    const { image } = await first;
    expect(await second).toEqual({ image, unchanged: true });
    expect(steps).toEqual(['wait']);
  });

  it('builds an unchanged image once, and a changed one beside VMs of the older', async () => {
    apart = await hostApart({ warmPoolSize: 0 }, 'minimal');
    const { host, state } = apart;
    const text = (words: string) => `files: [{ target: /words, text: "${words}" }]\n`;
    const file = declare(state, 'changing', text('old'));
    const first = await host.buildImage({ name: 'changing', file });
    expect(first.unchanged).toBe(false);
    await using old = await host.launch('changing');
    expect(await host.buildImage({ name: 'changing', file })).toEqual({
      ...first,
      unchanged: true,
    });
    declare(state, 'changing', text('new'));
    const second = await host.buildImage({ name: 'changing', file });
    expect(second).toMatchObject({ unchanged: false });
    await using young = await host.launch('changing');
    expect([await sh(old, 'cat /words'), await sh(young, 'cat /words')]).toEqual(['old', 'new']);
    expect(await rejection(host.removeImage('changing'))).toMatchObject({
      code: 'SF_SNAPSHOT_IN_USE',
      details: { users: [young.id] },
    });
    await old.kill();
    await eventually(async () => {
      const ids = (await host.snapshots()).map(({ id }) => id);
      expect(ids).not.toContain(first.image.snapshot);
    });
  });
});
