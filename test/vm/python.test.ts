// The Python module in a real VM of the image `python`: programs that fork themselves. Each test is a
// program; what it prints is what is looked at.

import fs from 'node:fs';
import path from 'node:path';
import type { Host, Vm } from '@snowfork/sdk';
import { decodeValue, encodeValue } from '@snowfork/sdk/api';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { clonesOf, describeVms, endAll, endVms, sh } from '../fixtures/guests.js';
import { testHost } from '../support/test-host.js';

const CLONES = 32;
const VALUES = 300;
const fixtures = path.resolve(import.meta.dirname, '../fixtures');

describeVms('a Python program', () => {
  let host: Host;
  let vm: Vm;

  beforeAll(async () => {
    host = await testHost('python');
    vm = await host.launch('python');
  });

  afterEach(async () => {
    if (host !== undefined) await endVms(host, [vm]);
  });

  afterAll(async () => {
    if (host === undefined) return;
    await endAll(host);
    await host.close();
  });

  /** Runs a program in the VM; it prints one JSON value. */
  async function run(program: string, ...args: string[]): Promise<unknown> {
    const lines = program.replace(/^\n/, '').split('\n');
    const margin = /^ */.exec(lines[0]!)![0].length;
    const body = lines.map((line) => line.slice(margin)).join('\n');
    await vm.writeFile(
      '/root/program.py',
      `import json, os, time\nimport snowfork as sf\n\n${body}\n`,
    );
    const { code, stdout, stderr } = await vm.exec(['python3', '/root/program.py', ...args]);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    return JSON.parse(stdout);
  }

  it('forks, and joins what each clone gave to exit; the host gets the same', async () => {
    const { ticket, values } = (await run(`
      kinds = [None, True, False, 0, -1, 2**31, 1.5, "ünï 💡", "x" * 70000, [[]], {"a": {"b": [1]}}]
      me, ticket = sf.fork(4)
      if me == 1: sf.exit()
      if me == 2: sf.exit(kinds)
      if me == 3: sf.exit(list(b"\\x00\\xff" * 40000))
      if me == 4: sf.exit((me, sf.id()))
      values = [clone.get() for clone in sf.join(ticket)]
      same = values[1] == kinds and values[2] == list(b"\\x00\\xff" * 40000)
      print(json.dumps({"ticket": ticket.id, "values": [values[0], same, values[3]]}))`)) as {
      ticket: string;
      values: unknown[];
    };
    expect(values).toEqual([null, true, [4, 4]]);
    const [first, second] = await host.join(ticket);
    expect(first).toMatchObject({ status: 'exited', value: null });
    expect((second as { value: unknown[] }).value.slice(5, 8)).toEqual([2 ** 31, 1.5, 'ünï 💡']);
  });

  it('has values that mean the same to programs in other languages', async () => {
    const leaf = fc.oneof(
      fc.constantFrom(null, true, false, 0, 127, 128, -32, -33, 2 ** 31 - 1, -(2 ** 31)),
      fc.constantFrom(2n ** 63n - 1n, 2n ** 64n - 1n, -(2n ** 63n), 0.5, Infinity, -1e300),
      fc.integer(),
      fc.double({ noNaN: true, noInteger: true }),
      fc.string({ unit: 'grapheme', maxLength: 300 }),
      fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
      fc.date({ noInvalidDate: true, min: new Date('0001-01-02'), max: new Date('9999-12-30') }),
    );
    const { tree } = fc.letrec((tie) => ({
      tree: fc.oneof(
        { depthSize: 'small' },
        leaf,
        fc.array(tie('tree'), { maxLength: 20 }),
        fc.dictionary(
          fc.string().filter((key) => key !== '__proto__'),
          tie('tree'),
          { maxKeys: 20, noNullPrototype: true },
        ),
      ),
    }));
    const seed = Math.trunc(Math.random() * 2 ** 31);
    const values = fc.sample(tree, { numRuns: VALUES, seed });
    await vm.writeFile('/tmp/values', encodeValue(values));
    const printed = await run(`
      import base64
      from snowfork._values import decode, encode
      values = decode(open("/tmp/values", "rb").read())
      print(json.dumps(base64.b64encode(encode(values)).decode()))`);
    const again = decodeValue(Buffer.from(printed as string, 'base64'));
    expect(again).toHaveLength(VALUES);
    // Bytes come as views of one buffer: only what they hold is compared.
    expect(encodeValue(again).equals(encodeValue(values)), `seed ${seed}`).toBe(true);
  });

  it('refuses values that cannot travel, and bytes that are no value', async () => {
    const codes = await run(`
      import datetime
      from snowfork._values import decode
      deep = []
      for _ in range(300): deep = [deep]
      codes = []
      for value in [object(), {1}, 2**64, -(2**63) - 1, "\\ud800", deep, datetime.datetime.now(),
                    {"__proto__": 1}, "x" * (8 << 20)]:
          try: sf.exit(value)
          except sf.SnowforkError as error: codes.append(error.code)
      for bad in [b"", b"\\xc1", b"\\xdd\\xff\\xff\\xff\\xff", b"\\x00\\x00", b"\\x91" * 300,
                  b"\\x81\\x90\\x00", b"\\xd6\\xff", b"\\xc7\\x05\\xff12345"]:
          try: decode(bad)
          except sf.SnowforkError as error: codes.append(error.code)
      print(json.dumps(codes))`);
    const bad = 'SF_BAD_REQUEST';
    expect(codes).toEqual([...Array(8).fill(bad), 'SF_VALUE_TOO_LARGE', ...Array(8).fill(bad)]);
  });

  it('is told which clone was lost, and why, beside what the others gave', async () => {
    const results = await run(`
      import sys
      me, ticket = sf.fork(4)
      if me == 1: os.kill(os.getpid(), 9)
      if me == 2: sys.exit(0)
      if me == 3: raise ValueError("raised in a clone")
      if me == 4: sf.exit("fine")
      print(json.dumps([clone.value or str(clone.error) for clone in sf.join(ticket)]))`);
    const lost = expect.stringMatching(
      /^SF_VM_GONE: clone \d was lost: .*its program ended without/,
    );
    expect(results).toEqual([lost, lost, lost, 'fine']);
  });

  it('has errors of the names that are documented', async () => {
    const codes = await run(`
      def code(call, *arguments):
          try: call(*arguments)
          except sf.SnowforkError as error: return error.code
      codes = [code(sf.fork, count) for count in (0, -1, 1.5, 257, True, "3", None)]
      ticket = sf.request_ticket(1)
      if sf.clone(ticket) > 0: sf.exit(len(codes))
      codes += [code(sf.clone, ticket), code(sf.join, "t0"), code(sf.create_clones, "none", ticket)]
      codes += [code(sf.join, ticket, -1), code(sf.kill, 7), code(sf.on_fork, 7)]
      print(json.dumps([*codes, sf.join(ticket)[0].value]))`);
    const bad = 'SF_BAD_REQUEST';
    const agents = ['SF_TICKET_USED', 'SF_TICKET_NOT_FOUND', 'SF_SNAPSHOT_NOT_FOUND'];
    expect(codes).toEqual([...Array(7).fill(bad), ...agents, bad, bad, bad, 7]);
  });

  it('that is outside of a VM is told so', async () => {
    const told = await run(`
      os.environ["SNOWFORK_GUEST_SOCKET"] = "/nowhere"
      try: sf.fork(1)
      except sf.SnowforkError as error: print(json.dumps(str(error)))`);
    expect(told).toMatch(/^SF_AGENT_UNREACHABLE: this program does not run inside a Snowfork VM/);
  });

  it('forks in clones of clones, and the values come back through each', async () => {
    const value = await run(`
      def level(clones, *deeper):
          me, ticket = sf.fork(clones)
          if me > 0: sf.exit(10 * (level(*deeper) if deeper else 1) + me)
          return sum(clone.get() for clone in sf.join(ticket))
      print(level(1, 2, 1))`);
    expect(value).toBe(2231);
  });

  it('joins with a time-out, and ends the clones that it has no more use for', async () => {
    const results = await run(`
      me, ticket = sf.fork(2)
      if me == 1: sf.exit("quick")
      if me == 2: time.sleep(1e6)
      told = lambda: [clone.value or clone.error.code for clone in sf.join(ticket, timeout=0.1)]
      while told()[0] != "quick": pass
      early = told()
      sf.kill(ticket)
      print(json.dumps([early, told()]))`);
    expect(results).toEqual([
      ['quick', 'SF_TIMEOUT'],
      ['quick', 'SF_VM_GONE'],
    ]);
  });

  it('goes on from a checkpoint, twice, with the memory of then', async () => {
    const values = await run(`
      count = 1
      kept = sf.checkpoint()
      if kept.restored: sf.exit([kept.id, count + 100])
      count = 2
      values = []
      for round in range(2):
          ticket = sf.request_ticket(2)
          sf.create_clones(kept, ticket)
          values += [clone.get() for clone in sf.join(ticket)]
      print(json.dumps([*values, count]))`);
    expect(values).toEqual([[1, 101], [2, 101], [1, 101], [2, 101], 2]);
  });

  it('maps a closure over items, and gets what it raised', async () => {
    const results = await run(`
      big = list(range(200000))
      def part(k): return sum(big[k::5])
      def square(x):
          if x == 3: raise KeyError("three")
          if x == 4: raise sf.SnowforkError("SF_TIMEOUT", "four")
          if x == 5: os._exit(1)
          if x == 6: return object()
          return x * x
      def failure(*items):
          try: sf.map(square, items, clones=2)
          except sf.SnowforkError as error: return [error.code, error.details.get("items")]
          except Exception as error: return repr(error)
      failures = [failure(1, 3), failure(4, 1), failure(1, 2, 5), failure(6)]
      print(json.dumps([sum(sf.map(part, range(5), clones=3)) == sum(big),
                        sf.map(square, [], clones=8), *failures]))`);
    const failures = ["KeyError('three')", ['SF_TIMEOUT', null], ['SF_VM_GONE', [0, 2]]];
    expect(results).toEqual([true, [], ...failures, ['SF_BAD_REQUEST', null]]);
  });

  it('has threads that call while another one forks', async () => {
    const results = await run(`
      import threading
      kept = {}
      def forks(name):
          me, ticket = sf.fork(1)
          if me > 0: sf.exit(name)
          kept[name] = sf.join(ticket)[0].get()
      threads = [threading.Thread(target=forks, args=[str(name)]) for name in range(4)]
      for thread in threads: thread.start()
      for thread in threads: thread.join()
      print(json.dumps(kept))`);
    expect(results).toEqual({ 0: '0', 1: '1', 2: '2', 3: '3' });
  });

  it(`draws what no other of its ${CLONES} clones and itself draws`, async () => {
    type Drawn = Record<string, string[]>;
    const fixture = fs.readFileSync(path.join(fixtures, 'draw.py'), 'utf8');
    const { before, copies } = (await run(fixture, String(CLONES))) as {
      before: Drawn;
      copies: Drawn[];
    };
    expect(copies.filter((copy) => typeof copy === 'string')).toEqual([]);
    expect(copies.length).toBe(CLONES + 1);
    const sources = Object.keys(before);
    expect(sources.length).toBe(12);
    for (const source of sources) {
      const values = [before, ...copies].flatMap((copy) => copy[source]!);
      expect(values.length, source).toBe((CLONES + 2) * before[source]!.length);
      expect(values.length - new Set(values).size, source).toBe(0);
    }
    // A generator that the program gave a seed is left alone.
    expect(new Set(copies.map(({ seeded }) => seeded![0])).size).toBe(1);
  });

  it('renews what it is told to, in its own forks and in others’', async () => {
    await vm.writeFile('/root/service.py', SERVICE);
    await sh(
      vm,
      'python3 /root/service.py >/run/service.log 2>&1 & until [ -s /run/ready0 -a -s /run/ready1 ]; do sleep 0.05; done',
    );
    const clones = clonesOf(await vm.fork(2));
    const drawn = new Set<string>();
    for (const [index, copy] of [vm, ...clones].entries()) {
      // The program itself and the process that it has forked.
      const told = await sh(
        copy,
        'until [ "$(wc -l </run/told)" = 2 ]; do sleep 0.05; done; cat /run/told',
      );
      for (const line of told.split('\n')) {
        const [role, id, number] = line.split(' ');
        expect(`${role} ${id}`).toBe(index === 0 ? 'parent 0' : `clone ${index}`);
        drawn.add(number!);
      }
    }
    expect(drawn.size).toBe(6);
    await sh(vm, 'kill $(cat /run/ready0 /run/ready1)');
  });

  it('whose function fails in a clone loses that clone; in the parent the call fails', async () => {
    const results = await run(`
      import sys
      @sf.on_fork
      def picky(fork):
          # It can't even say what went wrong.
          if fork.id == 1: sys.stderr.close()
          if fork.id == 1 or fails: raise OSError("no new connection")
      fails = False
      me, ticket = sf.fork(2)
      if me > 0: sf.exit("renewed")
      results = [clone.value or clone.error.code for clone in sf.join(ticket)]
      fails = True
      try: sf.fork(1)
      except sf.SnowforkError as error: results += [error.code, error.message]
      print(json.dumps(results))`);
    const message = 'after a fork: OSError: no new connection';
    expect(results).toEqual(['SF_VM_GONE', 'renewed', 'SF_IDENTITY_FAILED', message]);
  });
});

/** A program with a child process; neither of them forks the VM. */
const SERVICE = `import os, random, time
import snowfork as sf

@sf.on_fork
def note(fork):
    line = f"{fork.role} {fork.id} {random.random()}\\n"
    os.write(told, line.encode())

told = os.open("/run/told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
child = int(os.fork() == 0)
# Answered: sf-guestd knows of this process.
sf.id()
with open(f"/run/ready{child}", "w") as ready: ready.write(f"{os.getpid()}\\n")
while True: time.sleep(1)
`;
