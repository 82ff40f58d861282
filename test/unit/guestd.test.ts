// The daemon of the guest, `sf-guestd`, run as it is on this host with a unix socket for its port.
// Its identity folder is set, so that the host keeps its clock, its names and its random generator.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';
import {
  decodeLines,
  EXEC_WINDOW_BYTES,
  FLAG_END,
  FLAG_MORE,
  FRAME_PAYLOAD_BYTES_MAX,
  FrameType,
  VALUE_BYTES_MAX,
} from '../../packages/sdk/src/api/port.js';
import { decodeValue, encodeValue } from '../../packages/sdk/src/api/value.js';
import { eventually } from '../support/eventually.js';
import { connectPeer, type FramePeer, FrameServer } from '../support/fake-port.js';

const guestd = fileURLToPath(
  new URL('../../packages/clone-agent/guest/sf-guestd', import.meta.url),
);
const entropy = '0123456789abcdef'.repeat(4);

let folder: string;
let port: FrameServer;
let daemon: ChildProcess;
let words: string;
let agent: FramePeer;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'sf-guestd-test-'));
  mkdirSync(join(folder, 'etc'));
  mkdirSync(join(folder, 'cgroup'));
  writeFileSync(join(folder, 'cgroup/cgroup.freeze'), '');
  writeFileSync(join(folder, 'cgroup/cgroup.procs'), '');
  port = await FrameServer.listen(join(folder, 'port.sock'));
  words = '';
  daemon = spawn(guestd, [
    ...['--port', port.path, '--socket', join(folder, 'guest.sock')],
    ...['--identity-folder', folder, '--cgroup', join(folder, 'cgroup')],
    ...['--hooks', join(folder, 'hooks')],
  ]);
  daemon.stderr!.setEncoding('utf8').on('data', (text) => {
    words += text;
  });
  agent = await port.accept();
});

afterEach(async () => {
  const ended = once(daemon, 'exit');
  daemon.kill('SIGKILL');
  await ended;
  await port.close();
  rmSync(folder, { recursive: true });
});

const program = () => connectPeer(join(folder, 'guest.sock'));
const inFolder = (name: string) => readFileSync(join(folder, name), 'utf8');

async function lines(type: FrameType, stream?: number, peer = agent) {
  return Object.fromEntries(decodeLines((await peer.next(type, stream)).payload));
}

function execPayload(command: string[], options: { cwd?: string; env?: string[] } = {}): Buffer {
  const strings = [options.cwd ?? '', `${command.length}`, ...command, ...(options.env ?? [])];
  return Buffer.from(strings.map((text) => `${text}\0`).join(''));
}

/** Starts a command with an empty input, and gathers what it gives. */
function run(command: string[], options: { cwd?: string; env?: string[]; stream?: number } = {}) {
  const stream = options.stream ?? 1;
  agent.sendMessage(FrameType.exec, stream, execPayload(command, options));
  agent.send(FrameType.stdin, stream, Buffer.alloc(0), FLAG_END);
  return gather(stream);
}

/** All output of a command, with a CREDIT for each frame, and how it ended. */
async function gather(
  stream: number,
): Promise<{ stdout: string; stderr: string; code?: string; signal?: string; error?: string }> {
  const types = [FrameType.stdout, FrameType.stderr, FrameType.exit];
  const output = { stdout: '', stderr: '' };
  for (;;) {
    const { type, payload } = await agent.next(types, stream);
    if (type === FrameType.exit) return { ...output, ...Object.fromEntries(decodeLines(payload)) };
    output[type === FrameType.stdout ? 'stdout' : 'stderr'] += payload.toString('latin1');
    agent.sendLines(FrameType.credit, stream, { bytes: payload.length });
  }
}

function resume(role: string, fields: Record<string, string | number> = {}) {
  const time = `${BigInt(Date.now()) * 1_000_000n}`;
  const all = { fork: 'f1', role, id: 1, time, entropy, hostname: 'clone-1', ...fields };
  agent.sendLines(FrameType.resume, 0, all);
}

