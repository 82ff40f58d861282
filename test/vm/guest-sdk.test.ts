// The guest SDK in a real VM of the image `node`: programs in TypeScript's language that fork
// themselves. Each test is a program; what it prints is what is looked at.

import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { describeVms, endAll, sh } from '../fixtures/guests.js';
import { testHost } from '../support/test-host.js';

describeVms('a program with the guest SDK', () => {
  let host: Host;
  let vm: Vm;

  beforeAll(async () => {
    host = await testHost('node');
    vm = await host.launch('node');
  });

  afterAll(async () => {
    if (host === undefined) return;
    await endAll(host);
    await host.close();
  });

  /** Runs a module in the VM; it prints one JSON value. */
  async function run(program: string): Promise<unknown> {
    await vm.writeFile(
      '/root/program.mjs',
      `import { sf } from '@snowfork/sdk/guest';\n${program}`,
    );
    const { code, stdout, stderr } = await vm.exec(['node', '/root/program.mjs']);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    return JSON.parse(stdout);
  }

  /** Of the youngest clone. */
  async function newestTicket(): Promise<string | undefined> {
    return (await host.vms({ all: true })).at(-1)?.ticket;
  }

  it('maps a closure over twenty megabytes that are in memory already', async () => {
    const sums = await run(`
      const big = new Float64Array(2_500_000);
      for (let i = 0; i < big.length; i++) big[i] = i % 1000;
      const parts = [0, 1, 2, 3, 4, 5, 6];
      const size = Math.ceil(big.length / parts.length);
      const sums = await sf.map(parts, (part) =>
        big.subarray(part * size, (part + 1) * size).reduce((sum, x) => sum + x, 0), { clones: 3 });
      console.log(JSON.stringify([sums.reduce((a, b) => a + b), big.reduce((a, b) => a + b)]));`);
    const [mapped, whole] = sums as [number, number];
    expect(mapped).toBe(whole);
    expect(whole).toBe(2500 * 499_500);
  });

  it('gets back from join what each clone gave to exit, of every kind; so does the host', async () => {
    const { ticket, problem } = (await run(`
      import assert from 'node:assert';
      const kinds = [0, 1, -1, 127, 128, -128, 65_536, 2 ** 31, -(2 ** 31), 2 ** 53 - 1, 1.5, -2.25e300,
        NaN, Infinity, 2n ** 63n - 1n, -(2n ** 63n), 2n ** 64n - 1n, '', 'ünï \\u0000 💡', 'x'.repeat(70_000),
        true, false, null, [], [[[]]], {}, { a: { b: [1, { c: null }] } }, Array(20).fill(7),
        new Uint8Array(), new Uint8Array([0, 255]), new Uint8Array(70_000).fill(3), new Date(86_400_000)];
      const values = [undefined, undefined, null, false, 0, '', new Uint8Array([1]), kinds];
      const { id, ticket } = await sf.fork(7);
      if (id > 0) await sf.exit(values[id]);
      let problem = '';
      for (const { id, value } of await sf.join(ticket)) {
        const plain = (value) => value instanceof Uint8Array ? { bytes: Buffer.from(value).toString('base64') }
          : Array.isArray(value) ? value.map(plain) : value;
        try { assert.deepStrictEqual(plain(value), plain(values[id])); }
        catch (error) { problem += id + ': ' + error.message; }
      }
      console.log(JSON.stringify({ ticket: ticket.id, problem }));`)) as Record<string, string>;
    expect(problem).toBe('');
    const slots = await host.join(ticket!);
    const values = slots.map((slot) => (slot.status === 'exited' ? slot.value : slot));
    expect(values.slice(0, 5)).toEqual([undefined, null, false, 0, '']);
    expect([...(values[5] as Uint8Array)]).toEqual([1]);
    const kinds = values[6] as unknown[];
    expect(kinds[12]).toBeNaN();
    expect(kinds.slice(13, 17)).toEqual([Infinity, 2n ** 63n - 1n, -(2n ** 63n), 2n ** 64n - 1n]);
    expect(kinds[18]).toBe('ünï \u0000 💡');
    expect(kinds.at(-1)).toEqual(new Date(86_400_000));
  });

  it('is told which clone was lost, and why, beside what the others gave', async () => {
    const results = await run(`
      const { id, ticket } = await sf.fork(6);
      if (id === 1) process.kill(process.pid, 'SIGKILL');
      if (id === 2) await sf.exit('x'.repeat(9 << 20)).catch((error) => sf.exit(error.code));
      if (id === 3) throw new Error('thrown in a clone');
      if (id === 4) await Promise.all([sf.exit('first'), sf.exit('second')]);
      if (id === 5) process.exit(0);
      if (id === 6) await sf.exit('fine');
      const results = await sf.join(ticket);
      console.log(JSON.stringify(results.map(({ status, value, reason }) =>
        status === 'fulfilled' ? value : reason.code + reason.message)));`);
    const lost = expect.stringMatching(/^SF_VM_GONE.*its program ended without sf.exit/);
    expect(results).toEqual([lost, 'SF_VALUE_TOO_LARGE', lost, 'first', lost, 'fine']);
  });

  it('that is joined with a time-out tells who still runs, and ends them by their ticket', async () => {
    const results = await run(`
      const { id, ticket } = await sf.fork(2);
      if (id === 1) await sf.exit('quick');
      if (id === 2) await new Promise((resolve) => setTimeout(resolve, 1e9));
      const told = (results) => results.map(({ value, reason }) => value ?? reason.code);
      const gone = AbortSignal.timeout(50);
      const aborted = await sf.join(ticket, { signal: gone }).catch((error) => error.code);
      let early;
      do early = told(await sf.join(ticket, { timeoutMs: 100 })); while (early[0] !== 'quick');
      await sf.kill(ticket);
      console.log(JSON.stringify([aborted, early, told(await sf.join(ticket))]));`);
    expect(results).toEqual(['SF_ABORTED', ['quick', 'SF_TIMEOUT'], ['quick', 'SF_VM_GONE']]);
  });

  it('forks by a ticket, once; and knows who it is', async () => {
    const results = await run(`
      const before = await sf.info();
      const ticket = await sf.requestTicket(2);
      const id = await sf.clone(ticket);
      if (id > 0) await sf.exit(await sf.info());
      const clones = (await sf.join(ticket)).map(({ value }) => value);
      const again = await sf.clone(ticket).catch((error) => error.code);
      console.log(JSON.stringify([before, ...clones, again]));`);
    const infos = (await host.join((await newestTicket())!)).map((slot) => slot.vm);
    const family = { family: vm.id };
    expect(results).toEqual([
      { vm: vm.id, id: 0, ...family },
      { vm: infos[0], id: 1, parent: vm.id, ...family },
      { vm: infos[1], id: 2, parent: vm.id, ...family },
      'SF_TICKET_USED',
    ]);
  });

  it('gets the errors of a mapped function as they were thrown, and those of lost clones', async () => {
    const results = await run(`
      const square = async (x, index) => {
        if (x === 3) throw new RangeError('three at ' + index);
        if (x === 5) process.exit(1);
        return x * x;
      };
      const told = ({ status, value, reason }) =>
        status === 'fulfilled' ? value : [reason.name, reason.code ?? reason.message];
      const settled = (await sf.mapSettled([1, 2, 3, 4], square, { clones: 2 })).map(told);
      const first = await sf.map([1, 2, 3, 4], square, { clones: 2 }).catch((error) => error.message);
      const lost = await sf.map([4, 5], square, { clones: 8 }).catch((error) => error.details.items);
      const none = await sf.map([], square, { clones: 8 });
      console.log(JSON.stringify([settled, first, lost, none]));`);
    expect(results).toEqual([[1, 4, ['RangeError', 'three at 2'], 16], 'three at 2', [1], []]);
  });

  it('has its pending calls fail in the clones of another program, and answered in the parent', async () => {
    const waiting = `
      import { sf } from '@snowfork/sdk/guest';
      import fs from 'node:fs';
      const { id, ticket } = await sf.fork(1);
      if (id > 0) await new Promise((resolve) => setTimeout(resolve, 1e9));
      fs.writeFileSync('/tmp/joining', ticket.id);
      const told = await sf.join(ticket).then((all) => all[0].reason.code, (error) => error.code);
      fs.writeFileSync('/tmp/told.new', told);
      fs.renameSync('/tmp/told.new', '/tmp/told');`;
    await vm.writeFile('/root/waiting.mjs', waiting);
    const first = await vm.spawn(['node', '/root/waiting.mjs'], { stdin: false });
    await sh(vm, 'until [ -s /tmp/joining ]; do sleep 0.05; done');
    const told = await run(`
      import fs from 'node:fs';
      import { setTimeout } from 'node:timers/promises';
      const { id, ticket } = await sf.fork(1);
      if (id > 0) {
        while (!fs.existsSync('/tmp/told')) await setTimeout(20);
        await sf.exit(fs.readFileSync('/tmp/told', 'utf8'));
      }
      const [clone] = await sf.join(ticket);
      await sf.kill(fs.readFileSync('/tmp/joining', 'utf8'));
      while (!fs.existsSync('/tmp/told')) await setTimeout(20);
      console.log(JSON.stringify([clone.value, fs.readFileSync('/tmp/told', 'utf8')]));`);
    expect(told).toEqual(['SF_FORKED_AWAY', 'SF_VM_GONE']);
    first.stdout.resume();
    first.stderr.resume();
    expect(await first.exit).toEqual({ code: 0, signal: null });
  });

  it('refuses counts that are none, and goes on', async () => {
    const codes = await run(`
      const codes = [];
      for (const n of [0, -1, 1.5, 257, NaN, '3']) {
        await sf.fork(n).catch((error) => codes.push(error.code));
      }
      const { id, ticket } = await sf.fork(1);
      if (id === 1) await sf.exit(codes.length);
      console.log(JSON.stringify([...codes, (await sf.join(ticket))[0].value]));`);
    expect(codes).toEqual([...Array(6).fill('SF_BAD_REQUEST'), 6]);
  });

  it('goes on from a checkpoint, twice, with the memory of then', async () => {
    const values = await run(`
      let count = 1;
      const { checkpoint, restored } = await sf.checkpointParent();
      if (restored) await sf.exit(count + 100);
      count = 2;
      const values = [];
      for (let round = 0; round < 2; round++) {
        const ticket = await sf.requestTicket(2);
        await sf.createClones(checkpoint, ticket);
        for (const { value } of await sf.join(ticket)) values.push(value);
      }
      console.log(JSON.stringify([...values, count]));`);
    expect(values).toEqual([101, 101, 101, 101, 2]);
    for (const { id, kept, image } of await host.snapshots()) {
      if (kept && image === undefined) await host.removeSnapshot(id);
    }
  });

  it('forks in clones of clones, and the values come back through each', async () => {
    const value = await run(`
      async function level([clones, ...deeper]) {
        if (clones === undefined) return 1;
        const { id, ticket } = await sf.fork(clones);
        if (id > 0) await sf.exit(10 * (await level(deeper)) + id);
        return (await sf.join(ticket)).reduce((sum, { value }) => sum + value, 0);
      }
      console.log(JSON.stringify(await level([1, 2, 1])));`);
    // 1 → 11 → 111 + 112 → 2231
    expect(value).toBe(2231);
  });
});
