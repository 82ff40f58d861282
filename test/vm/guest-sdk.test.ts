// The guest SDK in a real VM of the image `node`: programs in TypeScript's language that fork
// themselves. Each test is a program; what it prints is what is looked at.

import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { describeVms, endAll } from '../fixtures/guests.js';
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

  it('gets back from join what each clone gave to exit, of every kind', async () => {
    const results = await run(`
      const { id, ticket } = await sf.fork(4);
      const values = [undefined, { deep: [1, -2.5, 'ünï', null, true] }, new Uint8Array([0, 255]),
        new Date(86_400_000), 2n ** 40n];
      if (id > 0) await sf.exit(values[id]);
      const results = await sf.join(ticket);
      const [object, bytes, date, big] = results.map(({ value }) => value);
      console.log(JSON.stringify([ticket.clones, results.map(({ status }) => status), object,
        [...bytes], date.getTime(), String(big)]));`);
    expect(results).toEqual([
      4,
      ['fulfilled', 'fulfilled', 'fulfilled', 'fulfilled'],
      { deep: [1, -2.5, 'ünï', null, true] },
      [0, 255],
      86_400_000,
      String(2n ** 40n),
    ]);
  });

  it('is told which clone was lost, and why, beside what the others gave', async () => {
    const results = await run(`
      const { id, ticket } = await sf.fork(3);
      if (id === 1) process.kill(process.pid, 'SIGKILL');
      if (id === 2) await sf.exit('x'.repeat(9 << 20)).catch((error) => sf.exit(error.code));
      if (id === 3) await sf.exit('fine');
      const results = await sf.join(ticket);
      console.log(JSON.stringify(results.map(({ status, value, reason }) =>
        status === 'fulfilled' ? value : reason.message)));`);
    expect(results).toEqual([
      expect.stringContaining('its program ended without sf.exit'),
      'SF_VALUE_TOO_LARGE',
      'fine',
    ]);
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
      async function level(depth) {
        if (depth === 0) return 1;
        const { id, ticket } = await sf.fork(2);
        if (id > 0) await sf.exit(await level(depth - 1));
        return (await sf.join(ticket)).reduce((sum, { value }) => sum + value, 0);
      }
      console.log(JSON.stringify(await level(3)));`);
    expect(value).toBe(8);
  });
});