async function prepare() {
  agent.sendLines(FrameType.prepare, 0, { fork: 'f1' });
  const monotonic = expect.stringMatching(/^\d+$/);
  expect(await lines(FrameType.prepared)).toEqual({ fork: 'f1', monotonic });
}

test('says hello when the port opens', async () => {
  const hello = await lines(FrameType.hello);
  expect(hello.protocol).toBe('1');
  expect(hello.kernel).toMatch(/^\d+\.\d+/);
  expect(hello.hostname).not.toBe('');
});

const ask = (id: number, method: string) => encodeValue({ id, method, params: {} });

/** The agent has died; another one connects. */
async function nextAgent(): Promise<void> {
  agent.socket.destroy();
  agent = await port.accept();
}

test('what an agent that died had not answered is asked again of the next one', async () => {
  const first = await program();
  const ids = [1, 200, 70_000, 2 ** 31, 2 ** 40];
  for (const id of ids) first.sendMessage(FrameType.request, 0, ask(id, 'join'));
  const { stream } = await agent.message(FrameType.request);
  for (const _ of ids.slice(1)) await agent.message(FrameType.request);
  agent.sendMessage(FrameType.response, stream, encodeValue({ id: 70_000, result: 'by the old' }));
  expect(decodeValue((await first.message(FrameType.response)).payload)).toMatchObject({
    id: 70_000,
  });
  // Half a response, which never gets its end.
  const half = encodeValue({ id: 1, result: 'half' });
  agent.send(FrameType.response, stream, half, FLAG_MORE);
  await agent.settle();
  await nextAgent();
  first.sendMessage(FrameType.request, 0, ask(2, 'asked in between'));
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect(agent.frames).toEqual([]);
  resume('failed');
  agent.send(FrameType.again, 0);
  expect(await lines(FrameType.resumed)).toMatchObject({ ok: '1' });
  const asked: unknown[] = [];
  for (let count = 0; count < ids.length; count++) {
    const message = await agent.message(FrameType.request, stream);
    asked.push((decodeValue(message.payload) as { id: number }).id);
  }
  // In their order; the one that was asked last may be heard before the agent says AGAIN.
  expect(asked.filter((id) => id !== 2)).toEqual([1, 200, 2 ** 31, 2 ** 40]);
  expect(asked).toContain(2);
  await agent.settle();
  expect(agent.frames.filter(({ type }) => type === FrameType.request)).toEqual([]);
  agent.sendMessage(FrameType.response, stream, encodeValue({ id: 1, result: 'whole' }));
  expect(decodeValue((await first.message(FrameType.response)).payload)).toEqual({
    id: 1,
    result: 'whole',
  });
});

test('a response that comes with RESUME is not asked for again', async () => {
  const first = await program();
  first.sendMessage(FrameType.request, 0, ask(1, 'fork'));
  first.sendMessage(FrameType.request, 0, ask(2, 'join'));
  const { stream } = await agent.message(FrameType.request);
  await agent.message(FrameType.request);
  await prepare();
  await nextAgent();
  resume('parent');
  agent.sendMessage(FrameType.response, stream, encodeValue({ id: 1, result: 'forked' }));
  agent.send(FrameType.again, 0);
  expect(decodeValue((await agent.message(FrameType.request)).payload)).toMatchObject({ id: 2 });
  await agent.settle();
  expect(agent.frames.filter(({ type }) => type === FrameType.request)).toEqual([]);
  await eventually(() => expect(inFolder('cgroup/cgroup.freeze')).toMatch(/0$/));
});

test('commands outlive the agent; their input ends, and their output goes to the next one', async () => {
  agent.sendMessage(
    FrameType.exec,
    5,
    execPayload(['sh', '-c', 'cat; head -c 600000 /dev/zero; echo done']),
  );
  await lines(FrameType.started, 5);
  await nextAgent();
  resume('failed');
  agent.send(FrameType.again, 0);
  const { stdout, code } = await gather(5);
  expect(stdout).toHaveLength(600_005);
  expect(stdout.endsWith('done\n')).toBe(true);
  expect(code).toBe('0');
});

