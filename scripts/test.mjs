// `npm test`: sets up what is missing, runs all tests (or those whose file names match the
// arguments) and ends with the line `N passed, N failed`. Unit tests, the simulator and the network
// run beside those with VMs, which leave half of the processors idle. In CI a skipped test counts as
// failed: there, every kind must be able to run.

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { root, setUp } from './setup.mjs';

// The documentation's lines for curl are run; hosts of a network are network namespaces.
// Clusters have their store in etcd.
// What packs initramfs is held against cpio.
setUp({ cpio: 'cpio', curl: 'curl', iproute2: 'ip', nftables: 'nft', 'etcd-server': 'etcd' });
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-test-'));
const counts = (
  await Promise.all([
    runTests('unit', 'pipe').then(async (unit) => [
      unit,
      await runTests('sim', 'pipe'),
      await runTests('net', 'pipe'),
    ]),
    runTests('vm', 'inherit'),
  ])
).flat();
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

/** @param output where it goes: `pipe` keeps it until the end, so that two don't mix */
async function runTests(project, output) {
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
    stdio: ['inherit', output, output],
  });
  const chunks = [];
  child.stdout?.on('data', (chunk) => chunks.push(chunk));
  child.stderr?.on('data', (chunk) => chunks.push(chunk));
  const status = await new Promise((resolve) => child.once('close', resolve));
  process.stdout.write(Buffer.concat(chunks));
  return count(results, status);
}

function count(results, status) {
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
  if (status !== 0 && counted.failed === 0) {
    counted.failed = 1;
    counted.failures = [`the run of ${path.basename(results, '.json')} ended with ${status}`];
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
