// `sf top` and `sf tree --watch`: what they show, on a terminal and elsewhere, and that they leave the
// terminal as it was. `script` of util-linux makes the terminals.

import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { HostStats, VmInfo } from '@snowfork/sdk/api';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type RunningServer, startServer } from '../../packages/clone-agent/src/api/server.js';
import { ratesBetween, renderTop, type Sample } from '../../packages/sdk/src/cli/top.js';
import { eventually } from '../support/eventually.js';
import { FakeService } from '../support/fake-service.js';

const SF = fileURLToPath(new URL('../../packages/sdk/dist/cli/main.js', import.meta.url));
const ENTERED = '\u001b[?1049h';
const LEFT = '\u001b[?1049l';
const CTRL_C = '\u0003';

let folder: string;
let service: FakeService;
let server: RunningServer;
let children: ChildProcessWithoutNullStreams[];

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'sf-live-'));
  service = new FakeService();
  server = await startServer({ service, socketPath: join(folder, 'agent.sock'), version: '1' });
  children = [];
});

afterEach(async () => {
  for (const child of children) child.kill('SIGKILL');
  await server.close();
  rmSync(folder, { recursive: true });
});

interface Running {
  readonly child: ChildProcessWithoutNullStreams;
  /** All that it has written so far. */
  readonly output: () => string;
  readonly code: Promise<number | null>;
}

function follow(program: string, args: string[]): Running {
  const env = { ...process.env, SNOWFORK_STATE: folder, TERM: 'xterm' };
  const child = spawn(program, args, { env });
  children.push(child);
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk: Buffer) => {
      output += chunk;
    });
  }
  const code = new Promise<number | null>((resolve) => child.once('close', resolve));
  return { child, output: () => output, code };
}

function sf(...args: string[]): Running {
  return follow(process.execPath, [SF, ...args]);
}

/** `sf` on a terminal, whose settings are printed before and after. */
function onTerminal(args: string): Running {
  return inScript(`stty -g; '${process.execPath}' '${SF}' ${args}; echo "code $?"; stty -g`);
}

function inScript(line: string): Running {
  return follow('script', ['--quiet', '--flush', '--command', line, '/dev/null']);
}

async function launched(): Promise<VmInfo> {
  return service.launch({ image: 'minimal' }, new AbortController().signal);
}

describe.each([['top'], ['tree --watch']])('%s on a terminal', (line) => {
  test.each([
    ['q', 'q'],
    ['Ctrl-C', CTRL_C],
  ])('leaves it as it was after %s', async (_name, key) => {
    const { id } = await launched();
    const { child, output, code } = onTerminal(line);
    await eventually(() => expect(output()).toContain(id));
    expect(output()).toContain(ENTERED);
    child.stdin.write(key);
    await code;
    const [before, after] = output().split(LEFT);
    expect(after).toMatch(/code 0/);
    const settings = before!.split('\r\n')[0];
    expect(after!.trimEnd().split('\r\n').at(-1)).toBe(settings);
    expect(settings).toMatch(/^[0-9a-f]+:/);
  });
});

test('top that is ended by a signal leaves the terminal as it was', async () => {
  const pidFile = join(folder, 'pid');
  const run = `echo \\$\\$ > ${pidFile}; exec '${process.execPath}' '${SF}' top`;
  const { output, code } = inScript(`stty -g; sh -c "${run}"; echo "code $?"; stty -g`);
  await eventually(() => expect(output()).toContain(ENTERED));
  process.kill(Number(readFileSync(pidFile, 'utf8')), 'SIGTERM');
  await code;
  const [before, after] = output().split(LEFT);
  expect(after).toMatch(/code 130/);
  expect(after!.trimEnd().split('\r\n').at(-1)).toBe(before!.split('\r\n')[0]);
});

describe('tree --watch', () => {
  test('draws again when a VM comes', async () => {
    const { child, output, code } = onTerminal('tree --watch');
    await eventually(() => expect(output()).toContain('no VM runs'));
    const { id } = await launched();
    await eventually(() => expect(output()).toContain(id));
    child.stdin.write('q');
    await code;
  });

  test('with --json is a document for each change', async () => {
    const { child, output, code } = sf('tree', '--watch', '--json');
    await eventually(() => expect(output()).toContain('"families":[]'));
    const { id } = await launched();
    await eventually(() => expect(output()).toContain(id));
    child.kill('SIGINT');
    expect(await code).toBe(0);
    const documents = output()
      .trimEnd()
      .split('\n')
      .map((text) => JSON.parse(text));
    expect(documents.at(-1).families).toMatchObject([{ id, children: [] }]);
    await eventually(() => expect(service.listeners).toBe(0));
  });
});

