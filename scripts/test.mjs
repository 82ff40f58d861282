// `npm test`: sets up what is missing, runs all tests (or those whose file names match the
// arguments) and ends with the line `N passed, N failed`. Two lanes run side by side, as tests with VMs
// leave half of the processors idle: those with agents of their own, and all others. In CI a skipped
// test counts as failed: there, every kind must be able to run.

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { root, run, setUp } from './setup.mjs';

// The documentation's lines for curl are run; hosts of a network are network namespaces.
// Clusters have their store in etcd.
// What packs initramfs is held against cpio.
setUp({ cpio: 'cpio', curl: 'curl', iproute2: 'ip', nftables: 'nft', 'etcd-server': 'etcd' });
/** Enough for what a runner says when it ends before its tests. */
const LINES_OF_A_CRASH = 60;
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-test-'));
const runs = new Set();
endWithThis();
prepareVms();
// What the first prints is seen at once; the others' waits until they end, so that two don't mix.
const lanes = [['apart'], ['vm', 'unit', 'sim', 'net']];
const counts = (await Promise.all(lanes.map((kinds, index) => runLane(kinds, index === 0)))).flat();
fs.rmSync(folder, { recursive: true, force: true });

const sum = (key) => counts.reduce((total, count) => total + count[key], 0);
const skipped = sum('skipped');
let failed = sum('failed');
if (process.env.CI && skipped > 0) {
  process.stdout.write(`${skipped} skipped tests count as failed in CI\n`);
  failed += skipped;
} else if (skipped > 0) {
  process.stdout.write(`${skipped} skipped\n`);
}
if (sum('passed') + failed + skipped === 0) {
  process.stdout.write('no test file has such a name\n');
  failed = 1;
}
// Named once more where they are seen: their reports stand among thousands of lines.
for (const failure of counts.flatMap((count) => count.failures)) {
  process.stdout.write(`failed: ${failure}\n`);
}
process.stdout.write(`${sum('passed')} passed, ${failed} failed\n`);
process.exit(failed === 0 ? 0 : 1);

/** The agent that both lanes use for images ends with this process. */
function prepareVms() {
  const files = fs.readdirSync(path.join(root, 'test/vm')).map((name) => `test/vm/${name}`);
  const wanted = process.argv.slice(2);
  if (wanted.length > 0 && !files.some((file) => wanted.some((name) => file.includes(name))))
    return;
  process.env.SNOWFORK_TEST_OWNER = String(process.pid);
  const tsx = path.join(root, 'node_modules/tsx/dist/cli.mjs');
  run(process.execPath, [tsx, path.join(root, 'test/support/vm-setup.ts')]);
}

/** A terminal tells all of its processes; who ends this one alone means the others too. */
function endWithThis() {
  for (const signal of ['SIGTERM', 'SIGHUP']) {
    process.once(signal, () => {
      for (const child of runs) child.kill(signal);
      fs.rmSync(folder, { recursive: true, force: true });
      process.kill(process.pid, signal);
    });
  }
}

async function runLane(kinds, atOnce) {
  const counts = [];
  for (const kind of kinds) counts.push(await runTests(kind, atOnce));
  return counts;
}

async function runTests(project, atOnce) {
  const results = path.join(folder, `${project}.json`);
  const vitest = path.join(root, 'node_modules/vitest/vitest.mjs');
  const options = [
    `--project=${project}`,
    '--passWithNoTests',
    '--reporter=default',
    '--reporter=json',
    `--outputFile.json=${results}`,
  ];
  const child = spawn(process.execPath, [vitest, 'run', ...options, ...process.argv.slice(2)], {
    cwd: root,
    stdio: ['inherit', 'pipe', 'pipe'],
  });
  runs.add(child);
  const chunks = [];
  const take = (chunk) => {
    chunks.push(chunk);
    if (atOnce) process.stdout.write(chunk);
  };
  child.stdout.on('data', take);
  child.stderr.on('data', take);
  const end = await new Promise((resolve) =>
    child.once('close', (status, signal) => resolve(signal ?? status)),
  );
  runs.delete(child);
  const printed = Buffer.concat(chunks);
  if (!atOnce) process.stdout.write(printed);
  return count(results, end, printed.toString());
}

/** @param end exit code, or the signal that ended it; @param printed what the run printed */
function count(results, end, printed) {
  const counted = { passed: 0, failed: 0, skipped: 0, failures: [] };
  if (fs.existsSync(results)) {
    const report = JSON.parse(fs.readFileSync(results, 'utf8'));
    counted.passed = report.numPassedTests;
    counted.skipped = report.numPendingTests + report.numTodoTests;
    // A file that could not even be loaded has no tests to count.
    const broken = report.testResults.filter(
      (file) => file.status === 'failed' && file.assertionResults.length === 0,
    );
    counted.failed = report.numFailedTests + broken.length;
    counted.failures = report.testResults.flatMap(failuresOf);
  }
  // The run itself can fail without a failed test: an unhandled error, a crash of the runner.
  if (end !== 0 && counted.failed === 0) {
    const lines = printed.trimEnd().split('\n').slice(-LINES_OF_A_CRASH).join('\n  ');
    counted.failed = 1;
    counted.failures = [
      `the run of ${path.basename(results, '.json')} ended with ${end}; it printed last\n  ${lines}`,
    ];
  }
  return counted;
}

/** @returns a line for each failed test of a file, or one for a file that could not be loaded */
function failuresOf(file) {
  const name = path.relative(root, file.name);
  const failed = file.assertionResults.filter((test) => test.status === 'failed');
  if (failed.length === 0 && file.status === 'failed') return [`${name}: ${file.message}`];
  return failed.map((test) => `${name}: ${test.fullName}: ${test.failureMessages.join('; ')}`);
}
