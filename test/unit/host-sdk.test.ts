// The host SDK against the real server over a fake service: what programs get, what they are told
// when it fails, and that nothing is left behind.

import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { connect, type Host, SnowforkError, type Vm } from '@snowfork/sdk';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { type RunningServer, startServer } from '../../packages/clone-agent/src/api/server.js';
import { readEvents, type StreamEvent } from '../../packages/sdk/src/host/events.js';
import { eventually } from '../support/eventually.js';
import { FakeService, ROOM } from '../support/fake-service.js';

const FAKE_AGENT = fileURLToPath(new URL('../support/fake-agent.mjs', import.meta.url));
const SDK = fileURLToPath(import.meta.resolve('@snowfork/sdk'));

let folder: string;
let service: FakeService;
let server: RunningServer | undefined;
let host: Host;
let vm: Vm;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'sf-sdk-'));
  service = new FakeService();
  server = await startServer({ service, socketPath: join(folder, 'agent.sock'), version: '1' });
  host = await connect({ stateFolder: folder, start: false });
  vm = await host.launch('minimal');
});

afterEach(async () => {
  vi.unstubAllEnvs();
  await host.close();
  await server?.close();
  rmSync(folder, { recursive: true });
});

function coded(code: string): object {
  return expect.objectContaining({ name: 'SnowforkError', code });
}

/** What is given up is aborted where it runs. If it had not begun there, it is given more time. */
async function aborts(name: string, call: (timeoutMs: number) => Promise<unknown>): Promise<void> {
  let timeoutMs = 5;
  await eventually(async () => {
    timeoutMs *= 2;
    await expect(call(timeoutMs)).rejects.toEqual(coded('SF_TIMEOUT'));
    expect(service.aborted).toContain(name);
  });
}