test('the next agent learns that the program it asks about has ended', async () => {
  const [one, two] = [await program(), await program()];
  one.sendMessage(FrameType.request, 0, ask(1, 'info'));
  two.sendMessage(FrameType.request, 0, ask(1, 'info'));
  const streams = [await agent.message(FrameType.request), await agent.message(FrameType.request)];
  one.socket.destroy();
  const ended = (await agent.next(FrameType.closed)).stream;
  const living = streams.map(({ stream }) => stream).find((stream) => stream !== ended)!;
  await nextAgent();
  resume('failed');
  agent.sendLines(FrameType.again, 0, { owner: living });
  agent.sendLines(FrameType.again, 0, { owner: ended });
  expect((await agent.next(FrameType.closed)).stream).toBe(ended);
  await agent.settle();
  expect(agent.frames.filter(({ type }) => type === FrameType.closed)).toEqual([]);
});

test('PING is answered in a freeze, and nothing else comes with it', async () => {
  const one = await program();
  await prepare();
  agent.frames.length = 0;
  one.sendMessage(FrameType.request, 0, Buffer.from('asked in the freeze'));
  agent.send(FrameType.ping, 0, Buffer.from('one'));
  agent.send(FrameType.ping, 0, Buffer.from('two'));
  for (const words of ['one', 'two']) {
    expect(`${(await agent.next(FrameType.pong)).payload}`).toMatch(`\n${words}`);
  }
  expect(agent.frames).toEqual([]);
  expect(inFolder('cgroup/cgroup.freeze')).toBe('1');
  resume('parent');
  expect(await agent.next([...Object.values(FrameType)])).toMatchObject({
    type: FrameType.resumed,
  });
  expect(`${(await agent.message(FrameType.request)).payload}`).toBe('asked in the freeze');
});

test('PING is echoed, with what the monotonic clock shows', async () => {
  agent.send(FrameType.ping, 7, Buffer.from('abc'));
  const pong = await agent.next(FrameType.pong);
  expect(pong.stream).toBe(7);
  expect(pong.payload.toString()).toMatch(/^monotonic=\d+\nabc$/);
});

test('each program gets its own responses, and its end is told', async () => {
  const [one, two] = [await program(), await program()];
  one.sendMessage(FrameType.request, 0, Buffer.from('from one'));
  const fromOne = await agent.message(FrameType.request);
  two.sendMessage(FrameType.request, 0, Buffer.from('from two'));
  const fromTwo = await agent.message(FrameType.request);
  expect([`${fromOne.payload}`, `${fromTwo.payload}`]).toEqual(['from one', 'from two']);
  expect(fromOne.stream).not.toBe(fromTwo.stream);
  agent.sendMessage(FrameType.response, fromTwo.stream, Buffer.from('to two'));
  agent.sendMessage(FrameType.response, fromOne.stream, Buffer.from('to one'));
  agent.sendMessage(FrameType.response, 4711, Buffer.from('to nobody'));
  expect(`${(await one.message(FrameType.response)).payload}`).toBe('to one');
  expect(`${(await two.message(FrameType.response)).payload}`).toBe('to two');
  one.socket.destroy();
  expect((await agent.next(FrameType.closed)).stream).toBe(fromOne.stream);
  await agent.settle();
  expect(agent.frames.filter((frame) => frame.type === FrameType.closed)).toEqual([]);
});

test('the largest values travel both ways, whole, and messages of programs are never mixed', async () => {
  const [one, two] = [await program(), await program()];
  const value = Buffer.alloc(VALUE_BYTES_MAX + 1000);
  for (let at = 0; at < value.length; at += 4) value.writeUInt32LE(at, at);
  two.send(FrameType.request, 0, Buffer.alloc(FRAME_PAYLOAD_BYTES_MAX, 'b'), FLAG_MORE);
  one.sendMessage(FrameType.request, 0, value);
  const fromOne = await agent.message(FrameType.request);
  expect(fromOne.payload.equals(value)).toBe(true);
  expect(agent.frames.filter((frame) => frame.type === FrameType.request)).toEqual([]);
  agent.sendMessage(FrameType.response, fromOne.stream, value);
  expect((await one.message(FrameType.response)).payload.equals(value)).toBe(true);
  two.send(FrameType.request, 0, Buffer.from('end'));
  const fromTwo = await agent.message(FrameType.request);
  expect(fromTwo.payload.length).toBe(FRAME_PAYLOAD_BYTES_MAX + 3);
});

