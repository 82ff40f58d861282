// The examples, run as their readers run them, on real VMs, with numbers that keep them short. What
// they print is what is looked at: each has a result that is known otherwise.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import type { Host, Vm, VmInfo } from '@snowfork/sdk';
import { afterAll, afterEach, beforeAll, expect, it, vi } from 'vitest';
import { describeVms, endAll, sh } from '../fixtures/guests.js';
import { root } from '../support/snippets.js';
import { testHost, testState } from '../support/test-host.js';

const examples = path.join(root, 'examples');
const WAIT_MS = 180_000;

interface LoadReport {
  readonly loads: { sent: number; right: number; errors: number }[];
  readonly timeline: { workers: number }[];
  readonly members: { answered: number; counted?: number }[];
}

interface OpportunistReport {
  readonly numbers: number;
  readonly undone: number;
  readonly sum: number;
  readonly expected: number;
  readonly isGapless: boolean;
  readonly handedOver: number;
  readonly lost: number;
  readonly ticks: { wanted: number; busyOthers: number }[];
}

describeVms('the example', () => {
  let host: Host;
  let example: ChildProcess | undefined;

  beforeAll(async () => {
    host = await testHost('minimal', 'node');
  });

  afterEach(async () => {
    example?.kill('SIGKILL');
    await endAll(host);
  });

  afterAll(async () => {
    await host?.close();
  });

  /** A program of an example in a VM, from its standard input. */
  async function runInside(vm: Vm, command: string[], file: string): Promise<string> {
    const stdin = fs.readFileSync(path.join(examples, file));
    const { code, stdout, stderr } = await vm.exec(command, { stdin });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    return stdout;
  }

  /**
   * A program of an example on this host: what it prints at its end. `meanwhile` is given up when that
   * comes first, as what it says is then what there is to know.
   */
  async function runOnHost(
    file: string,
    words: string[],
    meanwhile: () => Promise<void>,
  ): Promise<unknown> {
    const program = path.join(examples, 'dist', file);
    const env = { ...process.env, SNOWFORK_STATE: testState };
    const child = spawn(process.execPath, [program, ...words, '--json'], { env });
    example = child;
    const output = Promise.all([text(child.stdout), text(child.stderr)]);
    const result = output.then(([stdout, stderr]) => {
      expect(stderr).toBe('');
      return JSON.parse(stdout);
    });
    const early = result.then((value) => expect.fail(`it has ended: ${JSON.stringify(value)}`));
    await Promise.race([meanwhile(), early]);
    return await result;
  }

  async function runningWorkers(): Promise<VmInfo[]> {
    const vms = await host.vms();
    return vms.filter(({ parent, state }) => parent !== undefined && state === 'running');
  }

  async function untilWorkers(areEnough: (count: number) => boolean): Promise<VmInfo[]> {
    let workers: VmInfo[] = [];
    const check = async () => {
      workers = await runningWorkers();
      expect(areEnough(workers.length), `${workers.length} workers`).toBe(true);
    };
    await vi.waitFor(check, { timeout: WAIT_MS, interval: 100 });
    return workers;
  }

  it('02-load-balancer loses no request when workers come, go, or crash', async () => {
    const report = await runOnHost('02-load-balancer/main.js', ['2', '300'], async () => {
      // When there is a second one, the first serves.
      const [crashing] = await untilWorkers((count) => count === 2);
      await (await host.vm(crashing!.id)).kill();
    });
    const { loads, timeline, members } = report as LoadReport;
    const sent = loads.reduce((sum, load) => sum + load.sent, 0);
    expect(sent).toBeGreaterThanOrEqual(300 + 2 * 20);
    expect(loads.reduce((sum, load) => sum + load.right, 0)).toBe(sent);
    expect(loads.filter(({ errors }) => errors > 0)).toEqual([]);
    // Up, and down again while requests came.
    const workers = timeline.map((tick) => tick.workers);
    expect([workers[0], Math.max(...workers), workers.at(-1)]).toEqual([0, 2, 0]);
    // Each answer is somebody's; and who left had counted just what was received of it.
    expect(members.reduce((sum, { answered }) => sum + answered, 0)).toBe(sent);
    const left = members.filter(({ counted }) => counted !== undefined);
    expect(left.length).toBeGreaterThanOrEqual(1);
    for (const { answered, counted } of left) expect(counted).toBe(answered);
    expect(left.some(({ answered }) => answered > 0)).toBe(true);
  });

  it('07-opportunistic makes way for others, and counts every number once', async () => {
    const words = ['3', '90000000', '5000000'];
    const result = await runOnHost('07-opportunistic/main.js', words, async () => {
      await untilWorkers((count) => count === 2);
      const other = await host.launch('minimal');
      await sh(other, 'setsid sh -c "while :; do :; done" </dev/null >/dev/null 2>&1 &');
      const [killed] = await untilWorkers((count) => count === 1);
      await (await host.vm(killed!.id)).kill();
      await other.kill();
      await untilWorkers((count) => count === 2);
      example!.kill('SIGTERM');
    });
    const report = result as OpportunistReport;
    expect(report.sum).toBe(report.expected);
    expect(report.isGapless).toBe(true);
    expect(report.numbers).toBeGreaterThan(report.undone);
    expect(report.lost).toBeGreaterThanOrEqual(1);
    // The one that made way, the one that was killed, and those that were there at the end; who is too slow
    // to hand over is lost.
    expect(report.handedOver).toBeGreaterThanOrEqual(1);
    expect(report.handedOver + report.lost).toBeGreaterThanOrEqual(4);
    const made = report.ticks.filter(({ busyOthers }) => busyOthers > 0);
    expect(Math.min(...made.map(({ wanted }) => wanted))).toBe(1);
  });

  it('04-branching finds the shortest tour, and just what copies in one process find', async () => {
    const words = ['3', '4', '10000'];
    const file = 'dist/04-branching/branching.js';
    const vm = await host.launch('node');
    const stdout = await runInside(vm, ['node', '--input-type=module', '-', ...words], file);
    const program = path.join(examples, file);
    const alone = spawnSync(process.execPath, [program, ...words, '--alone'], { encoding: 'utf8' });
    expect(alone.stderr).toBe('');
    expect(stdout).toBe(alone.stdout);
    expect(stdout.match(/^branches: .*; on from \d$/gm)).toHaveLength(4);
    expect(stdout).toMatch(/^shortest found: 48\.000 through 48 points; shortest there is: 48$/m);
    // Branches 2, 2, 3 and 3 were the best: not always the first, which a mix-up might give.
    const picked = [...stdout.matchAll(/on from (\d)/g)].map(([, branch]) => branch);
    expect(new Set(picked).size).toBeGreaterThan(1);
    const ended = (await host.vms({ all: true })).filter(({ family }) => family === vm.id);
    expect(ended.filter(({ end }) => end?.how === 'exited')).toHaveLength(3 * 4);
  });

  it('05-shell counts all primes, and goes on from the state that was kept', async () => {
    const vm = await host.launch('minimal');
    const stdout = await runInside(vm, ['sh', '-s', '5000', '3'], '05-shell/primes.sh');
    expect(stdout.split('\n')).toEqual([
      // 2, 5, 8 …; 3, 6, 9 …, of which only 3 is prime; 4, 7, 10 …
      'clone 1: exited 338',
      'clone 2: exited 1',
      'clone 3: exited 330',
      'primes below 5000: 669',
      '1 exited clone 1 finds: before the checkpoint',
      '2 exited clone 2 finds: before the checkpoint',
      'this VM finds: after the checkpoint',
      '',
    ]);
  });
});