describe('a host', () => {
  test('says what it is and has', async () => {
    expect(await host.info()).toMatchObject({ version: '0.1.0', vms: 1 });
    expect((await host.stats()).memory.roomBytes).toBe(5e9);
    expect((await host.images()).map(({ name }) => name)).toEqual(['minimal']);
    expect((await host.vms()).map(({ id }) => id)).toEqual([vm.id]);
    expect((await host.vm(vm.id)).initialInfo.times?.resumedMs).toBe(37);
  });

  test('is asked much at once under one signal, of which Node says nothing', async () => {
    const warnings: (string | undefined)[] = [];
    const warned = ({ stack }: Error) => void warnings.push(stack);
    process.on('warning', warned);
    const { signal } = new AbortController();
    const waits = Array.from({ length: 20 }, () => vm.wait({ signal, timeoutMs: 200 }));
    await Promise.allSettled(waits);
    process.off('warning', warned);
    expect(warnings).toEqual([]);
  });

  test('builds images with progress', async () => {
    const steps: string[] = [];
    const onProgress = ({ step }: { step: string }) => void steps.push(step);
    const request = { name: 'node', file: 'images/node.yaml', force: true };
    const result = await host.buildImage(request, { onProgress });
    expect(result).toMatchObject({ unchanged: false, image: { name: 'node' } });
    expect(steps).toEqual(['packages', 'boot']);
    const sent = JSON.parse(service.calls.at(-1)?.slice('buildImage '.length) ?? '');
    expect(sent.file).toBe(join(process.cwd(), 'images/node.yaml'));
    await host.removeImage('node');
    await expect(host.removeImage('node')).rejects.toEqual(coded('SF_IMAGE_NOT_FOUND'));
  });

  test('hands over the error of a build, and aborts one', async () => {
    const broken = host.buildImage({ name: 'broken', file: '/broken.yaml' });
    await expect(broken).rejects.toEqual(coded('SF_IMAGE_BUILD_FAILED'));
    const controller = new AbortController();
    const slow = host.buildImage(
      { name: 'slow', file: '/slow.yaml' },
      { onProgress: () => controller.abort(), signal: controller.signal },
    );
    await expect(slow).rejects.toEqual(coded('SF_ABORTED'));
    await eventually(() => expect(service.aborted).toEqual(['buildImage']));
  });

  test('joins tickets, values decoded', async () => {
    service.slots = [
      { cloneId: 1, status: 'exited', value: Buffer.from('raw') },
      { cloneId: 2, status: 'lost', reason: 'crashed' },
      { cloneId: 3, status: 'running' },
    ];
    const slots = await host.join({ id: 't1' }, { timeoutMs: 10 });
    expect(slots.map(({ status }) => status)).toEqual(['exited', 'lost', 'running']);
    const value = slots[0]?.status === 'exited' ? slots[0].value : undefined;
    expect(Buffer.from(value as Uint8Array).toString()).toBe('raw');
    await expect(host.join('nobody')).rejects.toEqual(coded('SF_TICKET_NOT_FOUND'));
    await host.killTicket('t1');
    expect(service.calls.slice(-3)).toEqual([
      'join t1 10',
      'join nobody undefined',
      'killTicket t1',
    ]);
  });

  test('makes clones of checkpoints, and keeps those that are used', async () => {
    const { snapshot, freeze } = await vm.checkpoint();
    expect(freeze.pauseMs).toBe(12.5);
    const { clones, ticket } = await host.createClones(snapshot, 2);
    expect(clones.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled']);
    expect(ticket.clones).toBe(2);
    const [first] = clones;
    const used = first?.status === 'fulfilled' ? first.value.initialInfo.snapshot : '';
    await expect(host.removeSnapshot(used)).rejects.toEqual(coded('SF_SNAPSHOT_IN_USE'));
    await host.removeSnapshot(snapshot.id);
    expect((await host.snapshots()).map(({ id }) => id)).toEqual([used]);
  });

  test('tells of changes', async () => {
    const controller = new AbortController();
    const changes = host.watch({ signal: controller.signal });
    const first = changes.next();
    await eventually(() => expect(service.listeners).toBe(1));
    const other = await host.launch('minimal');
    expect((await first).value).toEqual({ kind: 'vm', id: other.id });
    controller.abort();
    await expect(changes.next()).rejects.toEqual(coded('SF_ABORTED'));
    await eventually(() => expect(service.listeners).toBe(0));
  });
});

describe('a VM', () => {
  test('forks: settled per clone', async () => {
    await host.buildImage({ name: 'flaky', file: '/flaky.yaml' });
    const flaky = await host.launch('flaky');
    const { clones, freeze, snapshot, ticket } = await flaky.fork(3);
    expect(clones.map(({ cloneId, status }) => `${cloneId} ${status}`)).toEqual([
      '1 fulfilled',
      '2 rejected',
      '3 fulfilled',
    ]);
    expect(clones[1]).toMatchObject({ reason: coded('SF_CLONE_FAILED') });
    expect(clones[1]?.status === 'rejected' && clones[1].reason).toBeInstanceOf(SnowforkError);
    expect(freeze.pauseMs).toBe(12.5);
    expect(snapshot.vm).toBe(flaky.id);
    expect(ticket).toMatchObject({ asked: 3, clones: 3 });
  });

  test('gets a ticket for fewer, with the reason', async () => {
    const { clones, ticket } = await vm.fork(256);
    expect(clones).toHaveLength(ROOM);
    expect(ticket).toMatchObject({ asked: 256, clones: ROOM, reason: expect.any(String) });
  });

  test.each([0, -1, 1.5, 257, Number.NaN, Number.POSITIVE_INFINITY])(
    'is not forked into %d clones, and the agent is not even asked',
    async (count) => {
      const before = service.calls.length;
      await expect(vm.fork(count)).rejects.toEqual(coded('SF_BAD_REQUEST'));
      await expect(vm.fork(count)).rejects.toThrow(`not ${count}`);
      await expect(host.createClones('s1', count)).rejects.toEqual(coded('SF_BAD_REQUEST'));
      expect(service.calls.length).toBe(before);
    },
  );

  test('ends: killed, exited with a value, waited for', async () => {
    const waiting = vm.wait();
    await eventually(() => expect(service.calls).toContain(`wait ${vm.id}`));
    service.end(vm.id, { how: 'exited', value: { price: 10n } });
    expect(await waiting).toEqual({ how: 'exited', value: { price: 10n } });
    expect((await vm.info()).end).toEqual({ how: 'exited', value: { price: 10n } });
    await expect(vm.fork(1)).rejects.toEqual(coded('SF_VM_GONE'));
    await expect(vm.stats()).rejects.toEqual(coded('SF_VM_GONE'));
    const other = await host.launch('minimal');
    await other.kill();
    expect(await other.wait()).toMatchObject({ how: 'killed' });
    await expect(host.vm('none')).rejects.toEqual(coded('SF_VM_NOT_FOUND'));
  });

  test('is killed at the end of its scope', async () => {
    let id = '';
    {
      await using scoped = await host.launch('minimal');
      id = scoped.id;
      expect((await scoped.info()).state).toBe('running');
    }
    expect((await (await host.vm(id)).info()).end?.how).toBe('killed');
  });

  test('waits no longer than it is told', async () => {
    await expect(vm.wait({ timeoutMs: 5 })).rejects.toEqual(coded('SF_TIMEOUT'));
    const signal = AbortSignal.timeout(5);
    await expect(vm.wait({ signal })).rejects.toEqual(coded('SF_TIMEOUT'));
    await expect(vm.wait({ signal: AbortSignal.abort() })).rejects.toEqual(coded('SF_ABORTED'));
    await expect(vm.wait({ timeoutMs: Number.NaN })).rejects.toEqual(coded('SF_BAD_REQUEST'));
    await expect(host.launch('slow', { timeoutMs: 5 })).rejects.toEqual(coded('SF_TIMEOUT'));
    await aborts('fork', (timeoutMs) => vm.fork(13, { timeoutMs }));
  });

  test('has a console and logs', async () => {
    await using session = await vm.console();
    const output = session.output[Symbol.asyncIterator]();
    expect((await output.next()).value?.toString()).toBe('boot\r\nlogin: ');
    await eventually(() => expect(service.consoleFeed.listeners).toBe(1));
    await session.write('root\n');
    expect(service.typed.toString()).toBe('root\n');
    expect((await output.next()).value?.toString()).toBe('root\n');
    session.close();
    expect((await output.next()).done).toBe(true);
    const logs: string[] = [];
    for await (const chunk of vm.logs()) logs.push(chunk.toString());
    expect(logs).toEqual(['guest side: ready\n']);
  });

  test('shows where output was left out', async () => {
    const session = await vm.console();
    await eventually(() => expect(service.consoleFeed.listeners).toBe(1));
    for (let index = 0; index < 100; index += 1)
      service.consoleFeed.push(Buffer.alloc(65_536, 'x'));
    service.consoleFeed.end();
    let left = 0;
    let seen = 0;
    for await (const chunk of session.output) {
      const notice = /\[(\d+) bytes left out/.exec(chunk.subarray(0, 100).toString());
      if (notice !== null) left += Number(notice[1]);
      else if (chunk[0] === 'x'.charCodeAt(0)) seen += chunk.length;
    }
    expect(left).toBeGreaterThan(0);
    expect(seen).toBe(100 * 65_536 - left);
  });
});

describe('exec', () => {
  test('gives exit code and output, by arguments or by a line for the shell', async () => {
    expect(await vm.exec(['echo', 'a', 'b'])).toEqual({
      code: 0,
      signal: null,
      stdout: 'a b\n',
      stderr: '',
    });
    expect((await vm.exec('ls | wc')).stdout).toBe('sh: ls | wc\n');
    expect((await vm.exec(['warn', 'oh'])).stderr).toBe('oh\n');
    expect(await vm.exec(['exit', '7'])).toMatchObject({ code: 7, signal: null });
    const { stdout } = await vm.exec(['echo', 'raw'], { encoding: 'buffer' });
    expect(stdout).toEqual(Buffer.from('raw\n'));
  });

  test('hands over folder and environment', async () => {
    const { stdout } = await vm.exec(['show'], { cwd: '/tmp', env: { A: '1' } });
    expect(JSON.parse(stdout)).toEqual({
      command: ['show'],
      cwd: '/tmp',
      env: { A: '1' },
      stdin: false,
    });
  });

  test('takes input as text, bytes or a stream', async () => {
    expect((await vm.exec(['cat'], { stdin: 'text' })).stdout).toBe('text');
    expect((await vm.exec(['cat'], { stdin: '' })).stdout).toBe('');
    const big = Buffer.alloc(5_000_000, 'abc');
    const { stdout } = await vm.exec(['cat'], { stdin: big, encoding: 'buffer' });
    expect(stdout.equals(big)).toBe(true);
    async function* parts() {
      yield 'one ';
      yield Buffer.from('two');
    }
    expect((await vm.exec(['cat'], { stdin: parts() })).stdout).toBe('one two');
  });

  test('does not mind a command that ends before it has read its input', async () => {
    const stdin = Buffer.alloc(5_000_000);
    expect(await vm.exec(['exit', '3'], { stdin })).toMatchObject({ code: 3 });
    expect(await vm.exec(['deaf'], { stdin })).toMatchObject({ code: null, signal: 13 });
    expect(service.aborted).toEqual([]);
  });

  test('kills the command and throws what the input threw', async () => {
    async function* input() {
      yield 'some';
      throw new RangeError('mine');
    }
    await expect(vm.exec(['cat'], { stdin: input() })).rejects.toThrow(new RangeError('mine'));
    await eventually(() => expect(service.aborted).toEqual(['exec']));
  });

  test('kills the command at the deadline, on abort, and when a callback throws', async () => {
    await aborts('exec', (timeoutMs) => vm.exec(['sleep'], { timeoutMs }));
    const controller = new AbortController();
    const onStdout = () => controller.abort();
    const { signal } = controller;
    await expect(vm.exec(['sleep'], { signal, onStdout })).rejects.toEqual(coded('SF_ABORTED'));
    const throwing = vm.exec(['sleep'], {
      onStdout: () => {
        throw new RangeError('mine');
      },
    });
    await expect(throwing).rejects.toThrow(new RangeError('mine'));
    await eventually(() => {
      const begun = service.calls.filter((call) => call.startsWith('exec '));
      expect(begun.length).toBeGreaterThanOrEqual(3);
      expect(service.aborted).toEqual(begun.map(() => 'exec'));
    });
  });

  test('bounds what it collects, unless a callback takes it', async () => {
    const flood = vm.exec(['flood', '200000'], { maxBuffer: 100_000 });
    await expect(flood).rejects.toEqual(coded('SF_VALUE_TOO_LARGE'));
    let seen = 0;
    const { stdout } = await vm.exec(['flood', '200000'], {
      maxBuffer: 100_000,
      onStdout: (chunk) => {
        seen += chunk.length;
      },
    });
    expect(seen).toBe(200_000);
    expect(stdout).toHaveLength(100_000);
  });

  test('carries much output whole and in order, its reader slow or not', async () => {
    const sizeBytes = 8 * 1024 * 1024;
    const { stdout } = await vm.exec(['flood', String(sizeBytes)], { encoding: 'buffer' });
    expect(stdout).toHaveLength(sizeBytes);
    for (let at = 0; at < sizeBytes; at += 65_536) expect(stdout[at]).toBe((at / 65_536) % 256);
    let waits = 0;
    const slow = await vm.exec(['flood', '1000000'], {
      onStdout: async () => {
        await new Promise((resolve) => setImmediate(resolve));
        waits += 1;
      },
    });
    expect(slow.stdout).toHaveLength(1_000_000);
    expect(waits).toBe(16);
  });

  test('says what the guest says', async () => {
    await expect(vm.exec(['unheard'])).rejects.toEqual(coded('SF_BAD_REQUEST'));
    service.failNext = new SnowforkError('SF_GUEST_NOT_READY', 'still starting');
    await expect(vm.exec(['echo'])).rejects.toEqual(coded('SF_GUEST_NOT_READY'));
  });

  test('writes files', async () => {
    await vm.writeFile('/tmp/a', 'text', { mode: 0o755 });
    await vm.writeFile('/tmp/b', Buffer.alloc(3_000_000, 7));
    expect(service.files.get('/tmp/a 755')?.toString()).toBe('text');
    expect(service.files.get('/tmp/b ')?.equals(Buffer.alloc(3_000_000, 7))).toBe(true);
    await expect(vm.writeFile('/proc/x', '')).rejects.toThrow('cannot create');
  });
});

describe('spawn', () => {
  test('is a process with streams', async () => {
    const child = await vm.spawn(['cat']);
    expect(child.pid).toBe(99);
    child.stdin.write('one ');
    child.stdin.write('two ');
    child.stdin.end('three');
    const chunks: Buffer[] = [];
    for await (const chunk of child.stdout) chunks.push(chunk);
    expect(Buffer.concat(chunks).toString()).toBe('one two three');
    expect(await child.exit).toEqual({ code: 0, signal: null });
    await expect(child.kill()).rejects.toEqual(coded('SF_EXEC_NOT_FOUND'));
  });

  test('is signalled by name or number', async () => {
    const first = await vm.spawn(['sleep']);
    await first.kill('SIGINT');
    expect(await first.exit).toEqual({ code: 3, signal: null });
    const second = await vm.spawn(['sleep']);
    await second.kill(15);
    expect(await second.exit).toEqual({ code: null, signal: 15 });
    const third = await vm.spawn(['sleep']);
    await expect(third.kill(77)).rejects.toEqual(coded('SF_BAD_REQUEST'));
    await third[Symbol.asyncDispose]();
    await expect(third.exit).rejects.toEqual(coded('SF_ABORTED'));
    await eventually(() => expect(service.aborted).toEqual(['exec']));
  });

  test('makes the command wait for its reader', async () => {
    const sizeBytes = 64 * 1024 * 1024;
    const child = await vm.spawn(['flood', String(sizeBytes)]);
    const exec = service.execOf(2);
    for (let last = -1, same = 0; same < 10; last = exec.taken) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      same = exec.taken === last && last > 0 ? same + 1 : 0;
    }
    expect(exec.taken).toBeLessThan(sizeBytes / 8);
    let received = 0;
    for await (const chunk of child.stdout) received += chunk.length;
    expect(received).toBe(sizeBytes);
    expect((await child.exit).code).toBe(0);
  });

  test('goes on when a reader has seen enough', async () => {
    const child = await vm.spawn(['flood', '8000000']);
    for await (const chunk of child.stdout) {
      expect(chunk.length).toBeGreaterThan(0);
      break;
    }
    expect((await child.exit).code).toBe(0);
  });

  test('ends its streams with the error when the agent goes', async () => {
    const child = await vm.spawn(['sleep']);
    const reading = child.stdout.toArray();
    const seen = expect(reading).rejects.toEqual(coded('SF_ABORTED'));
    await server?.close();
    await seen;
    await expect(child.exit).rejects.toEqual(coded('SF_ABORTED'));
    server = undefined;
  });

  test('tells a writer that nobody reads any more', async () => {
    const child = await vm.spawn(['exit', '0']);
    await child.exit;
    const late = new Promise((resolve) => child.stdin.write('x', resolve));
    expect(await late).toBeInstanceOf(Error);
  });
});

describe('the agent', () => {
  test('that is not there is named, with what to do', async () => {
    const absent = connect({ stateFolder: join(folder, 'none'), start: false });
    await expect(absent).rejects.toEqual(coded('SF_AGENT_UNREACHABLE'));
    await expect(absent).rejects.toThrow('sf up');
  });

  test('that goes away in the middle is named too', async () => {
    const other = join(folder, 'other');
    mkdirSync(other);
    const head = 'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n';
    const raw = await rawServer(join(other, 'agent.sock'), (socket) => {
      socket.on('error', () => {});
      socket.end(`${head}{ "vms": [`);
    });
    const lost = connect({ stateFolder: other, start: false });
    await expect(lost).rejects.toEqual(coded('SF_AGENT_UNREACHABLE'));
    raw.close();
  });

  test('is started, answers, outlives its starter, and is shut down', async () => {
    vi.stubEnv('SNOWFORK_AGENT', FAKE_AGENT);
    const state = join(folder, 'state');
    const first = await connect({ stateFolder: state });
    const { pid } = await first.info();
    expect(pid).not.toBe(process.pid);
    await first.close();
    const second = await connect({ stateFolder: state, start: false });
    expect((await second.info()).pid).toBe(pid);
    await second.shutDown();
    expect(() => process.kill(pid, 0)).toThrow();
    await second.close();
  });

  test('that cannot start says why in the error', async () => {
    vi.stubEnv('SNOWFORK_AGENT', FAKE_AGENT);
    vi.stubEnv('FAKE_AGENT_MODE', 'fail');
    const state = join(folder, 'state');
    const failed = connect({ stateFolder: state });
    await expect(failed).rejects.toEqual(coded('SF_AGENT_UNREACHABLE'));
    await expect(failed).rejects.toThrow('no room on the moon');
    expect(readFileSync(join(state, 'agent.log'), 'utf8')).toContain('moon');
  });

  test('that comes second leaves the folder to the first, which both starters get', async () => {
    vi.stubEnv('SNOWFORK_AGENT', FAKE_AGENT);
    const state = join(folder, 'state');
    const first = connect({ stateFolder: state });
    await eventually(() => expect(existsSync(join(state, 'agent.log'))).toBe(true));
    vi.stubEnv('FAKE_AGENT_MODE', 'taken');
    const second = connect({ stateFolder: state });
    const [one, two] = await Promise.all([first, second]);
    expect((await one.info()).pid).toBe((await two.info()).pid);
    await one.shutDown();
    await Promise.all([one.close(), two.close()]);
  });

  test('is not waited for any longer when the caller gives up', async () => {
    const hung = join(folder, 'hung.mjs');
    writeFileSync(hung, 'process.stdin.resume(); setTimeout(() => {}, 3000);');
    vi.stubEnv('SNOWFORK_AGENT', hung);
    const started = connect({
      stateFolder: join(folder, 'state'),
      signal: AbortSignal.timeout(50),
    });
    await expect(started).rejects.toEqual(coded('SF_TIMEOUT'));
  });

  test('in a folder that cannot be made is an error of permission', async () => {
    vi.stubEnv('SNOWFORK_AGENT', FAKE_AGENT);
    const blocked = join(folder, 'file');
    writeFileSync(blocked, '');
    await expect(connect({ stateFolder: join(blocked, 'x') })).rejects.toEqual(
      coded('SF_PERMISSION'),
    );
  });

  test('with a path too long for a socket is refused', async () => {
    const state = join(folder, 'x'.repeat(100));
    await expect(connect({ stateFolder: state })).rejects.toEqual(coded('SF_BAD_REQUEST'));
  });
});

describe('close', () => {
  test('rejects what waits, and what is asked afterwards', async () => {
    const waiting = vm.wait();
    await eventually(() => expect(service.calls).toContain(`wait ${vm.id}`));
    await host.close();
    await expect(waiting).rejects.toEqual(coded('SF_ABORTED'));
    await expect(host.info()).rejects.toEqual(coded('SF_ABORTED'));
  });

  test.each(['await host.close();', ''])('lets the process end (%j)', async (last) => {
    const program = `
      import { connect } from ${JSON.stringify(SDK)};
      const host = await connect({ stateFolder: ${JSON.stringify(folder)}, start: false });
      await Promise.all([host.info(), host.vms(), host.stats()]);
      ${last}
      console.log('done');`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', program]);
    const exit = new Promise((resolve) => child.once('exit', resolve));
    expect((await child.stdout.toArray()).join('')).toBe('done\n');
    expect(await exit).toBe(0);
  });
});

describe('server-sent events', () => {
  test('are the same however their bytes are cut', async () => {
    const word = fc.stringMatching(/^[a-z]{1,10}$/);
    const data = fc.string({ unit: 'binary', maxLength: 200 }).map((text) => JSON.stringify(text));
    const event = fc.record({ event: word, data });
    await fc.assert(
      fc.asyncProperty(fc.array(event), fc.array(fc.nat()), async (sent, cuts) => {
        const text = sent.map(({ event, data }) => `event: ${event}\ndata: ${data}\n\n`).join('');
        const bytes = Buffer.from(text);
        const places = cuts.map((cut) => cut % (bytes.length + 1)).sort((a, b) => a - b);
        async function* chunks() {
          let from = 0;
          for (const to of [...places, bytes.length]) {
            yield bytes.subarray(from, to);
            from = to;
          }
        }
        const received: StreamEvent[] = [];
        for await (const each of readEvents(chunks())) received.push(each);
        expect(received).toEqual(sent);
      }),
    );
  });

  test('without end are refused', async () => {
    async function* endless() {
      yield Buffer.from('event: x\ndata: ');
      for (;;) yield Buffer.alloc(1024 * 1024, 'x');
    }
    await expect(readEvents(endless()).next()).rejects.toEqual(coded('SF_INTERNAL'));
  });
});

async function rawServer(
  path: string,
  onConnection: (socket: import('node:net').Socket) => void,
): Promise<Server> {
  const raw = createServer(onConnection);
  await new Promise<void>((resolve) => raw.listen(path, resolve));
  return raw;
}