const header = (length: number, type: number, flags = 0, reserved = 0) => {
  const bytes = Buffer.alloc(12);
  bytes.writeUInt32LE(length, 0);
  bytes.set([type, flags], 4);
  bytes.writeUInt16LE(reserved, 6);
  return bytes;
};
test.each([
  ['text', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
  ['a frame that is too long', header(FRAME_PAYLOAD_BYTES_MAX + 1, FrameType.request)],
  ['a frame of another type', header(0, FrameType.resumed)],
  ['unknown flags', header(0, FrameType.request, 4)],
  ['END on a request', header(0, FrameType.request, FLAG_END)],
  ['a reserved field', header(0, FrameType.request, 0, 1)],
  ['an empty part of a message', header(0, FrameType.request, FLAG_MORE)],
])('a program that sends %s is disconnected, and only it', async (_name, bytes) => {
  const [bad, good] = [await program(), await program()];
  bad.socket.write(bytes);
  await bad.closed;
  await agent.next(FrameType.closed);
  good.sendMessage(FrameType.request, 0, Buffer.from('still here'));
  expect(`${(await agent.message(FrameType.request)).payload}`).toBe('still here');
});

test('a program whose message never ends is disconnected', async () => {
  const bad = await program();
  const part = Buffer.alloc(FRAME_PAYLOAD_BYTES_MAX);
  for (let sent = 0; sent <= VALUE_BYTES_MAX + FRAME_PAYLOAD_BYTES_MAX; sent += part.length) {
    bad.send(FrameType.request, 0, part, FLAG_MORE);
  }
  await bad.closed;
  await agent.next(FrameType.closed);
});

test('a program that does not read its responses is disconnected', async () => {
  const bad = await program();
  bad.sendMessage(FrameType.request, 0, Buffer.from('more!'));
  const { stream } = await agent.message(FrameType.request);
  bad.socket.pause();
  for (let count = 0; count < 5; count += 1) {
    agent.sendMessage(FrameType.response, stream, Buffer.alloc(VALUE_BYTES_MAX));
  }
  expect((await agent.next(FrameType.closed)).stream).toBe(stream);
});

test('a command gives stdout, stderr and its exit code', async () => {
  const script = 'echo out; echo err >&2; pwd; echo "$GREETING $HOME"; exit 7';
  const exit = await run(['/bin/sh', '-c', script], { cwd: '/usr', env: ['GREETING=a=b\nc'] });
  expect((await lines(FrameType.started)).pid).toMatch(/^\d+$/);
  expect(exit).toEqual({ stdout: 'out\n/usr\na=b\nc /root\n', stderr: 'err\n', code: '7' });
});

test('a command gets its input, with CREDIT, until END', async () => {
  agent.sendMessage(FrameType.exec, 3, execPayload(['wc', '-c']));
  const sent = Buffer.alloc(EXEC_WINDOW_BYTES, 'x');
  for (let at = 0; at < sent.length; at += FRAME_PAYLOAD_BYTES_MAX) {
    agent.send(FrameType.stdin, 3, sent.subarray(at, at + FRAME_PAYLOAD_BYTES_MAX));
  }
  agent.send(FrameType.stdin, 3, Buffer.from('tail'), FLAG_END);
  let credit = 0;
  while (credit < sent.length + 4) credit += Number((await lines(FrameType.credit, 3)).bytes);
  expect(credit).toBe(sent.length + 4);
  expect(await gather(3)).toEqual({ stdout: `${sent.length + 4}\n`, stderr: '', code: '0' });
});

test('the input of a command that does not read it is taken and dropped', async () => {
  agent.sendMessage(
    FrameType.exec,
    3,
    execPayload(['sh', '-c', 'exec <&-; echo closed; sleep 60']),
  );
  expect((await agent.next(FrameType.stdout, 3)).payload.toString()).toBe('closed\n');
  agent.send(FrameType.stdin, 3, Buffer.alloc(1000));
  expect(await lines(FrameType.credit, 3)).toEqual({ bytes: '1000' });
  agent.sendLines(FrameType.signal, 3, { signal: 9 });
  expect(await gather(3)).toMatchObject({ signal: '9' });
});

test('a signal goes to the command and to all that it started', async () => {
  agent.sendMessage(FrameType.exec, 9, execPayload(['sh', '-c', 'sleep 60; echo never']));
  agent.sendLines(FrameType.signal, 9, { signal: 15 });
  expect(await gather(9)).toEqual({ stdout: '', stderr: '', signal: '15' });
});

test.each([
  [['no-such-command-here'], {}, "no-such-command-here can't be run: No such file or directory"],
  [['/etc/passwd'], {}, "/etc/passwd can't be run: Permission denied"],
  [
    ['true'],
    { cwd: '/no/such' },
    "the folder /no/such can't be entered: No such file or directory",
  ],
])("a command %j that can't run ends with the reason", async (command, options, error) => {
  expect(await run(command, options)).toEqual({ stdout: '', stderr: '', error });
  expect(agent.frames.filter((frame) => frame.type === FrameType.started)).toEqual([]);
});

test('4 MB of output arrive in order, and never more than the window is under way', async () => {
  agent.sendMessage(FrameType.exec, 2, execPayload(['seq', '600000']));
  const expected = Array.from({ length: 600_000 }, (_, index) => `${index + 1}\n`).join('');
  let first = '';
  while (first.length < EXEC_WINDOW_BYTES) {
    first += (await agent.next(FrameType.stdout, 2)).payload;
  }
  // The command has more to say at once: nothing of it may come.
  for (let round = 0; round < 50; round += 1) await agent.settle();
  expect(agent.frames.filter((frame) => frame.type === FrameType.stdout)).toEqual([]);
  expect(first.length).toBe(EXEC_WINDOW_BYTES);
  agent.sendLines(FrameType.credit, 2, { bytes: first.length });
  const { stdout, code } = await gather(2);
  expect(code).toBe('0');
  expect(first + stdout === expected).toBe(true);
});

test('a command ends although a process it left behind holds its pipes', async () => {
  const exit = await run(['sh', '-c', 'sleep 60 & echo $!; exit 3']);
  expect(exit).toMatchObject({ stderr: '', code: '3' });
  process.kill(Number(exit.stdout), 'SIGKILL');
  const flood = await run(['sh', '-c', 'yes flood & echo $!; exit 4']);
  expect(flood).toMatchObject({ code: '4' });
  process.kill(Number(flood.stdout.match(/\d+/)![0]), 'SIGKILL');
});

test('many commands run side by side', async () => {
  const streams = Array.from({ length: 40 }, (_, index) => index + 1);
  const exits = await Promise.all(
    streams.map((stream) => run(['sh', '-c', `echo ${stream}; exit ${stream}`], { stream })),
  );
  expect(exits).toEqual(
    streams.map((stream) => ({ stdout: `${stream}\n`, stderr: '', code: `${stream}` })),
  );
});

test('PREPARED comes after all that was buffered; then nothing until RESUME', async () => {
  const one = await program();
  one.sendMessage(FrameType.request, 0, Buffer.alloc(1_000_000, 'v'));
  const { stream } = await agent.message(FrameType.request);
  agent.sendMessage(
    FrameType.exec,
    5,
    execPayload(['sh', '-c', 'read line; echo "$line"; sleep 60']),
  );
  await lines(FrameType.started, 5);
  await prepare();
  expect(inFolder('cgroup/cgroup.freeze')).toBe('1');
  agent.frames.length = 0;
  // Whatever happens in the guest now is told later only.
  one.sendMessage(FrameType.request, 0, Buffer.from('asked in the freeze'));
  agent.send(FrameType.stdin, 5, Buffer.from('line\n'));
  const late = await program();
  late.socket.destroy();
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(agent.frames).toEqual([]);
  resume('parent');
  // The response stands in the port right behind RESUME, and is delivered after the repair.
  agent.sendMessage(FrameType.response, stream, Buffer.from('id 0'));
  expect(await agent.next([...Object.values(FrameType)])).toMatchObject({
    type: FrameType.resumed,
  });
  expect(`${(await one.message(FrameType.response)).payload}`).toBe('id 0');
  expect((await agent.next(FrameType.stdout, 5)).payload.toString()).toBe('line\n');
  expect(`${(await agent.message(FrameType.request)).payload}`).toBe('asked in the freeze');
  await eventually(() => expect(inFolder('cgroup/cgroup.freeze')).toMatch(/0$/));
  expect(inFolder('identity.log')).toMatch(/^entropy 32\ntime \d+\n$/);
  expect(inFolder('etc/hostname')).toBe('');
});

test('a clone gets its own names, and its commands full windows', async () => {
  agent.sendMessage(FrameType.exec, 6, execPayload(['sh', '-c', 'cat; head -c 300000 /dev/zero']));
  agent.send(FrameType.stdin, 6, Buffer.alloc(0), FLAG_END);
  let parentBytes = 0;
  while (parentBytes < EXEC_WINDOW_BYTES) {
    parentBytes += (await agent.next(FrameType.stdout, 6)).payload.length;
  }
  await prepare();
  resume('clone', { hostname: 'vm-7-clone-2' });
  expect(await lines(FrameType.resumed)).toEqual({ fork: 'f1', ok: '1' });
  expect(inFolder('identity.log')).toMatch(/^entropy 32\ntime \d+\nhostname vm-7-clone-2\n$/);
  expect(inFolder('etc/hostname')).toBe('vm-7-clone-2\n');
  expect(inFolder('etc/machine-id')).toMatch(/^[0-9a-f]{32}\n$/);
  const rest = await gather(6);
  expect(rest).toMatchObject({ code: '0' });
  expect(rest.stdout.length).toBe(300_000 - EXEC_WINDOW_BYTES);
});

test('each program is told of a fork, before the response that came with it', async () => {
  const [caller, bystander] = [await program(), await program()];
  caller.sendMessage(FrameType.request, 0, Buffer.from('fork'));
  const { stream } = await agent.message(FrameType.request);
  const generations: bigint[] = [];
  for (const [role, id] of [
    ['parent', '0'],
    ['clone', '3'],
  ] as const) {
    await prepare();
    resume(role, { id });
    agent.sendMessage(FrameType.response, stream, Buffer.from('forked'));
    for (const peer of [caller, bystander]) {
      const told = decodeLines((await peer.next([...Object.values(FrameType)])).payload);
      expect(Object.fromEntries(told)).toMatchObject({ role, id });
      generations.push(BigInt(told.get('generation')!));
    }
    expect(`${(await caller.message(FrameType.response)).payload}`).toBe('forked');
  }
  expect(generations[2]! > generations[0]!).toBe(true);
  // A freeze that came to nothing has made no copies.
  await prepare();
  resume('failed');
  await lines(FrameType.resumed);
  await agent.settle();
  expect([...caller.frames, ...bystander.frames]).toEqual([]);
});

/** Hooks of the guest, as shell scripts by their names. */
function writeHooks(hooks: Record<string, string>, mode = 0o755) {
  mkdirSync(join(folder, 'hooks'), { recursive: true });
  for (const [name, script] of Object.entries(hooks)) {
    writeFileSync(join(folder, 'hooks', name), `#!/bin/sh\n${script}\n`, { mode });
  }
}

test('hooks run in the order of their names, with role and id, while all stands still', async () => {
  const note = `echo "$0 $SNOWFORK_ROLE $SNOWFORK_ID $(cat ${folder}/cgroup/cgroup.freeze)" >>${folder}/ran`;
  writeHooks({ '20-b': note, '10-a': note, '30-c~': note, '.hidden': note });
  writeHooks({ '40-readme': note }, 0o644);
  mkdirSync(join(folder, 'hooks/50-folder'));
  await prepare();
  resume('clone', { id: 4 });
  expect(await lines(FrameType.resumed)).toEqual({ fork: 'f1', ok: '1' });
  const hooks = join(folder, 'hooks');
  expect(inFolder('ran')).toBe(`${hooks}/10-a clone 4 1\n${hooks}/20-b clone 4 1\n`);
  await eventually(() => expect(inFolder('cgroup/cgroup.freeze')).toMatch(/0$/));
});

test.each([
  ['fails', 'exit 3', 'ended with code 3'],
  ['is killed', 'kill -9 $$', 'was ended by signal 9'],
  ['hangs', 'sleep 600', 'did not end within 5 s, which all hooks have together'],
])('a clone whose hook %s is not released', async (_name, script, reason) => {
  writeHooks({ hook: script, next: `touch ${folder}/next` });
  const one = await program();
  one.sendMessage(FrameType.request, 0, Buffer.from('fork'));
  const { stream } = await agent.message(FrameType.request);
  await prepare();
  resume('clone');
  agent.sendMessage(FrameType.response, stream, Buffer.from('id 1'));
  const error = `${join(folder, 'hooks/hook')} ${reason}`;
  expect(await lines(FrameType.resumed)).toEqual({ fork: 'f1', error });
  expect(inFolder('cgroup/cgroup.freeze')).toBe('1');
  expect(existsSync(join(folder, 'next'))).toBe(false);
  expect(one.frames).toEqual([]);
});

test('a parent goes on when its hook fails, and says so', async () => {
  writeHooks({ hook: 'exit 3', next: `touch ${folder}/next` });
  await prepare();
  resume('parent');
  expect(await lines(FrameType.resumed)).toEqual({ fork: 'f1', ok: '1' });
  await eventually(() => expect(inFolder('cgroup/cgroup.freeze')).toMatch(/0$/));
  expect(existsSync(join(folder, 'next'))).toBe(true);
  await eventually(() => expect(words).toContain('hook ended with code 3'));
});

test.each([
  ['the repair fails', { role: 'clone' }, 'no entropy today', 'no entropy today'],
  ['there is no entropy', { role: 'clone', entropy: '' }, '', 'RESUME without entropy'],
  [
    'the entropy is not hex',
    { role: 'parent', entropy: `${entropy}xyz` },
    '',
    'RESUME without entropy',
  ],
  ['the role is unknown', { role: 'sibling' }, '', "RESUME with the role 'sibling'"],
  ['the name is none', { role: 'clone', hostname: 'a b' }, '', 'RESUME without a host name'],
])(
  'nothing is released when %s; a later RESUME may mend it',
  async (_name, fields, fail, error) => {
    const one = await program();
    one.sendMessage(FrameType.request, 0, Buffer.from('fork'));
    const { stream } = await agent.message(FrameType.request);
    await prepare();
    if (fail !== '') writeFileSync(join(folder, 'fail'), fail);
    resume(fields.role, fields);
    expect(await lines(FrameType.resumed)).toEqual({ fork: 'f1', error });
    expect(inFolder('cgroup/cgroup.freeze')).toBe('1');
    agent.sendMessage(FrameType.response, stream, Buffer.from('id 1'));
    one.sendMessage(FrameType.request, 0, Buffer.from('next'));
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect([
      ...agent.frames.filter((frame) => frame.type !== FrameType.hello),
      ...one.frames,
    ]).toEqual([]);
    rmSync(join(folder, 'fail'), { force: true });
    resume('failed');
    expect((await lines(FrameType.resumed)).error).toContain('owed');
    resume('clone');
    expect(await lines(FrameType.resumed)).toEqual({ fork: 'f1', ok: '1' });
    expect(`${(await one.message(FrameType.response)).payload}`).toBe('id 1');
    expect(`${(await agent.message(FrameType.request)).payload}`).toBe('next');
  },
);

test('a RESUME that fails holds everything, also when nothing was prepared', async () => {
  resume('clone', { entropy: '' });
  expect((await lines(FrameType.resumed)).error).toBe('RESUME without entropy');
  const one = await program();
  one.sendMessage(FrameType.request, 0, Buffer.from('a'));
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect(agent.frames.filter((frame) => frame.type === FrameType.request)).toEqual([]);
  resume('clone');
  expect(`${(await agent.message(FrameType.request)).payload}`).toBe('a');
});

test('a freeze that was given up ends with role failed', async () => {
  await prepare();
  agent.sendLines(FrameType.resume, 0, { fork: 'f1', role: 'failed' });
  expect(await lines(FrameType.resumed)).toEqual({ fork: 'f1', ok: '1' });
  expect(await run(['echo', 'on'])).toMatchObject({ stdout: 'on\n' });
});

test.each([
  ['random bytes', Buffer.from('b3b1f3a9c0ffee00deadbeef0102030405060708', 'hex')],
  ['a frame that is too long', header(0xffff_ffff, FrameType.ping)],
  ["a frame of the guest's", header(0, FrameType.hello)],
  ['an EXEC without strings', header(0, FrameType.exec)],
  ['a signal that is none', header(0, FrameType.signal)],
])('%s from the agent end the session, and a new one begins', async (_name, bytes) => {
  await lines(FrameType.hello);
  const one = await program();
  one.sendMessage(FrameType.request, 0, Buffer.from('a'));
  await agent.message(FrameType.request);
  agent.sendMessage(FrameType.exec, 1, execPayload(['sleep', '60']));
  const { pid } = await lines(FrameType.started);
  agent.socket.write(bytes);
  await one.closed;
  await lines(FrameType.hello);
  expect(words).toContain('not understood');
  await agent.settle();
  expect(await run(['echo', 'fine'])).toMatchObject({ stdout: 'fine\n', code: '0' });
  while (existsSync(`/proc/${pid}`)) await new Promise((resolve) => setTimeout(resolve, 20));
});

test('garbage within a freeze releases nothing', async () => {
  const one = await program();
  one.sendMessage(FrameType.request, 0, Buffer.from('a'));
  const { stream } = await agent.message(FrameType.request);
  await prepare();
  agent.frames.length = 0;
  agent.socket.write(Buffer.alloc(100, 0xff));
  agent.socket.write(Buffer.alloc(12));
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect([...agent.frames, ...one.frames]).toEqual([]);
  resume('clone');
  expect(await lines(FrameType.resumed)).toEqual({ fork: 'f1', ok: '1' });
  agent.sendMessage(FrameType.response, stream, Buffer.from('b'));
  expect(`${(await one.message(FrameType.response)).payload}`).toBe('b');
});

test('a copy whose port is connected late waits for its RESUME', async () => {
  const one = await program();
  one.sendMessage(FrameType.request, 0, Buffer.from('fork'));
  const { stream } = await agent.message(FrameType.request);
  await prepare();
  agent.socket.destroy();
  agent = await port.accept();
  resume('clone');
  agent.sendMessage(FrameType.response, stream, Buffer.from('id 1'));
  expect(await agent.next([...Object.values(FrameType)])).toMatchObject({
    type: FrameType.resumed,
  });
  expect(`${(await one.message(FrameType.response)).payload}`).toBe('id 1');
});

test('it burns no processor time while it waits', async () => {
  await prepare();
  const ticks = () => {
    const fields = readFileSync(`/proc/${daemon.pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
    return Number(fields[11]) + Number(fields[12]);
  };
  const before = ticks();
  await new Promise((resolve) => setTimeout(resolve, 400));
  await port.close();
  await new Promise((resolve) => setTimeout(resolve, 400));
  expect(ticks() - before).toBeLessThan(20);
});
