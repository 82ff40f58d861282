// Commands in a guest, its console, and the life of one VM as its owner sees it. One VM serves all
// tests of commands.

import { createHash, randomBytes } from 'node:crypto';
import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { clonesOf, describeVms, endAll, MiB, rejection, Screen, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { testHost } from '../support/test-host.js';

const SIGKILL = 9;
const SIGTERM = 15;

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

describeVms('a command', () => {
  let host: Host;
  let vm: Vm;

  beforeAll(async () => {
    host = await testHost('minimal');
    vm = await host.launch('minimal');
  });

  afterAll(async () => {
    if (host === undefined) return;
    await endAll(host);
    await host.close();
  });

  it('gives its exit code or signal, and what it wrote to stdout and stderr, apart', async () => {
    const line = 'echo out; echo err >&2; echo more; exit 7';
    expect(await vm.exec(line)).toEqual({
      ...{ code: 7, signal: null },
      ...{ stdout: 'out\nmore\n', stderr: 'err\n' },
    });
    expect(await vm.exec('kill -SEGV $$')).toMatchObject({ code: null, signal: 11 });
    const words = ['printf', '%s|', 'a b', '', "'$HOME'", 'ä'];
    expect(await vm.exec(words)).toMatchObject({ code: 0, stdout: "a b||'$HOME'|ä|" });
  });

  it('gets the folder and the environment that are asked for', async () => {
    const options = { cwd: '/usr/lib/snowfork', env: { NAME: 'a=b\nc', EMPTY: '' } };
    const { stdout } = await vm.exec('pwd; echo "$NAME"; env | grep -E "^(EMPTY|HOME)="', options);
    expect(stdout).toBe('/usr/lib/snowfork\na=b\nc\nHOME=/root\nEMPTY=\n');
  });

  it('that can not be started is a typed error with the guest’s words', async () => {
    const missing = await rejection(vm.exec(['/no/such/program']));
    expect(missing).toMatchObject({ code: 'SF_BAD_REQUEST' });
    expect(missing.message).toContain("/no/such/program can't be run: No such file");
    const nowhere = await rejection(vm.exec('true', { cwd: '/no/such/folder' }));
    expect(nowhere.message).toContain("/no/such/folder can't be entered");
    expect(await rejection(vm.exec(['echo', 'a\0b']))).toMatchObject({ code: 'SF_BAD_REQUEST' });
    expect(await rejection(vm.exec(['echo', 'x'.repeat(100_000)]))).toMatchObject({
      code: 'SF_BAD_REQUEST',
    });
  });

  it('is told to its caller while it runs, and reads its input meanwhile', async () => {
    const command = await vm.spawn('while read -r line; do echo "got $line"; done; echo end >&2');
    const lines = (async function* () {
      for await (const chunk of command.stdout) yield String(chunk);
    })();
    for (const word of ['one', 'two']) {
      command.stdin.write(`${word}\n`);
      // Each answer comes before the next line is written.
      expect((await lines.next()).value).toBe(`got ${word}\n`);
    }
    command.stdin.end();
    command.stderr.resume();
    expect(await command.exit).toEqual({ code: 0, signal: null });
  });

  it('gives back 8 MB of input byte for byte', async () => {
    const bytes = randomBytes(8 * MiB);
    const { stdout, code } = await vm.exec('cat', { stdin: bytes, encoding: 'buffer' });
    expect({ code, hash: sha256(stdout) }).toEqual({ code: 0, hash: sha256(bytes) });
    const file = '/tmp/written';
    await vm.writeFile(file, bytes, { mode: 0o640 });
    expect(await sh(vm, `sha256sum <${file}; stat -c %a ${file}; rm ${file}`)).toBe(
      `${sha256(bytes)}  -\n640`,
    );
  });

  it('that reads nothing does not hold up who writes to it', async () => {
    const result = await vm.exec('exec <&-; echo deaf', { stdin: randomBytes(2 * MiB) });
    expect(result).toMatchObject({ code: 0, stdout: 'deaf\n' });
  });

  it('stands still while nobody takes its output, and others run', async () => {
    const flood = await vm.spawn('yes', { stdin: false });
    await eventually(() => expect(flood.stdout.readableLength).toBeGreaterThan(512 * 1024));
    expect(await sh(vm, 'echo beside')).toBe('beside');
    expect(flood.stdout.readableLength).toBeLessThan(4 * MiB);
    await flood.kill('SIGKILL');
    flood.stdout.resume();
    flood.stderr.resume();
    expect(await flood.exit).toEqual({ code: null, signal: SIGKILL });
  });

  it('is killed with all it started, by a signal, a time-out or an abort', async () => {
    const tree = (mark: string) => `sleep ${mark} & sleep ${mark}; true`;
    const running = (mark: string) => sh(vm, `ps | grep -c "[s]leep ${mark}$" || true`);
    const command = await vm.spawn(tree('1001'), { stdin: false });
    await command.kill();
    command.stdout.resume();
    command.stderr.resume();
    expect(await command.exit).toEqual({ code: null, signal: SIGTERM });
    expect(await rejection(command.kill())).toMatchObject({ code: 'SF_EXEC_NOT_FOUND' });

    expect(await rejection(vm.exec(tree('1002'), { timeoutMs: 300 }))).toMatchObject({
      code: 'SF_TIMEOUT',
    });
    const aborting = new AbortController();
    const aborted = rejection(vm.exec(tree('1003'), { signal: aborting.signal }));
    await eventually(async () => expect(await running('1003')).not.toBe('0'));
    aborting.abort();
    expect(await aborted).toMatchObject({ code: 'SF_ABORTED' });
    for (const mark of ['1001', '1002', '1003']) {
      await eventually(async () => expect(await running(mark)).toBe('0'));
    }
  });

  it('runs beside 49 others', async () => {
    const numbers = Array.from({ length: 50 }, (_, index) => index);
    const results = await Promise.all(
      numbers.map((number) => vm.exec(`read -r word; echo ${number} $word`, { stdin: 'in\n' })),
    );
    expect(results.map(({ stdout }) => stdout)).toEqual(numbers.map((number) => `${number} in\n`));
  });

  it('that was running when its VM was forked goes on in the clone, its output in the logs', async () => {
    const command = await vm.spawn(
      `n=0; until [ -e /tmp/enough ]; do n=$((n+1)); echo "line $n"; usleep 50000; done; echo end`,
    );
    const lines: string[] = [];
    command.stdout.on('data', (chunk) => lines.push(...String(chunk).trimEnd().split('\n')));
    command.stderr.resume();
    await eventually(() => expect(lines.length).toBeGreaterThan(2));
    const [clone] = clonesOf(await vm.fork(1));
    const linesAtFork = lines.length;
    await eventually(() => expect(lines.length).toBeGreaterThan(linesAtFork + 2));
    await sh(clone!, 'echo >/tmp/enough');

    let log = '';
    await eventually(async () => {
      log = '';
      for await (const chunk of clone!.logs()) log += chunk;
      expect(log).toContain('end\n');
    });
    const inherited = log.split('\n').filter((line) => line.startsWith('line '));
    const numbers = inherited.map((line) => Number(line.slice(5)));
    expect(numbers.length).toBeGreaterThan(0);
    // It goes on where the parent's was, without a gap.
    expect(numbers).toEqual(numbers.map((_, index) => numbers[0]! + index));
    expect(lines).not.toContain('end');
    await sh(vm, `echo >/tmp/enough`);
    expect(await command.exit).toEqual({ code: 0, signal: null });
    const own = lines.filter((line) => line.startsWith('line '));
    expect(own).toEqual(own.map((_, index) => `line ${index + 1}`));
    expect(own).toContain(`line ${numbers[0]}`);
    await clone!.kill();
  });

  it('that waits in a clone for input gets none: that goes to the parent', async () => {
    const command = await vm.spawn('read -r word; echo "heard $word"');
    const [clone] = clonesOf(await vm.fork(1));
    command.stdin.write('from the host\n');
    command.stderr.resume();
    let heard = '';
    for await (const chunk of command.stdout) heard += chunk;
    expect(heard).toBe('heard from the host\n');
    // The clone's is still there, and has said nothing.
    expect(await sh(clone!, 'ps | grep -c "[r]ead -r word; echo"')).toBe('1');
    for await (const chunk of clone!.logs()) expect(String(chunk)).toBe('');
    await clone!.kill();
  });

  it('asked for while its VM is being frozen runs after that, once, in the parent', async () => {
    const [fork, ...results] = await Promise.all([
      vm.fork(1),
      ...Array.from({ length: 10 }, (_, at) => vm.exec(`echo ${at} >>/tmp/asked; echo ${at}`)),
    ]);
    expect(results.map(({ stdout }) => Number(stdout))).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect((await sh(vm, 'sort -n /tmp/asked')).split('\n')).toHaveLength(10);
    await clonesOf(fork)[0]!.kill();
  });
});

describeVms('a VM', () => {
  let host: Host;

  beforeAll(async () => {
    host = await testHost('minimal');
  });

  afterAll(async () => {
    if (host === undefined) return;
    await endAll(host);
    await host.close();
  });

  it('shows its console and takes input there; so does a clone of it, apart', async () => {
    const vm = await host.launch('minimal');
    await using screen = await Screen.open(vm);
    await screen.type('word=parent; echo $word-$((20+1))', 'parent-21');
    const [clone] = clonesOf(await vm.fork(1));
    await using cloneScreen = await Screen.open(clone!);
    // The shell of the clone knows what was typed before the fork.
    await cloneScreen.type('echo $word-$((30+1)); word=clone', 'parent-31');
    await cloneScreen.type('echo $word-$((40+1))', 'clone-41');
    await screen.type('echo $word-$((50+1))', 'parent-51');
    await clone!.kill();
    await vm.kill();
  });

  it('tells what it takes, and how it ended, to all who wait', async () => {
    const vm = await host.launch('minimal');
    const before = await vm.stats();
    await sh(vm, 'head -c 33554432 /dev/urandom >/tmp/ballast');
    const after = await vm.stats();
    const grownBytes = (after.privatePages - before.privatePages) * 4096;
    expect(grownBytes).toBeGreaterThan(32 * MiB);
    expect(grownBytes).toBeLessThan(64 * MiB);
    expect(after.pssBytes).toBeGreaterThan(after.ramPssBytes);
    expect(after.cpuMs).toBeGreaterThan(0);

    const waits = [vm.wait(), vm.wait()];
    expect(await rejection(vm.wait({ timeoutMs: 50 }))).toMatchObject({ code: 'SF_TIMEOUT' });
    const { pid } = await vm.info();
    await vm.kill();
    const end = { how: 'killed', reason: 'a caller of the API ended it' };
    expect(await Promise.all([...waits, vm.wait()])).toEqual([end, end, end]);
    expect(await vm.info()).toMatchObject({ state: 'ended', end });
    expect(() => process.kill(pid!, 0)).toThrow('ESRCH');
    // To end what has ended is no error.
    await vm.kill();
    expect((await host.vms()).map(({ id }) => id)).not.toContain(vm.id);
    expect((await host.vms({ all: true })).map(({ id }) => id)).toContain(vm.id);
  });

  it('that hands over a value ends with it, also without a ticket', async () => {
    const vm = await host.launch('minimal');
    await vm.exec(`sf-guest exit --json '{"sum":42,"list":[1,null,"ä"]}'`).catch(() => {});
    expect(await vm.wait()).toEqual({ how: 'exited', value: { sum: 42, list: [1, null, 'ä'] } });
  });
});
