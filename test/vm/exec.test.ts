// Commands that the host runs in a guest, and what is left of them in clones; the console.

import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { clonesOf, describeVms, endAll, rejection, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { testHost } from '../support/test-host.js';

const MiB = 1024 * 1024;

describeVms('a command in a guest', () => {
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

  it('has its exit code, its output and its errors apart', async () => {
    const result = await vm.exec('echo out; echo err >&2; exit 7');
    expect(result).toMatchObject({ code: 7, signal: null, stdout: 'out\n', stderr: 'err\n' });
  });

  it('gets its arguments as they are, its folder and its environment', async () => {
    const words = ['a b', '$HOME', "it's", ''];
    const command = ['/bin/sh', '-c', 'pwd; echo "$NAME"; for w; do echo "[$w]"; done', 'sh'];
    const result = await vm.exec([...command, ...words], { cwd: '/run', env: { NAME: 'ünï' } });
    expect(result.stdout).toBe("/run\nünï\n[a b]\n[$HOME]\n[it's]\n[]\n");
  });

  it('that is not there is an error that says so', async () => {
    const error = await rejection(vm.exec(['/no/such/program']));
    expect(error).toMatchObject({ code: 'SF_BAD_REQUEST' });
    expect(error.message).toContain('/no/such/program');
  });

  it('reads what it is sent, to the end', async () => {
    const input = Buffer.alloc(2 * MiB, 'snowfork\n');
    const { stdout } = await vm.exec('wc -c; echo end', { stdin: input });
    expect(stdout.split('\n').map((line) => line.trim())).toEqual([`${input.length}`, 'end', '']);
  });

  it('may say eight megabytes, and none is lost', async () => {
    const { stdout } = await vm.exec(['head', '-c', String(8 * MiB), '/dev/zero'], {
      encoding: 'buffer',
    });
    expect(stdout.length).toBe(8 * MiB);
    expect(stdout.equals(Buffer.alloc(8 * MiB))).toBe(true);
  });

  it('streams while it runs, and takes a signal', async () => {
    const child = await vm.spawn('echo begun; sleep 1000');
    for await (const chunk of child.stdout) {
      expect(String(chunk)).toBe('begun\n');
      break;
    }
    await child.kill('SIGTERM');
    expect(await child.exit).toMatchObject({ signal: 15 });
  });

  it('is ended by its deadline, with all that it started', async () => {
    const error = await rejection(vm.exec('sleep 4321 & sleep 4321; true', { timeoutMs: 1500 }));
    expect(error).toMatchObject({ code: 'SF_TIMEOUT' });
    await eventually(async () => expect(await running(vm, 'sleep')).toBe(0));
  });

  it('is one of fifty at once', async () => {
    const numbers = Array.from({ length: 50 }, (_, index) => index);
    const results = await Promise.all(
      numbers.map((n) => vm.exec(`read x; echo ${n} $x`, { stdin: 'in\n' })),
    );
    expect(results.map(({ stdout }) => stdout)).toEqual(numbers.map((n) => `${n} in\n`));
  });

  it('goes on in a clone, where its output is in the log', async () => {
    const chatty = await vm.spawn('while :; do echo tock; sleep 1; done');
    const [clone] = clonesOf(await vm.fork(1));
    await eventually(async () => expect(await logOf(clone!)).toContain('tock\n'));
    await chatty.kill('SIGKILL');
    await chatty.exit;
    expect(await running(clone!, 'sleep')).toBe(1);
  });

  it('waits in a clone for input that only the parent gets', async () => {
    const waiting = await vm.spawn('read word; echo "heard $word"; sleep 7777');
    const [clone] = clonesOf(await vm.fork(1));
    waiting.stdin.write('from the host\n');
    await eventually(async () => expect(await running(vm, 'sleep')).toBe(1));
    expect(await running(clone!, 'sleep')).toBe(0);
    expect(await logOf(clone!)).toBe('');
    await waiting.kill('SIGKILL');
    await waiting.exit;
  });

  it('does not stand in the way of a console with a shell', async () => {
    const console = await vm.console();
    let seen = '';
    const reading = (async () => {
      for await (const chunk of console.output) {
        seen += chunk;
        if (/answer 42\r?\n/.test(seen)) return;
      }
    })();
    await console.write('\n');
    await console.write('echo answer $((6*7))\n');
    await reading;
    console.close();
    expect(seen).toContain('answer 42');
  });

  it('of a VM that has ended is an error that says how it ended', async () => {
    const gone = await host.launch('minimal');
    await gone.kill();
    expect(await rejection(gone.exec('true'))).toMatchObject({ code: 'SF_VM_GONE' });
    expect(await gone.wait()).toMatchObject({ how: 'killed' });
    expect(await sh(vm, 'echo still here')).toContain('still here');
  });
});

/** How many processes of that name the guest has. */
async function running(vm: Vm, name: string): Promise<number> {
  const { stdout } = await vm.exec(['sh', '-c', 'cat /proc/[0-9]*/comm', 'sh']);
  return stdout.split('\n').filter((line) => line === name).length;
}

async function logOf(vm: Vm): Promise<string> {
  let log = '';
  for await (const chunk of vm.logs()) log += chunk;
  return log;
}