describe('top', () => {
  test('with --json is a document for each sample, with rates from the second on', async () => {
    const { id } = await launched();
    const { output, code } = sf('top', '--json', '--count', '2', '--interval', '0.05');
    expect(await code).toBe(0);
    const [first, second, ...more] = output()
      .trimEnd()
      .split('\n')
      .map((text) => JSON.parse(text));
    expect(more).toEqual([]);
    expect(first.pages).toMatchObject({ reads: 557 });
    expect(first.pages.perSecond).toBeUndefined();
    expect(second.pages.perSecond).toMatchObject({ reads: 0, zero: 0, layer: 0 });
    expect(second.vms).toMatchObject([{ id, rates: { processors: 0 } }]);
    expect(second.at).toBeGreaterThan(first.at);
  });

  test('where there is no terminal is plain text', async () => {
    const { id } = await launched();
    const { output, code } = sf('top', '-c', '1');
    expect(await code).toBe(0);
    expect(output()).toContain(id);
    expect(output()).not.toContain('\u001b');
  });

  test.each([
    ['-i', '0'],
    ['-i', 'soon'],
    ['-c', '0'],
    ['-c', '1.5'],
  ])('refuses %s %s', async (...args) => {
    expect(await sf('top', ...args).code).toBe(2);
  });

  test('has no figures of a VM that ends while it is measured', async () => {
    const { id } = await launched();
    service.vmStats = async () => {
      throw new Error('it has ended');
    };
    const { output, code } = sf('top', '-c', '1', '--json');
    expect(await code).toBe(0);
    expect(JSON.parse(output()).vms).toMatchObject([{ id }]);
  });
});

describe('rates', () => {
  const vm = { id: 'vm1', image: 'minimal', state: 'running', startedAt: 0 } as VmInfo;

  function sample(at: number, stats: HostStats, cpuMs = 0, touchedPages = 0): Sample {
    const its = { cpuMs, touchedPages, privatePages: 1, sharedPages: 1 };
    return { at, stats, vms: [{ vm, stats: { ...its, vm: 'vm1' } as never }] };
  }

  function served(
    objects: Record<string, number>,
    { pid = 1, buckets = [0, 0, 0] }: { pid?: number; buckets?: number[] } = {},
  ): HostStats {
    const counts = (reads: number) => ({
      reads,
      zeroPages: reads,
      localPages: 0,
      refusedReads: 0,
      storedPages: 0,
      replayedPages: 0,
      aheadPages: 0,
      replicaPages: 0,
      demandedPages: 0,
      firstTouches: 0,
      dependsOn: {},
    });
    const listed = Object.entries(objects).map(([snapshot, reads]) => ({
      snapshot,
      object: 'ram',
      ...counts(reads),
    }));
    const memory = {
      totalBytes: 1,
      availableBytes: 1,
      promisedBytes: 0,
      roomBytes: 1,
      layersBytes: 0,
      layersBytesMax: 1,
    };
    return {
      memory,
      pool: { size: 0, ready: 0, pssBytes: 0 },
      pager: { pid, objects: listed, latencyUsBuckets: buckets },
      vms: [],
      snapshots: [],
    };
  }

  test('are per second, and of the time between', () => {
    const before = sample(1000, served({ s1: 10 }), 100, 50);
    const after = sample(3000, served({ s1: 30 }), 1100, 150);
    const rates = ratesBetween(before, after);
    expect(rates.pages).toMatchObject({ reads: 10, zero: 10, layer: 0 });
    expect(rates.vms).toEqual({ vm1: { processors: 0.5, touchedPerSecond: 50 } });
  });

  test('are not disturbed by snapshots that come and go', () => {
    const before = sample(0, served({ s1: 1000, s2: 5 }));
    const after = sample(1000, served({ s2: 7, s3: 4 }));
    expect(ratesBetween(before, after).pages.reads).toBe(6);
  });

  test('have the latency of the faults between, also when the pager is another one', () => {
    const before = served({}, { buckets: [100, 0, 0, 0] });
    const after = served({}, { buckets: [100, 98, 0, 2] });
    expect(ratesBetween(sample(0, before), sample(1, after)).latencyUs).toEqual({ p50: 2, p99: 8 });
    const other = served({}, { pid: 2, buckets: [1, 0, 0, 0] });
    expect(ratesBetween(sample(0, before), sample(1, other)).latencyUs).toEqual({ p50: 1, p99: 1 });
    expect(ratesBetween(sample(0, before), sample(1, before)).latencyUs).toBeUndefined();
  });

  test('and VMs never take more lines than there are', () => {
    const vms = Array.from({ length: 50 }, (_, index) => ({
      vm: { ...vm, id: `vm${index}` },
      stats: undefined,
    }));
    const all: Sample = { at: 1, stats: served({ s1: 1 }), vms };
    for (const rows of [9, 10, 12, 24, 100]) {
      const lines = renderTop(service.info(), all, undefined, rows);
      expect(lines.length).toBeLessThanOrEqual(Math.max(rows, 10));
      if (rows === 24) expect(lines.at(-1)).toBe('… and 36 more');
    }
    const lines = renderTop(service.info(), all, undefined, Number.POSITIVE_INFINITY);
    expect(lines.filter((line) => line.startsWith('vm'))).toHaveLength(50);
  });
});
