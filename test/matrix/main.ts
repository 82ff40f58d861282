// `npm run matrix`: the tests with real VMs, once for each pair of a QEMU and a guest kernel, one pair
// after another, each in a state folder of its own. Prints a table; whole runs are kept in
// SPECIFICATION.md. Ends with 1 when a cell failed. Not part of `npm test`, as it takes long.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { QEMU_PROGRAM } from '../../packages/clone-agent/src/hypervisor/locate.js';
import { findQemu, type QemuWanted } from './qemu.js';
import { type CellResult, updateTable } from './table.js';

const root = path.resolve(import.meta.dirname, '../..');
/** The path must be short, for the sockets below it. */
const stateFolder = process.env.SNOWFORK_MATRIX_STATE ?? '/var/tmp/snowfork-matrix';
const specification = path.join(root, 'SPECIFICATION.md');

const QEMUS: readonly QemuWanted[] = [
  { version: '7.2', suites: ['bookworm'] },
  { version: '10.0', suites: ['bookworm', 'bookworm-backports'] },
];
const KERNELS = [
  { version: '6.1', choice: 'linux-image-cloud-amd64/bookworm' },
  { version: '6.12', choice: 'linux-image-cloud-amd64/bookworm-backports' },
] as const;
/** What depends most on QEMU's device state and on the guest's kernel. */
const QUICK_FILES = [
  ...['versions', 'hypervisor', 'free-pages', 'pager', 'inheritance', 'nested', 'checkpoint'],
  'identity',
].map((name) => `test/vm/${name}.test.ts`);

interface Cell {
  readonly qemu: QemuWanted;
  readonly kernel: (typeof KERNELS)[number];
}

interface Options {
  readonly cells: readonly Cell[];
  /** None: all tests with VMs. */
  readonly files: readonly string[];
}

process.exitCode = await main();

async function main(): Promise<number> {
  const { cells, files } = readOptions();
  fs.mkdirSync(stateFolder, { recursive: true, mode: 0o755 });
  const results: CellResult[] = [];
  for (const cell of cells) {
    const result = await runCell(cell, files);
    results.push(result);
    // At once, as the next cell takes long too and may be given up.
    if (files.length === 0) {
      const document = fs.readFileSync(specification, 'utf8');
      fs.writeFileSync(specification, updateTable(document, [result]));
    }
  }
  process.stdout.write(`\n${files.length === 0 ? 'All tests with VMs' : files.join(' ')}\n\n`);
  process.stdout.write('QEMU      guest kernel                passed  failed  skipped\n');
  for (const { qemu, kernel, passed, failed, skipped } of results) {
    const counts = [passed, failed, skipped].map((count) => String(count).padStart(8)).join('');
    process.stdout.write(`${qemu.padEnd(10)}${kernel.padEnd(26)}${counts}\n`);
  }
  return results.every(({ failed }) => failed === 0) ? 0 : 1;
}

function readOptions(): Options {
  const usage =
    'usage: npm run matrix -- [--cell qemu=10.0,kernel=6.12]… [--quick] [TEST-FILE…]\n' +
    `QEMU: ${QEMUS.map(({ version }) => version).join(', ')}; ` +
    `kernel: ${KERNELS.map(({ version }) => version).join(', ')}\n`;
  try {
    const { values, positionals } = parseArgs({
      options: {
        cell: { type: 'string', multiple: true, default: [] },
        quick: { type: 'boolean', default: false },
      },
      allowPositionals: true,
    });
    const all = QEMUS.flatMap((qemu) => KERNELS.map((kernel): Cell => ({ qemu, kernel })));
    const cells = values.cell.length === 0 ? all : values.cell.flatMap((name) => pick(all, name));
    return { cells, files: [...(values.quick ? QUICK_FILES : []), ...positionals] };
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n${usage}`);
    process.exit(2);
  }
}

/** `qemu=10.0,kernel=6.12`; what is not said may be anything. */
function pick(cells: readonly Cell[], name: string): Cell[] {
  const said = new Map(name.split(',').map((part) => part.split('=') as [string, string]));
  const unknown = [...said.keys()].filter((key) => key !== 'qemu' && key !== 'kernel');
  const isSaid = (key: string, version: string) => (said.get(key) ?? version) === version;
  const picked = cells.filter(
    ({ qemu, kernel }) => isSaid('qemu', qemu.version) && isSaid('kernel', kernel.version),
  );
  if (unknown.length > 0 || picked.length === 0) throw new Error(`no cell ${name}`);
  return picked;
}

async function runCell({ qemu, kernel }: Cell, files: readonly string[]): Promise<CellResult> {
  const found = await findQemu(qemu, stateFolder, say);
  const state = path.join(stateFolder, `${qemu.version}-${kernel.version}`);
  say(`QEMU ${found.version}, guest kernel ${kernel.version}: tests in ${state}`);
  fs.mkdirSync(state, { recursive: true, mode: 0o700 });
  const report = path.join(state, 'results.json');
  fs.rmSync(report, { force: true });
  const vitest = path.join(root, 'node_modules/vitest/vitest.mjs');
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`];
  const child = spawn(
    process.execPath,
    [vitest, 'run', '--project', 'vm', '--project', 'apart', ...reporters, ...files],
    {
      cwd: root,
      stdio: ['ignore', 'inherit', 'inherit'],
      env: {
        ...process.env,
        PATH: `${found.folder}:${process.env.PATH}`,
        SNOWFORK_QEMU: path.join(found.folder, QEMU_PROGRAM),
        SNOWFORK_GUEST_KERNEL: kernel.choice,
        SNOWFORK_TEST_STATE: state,
      },
    },
  );
  const [code] = (await once(child, 'exit')) as [number | null];
  return {
    qemu: found.version,
    kernel: kernelOfImages(state, kernel.version),
    ...counts(report, code),
    date: new Date().toISOString().slice(0, 10),
  };
}

/** What the images of the cell were in fact built with. */
function kernelOfImages(state: string, wanted: string): string {
  const image = path.join(state, 'images/minimal.json');
  if (!fs.existsSync(image)) return wanted;
  const { kernel } = JSON.parse(fs.readFileSync(image, 'utf8')) as { kernel: string };
  if (kernel.startsWith(`${wanted}.`)) return kernel;
  throw new Error(`the guests ran Linux ${kernel}, not ${wanted}`);
}

function counts(report: string, code: number | null) {
  if (!fs.existsSync(report)) return { passed: 0, failed: 1, skipped: 0 };
  const results = JSON.parse(fs.readFileSync(report, 'utf8')) as VitestReport;
  // A file that could not even be loaded has no tests to count.
  const broken = results.testResults.filter(
    (file) => file.status === 'failed' && file.assertionResults.length === 0,
  );
  const failed = results.numFailedTests + broken.length;
  const passed = results.numPassedTests;
  const skipped = results.numPendingTests + results.numTodoTests;
  // The run itself can fail without a failed test, and a run of nothing proves nothing.
  const isBad = failed === 0 && (code !== 0 || passed === 0);
  return { passed, failed: isBad ? 1 : failed, skipped };
}

interface VitestReport {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly numPendingTests: number;
  readonly numTodoTests: number;
  readonly testResults: readonly { status: string; assertionResults: readonly unknown[] }[];
}

function say(words: string): void {
  process.stderr.write(`matrix: ${words}\n`);
}
