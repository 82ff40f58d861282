// `npm test`: sets up what is missing, runs all tests (or those whose file names match the
// arguments) and ends with the line `N passed, N failed`. In CI a skipped test counts as failed:
// there, every kind must be able to run.

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { root, setUp } from './setup.mjs';

// The documentation's lines for curl are run.
setUp({ curl: 'curl' });
const results = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-test-')), 'results.json');
const vitest = path.join(root, 'node_modules/vitest/vitest.mjs');
const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${results}`];
const { status } = spawnSync(
  process.execPath,
  [vitest, 'run', ...reporters, ...process.argv.slice(2)],
  { cwd: root, stdio: 'inherit' },
);

let passed = 0;
let failed = 0;
let skipped = 0;
if (fs.existsSync(results)) {
  const report = JSON.parse(fs.readFileSync(results, 'utf8'));
  passed = report.numPassedTests;
  skipped = report.numPendingTests + report.numTodoTests;
  // A file that could not even be loaded has no tests to count.
  const broken = report.testResults.filter(
    (file) => file.status === 'failed' && file.assertionResults.length === 0,
  );
  failed = report.numFailedTests + broken.length;
}
fs.rmSync(path.dirname(results), { recursive: true, force: true });
if (process.env.CI && skipped > 0) {
  process.stdout.write(`${skipped} skipped tests count as failed in CI\n`);
  failed += skipped;
} else if (skipped > 0) {
  process.stdout.write(`${skipped} skipped\n`);
}
// The run itself can fail without a failed test: an unhandled error, a crash of the runner.
if (status !== 0 && failed === 0) failed = 1;
process.stdout.write(`${passed} passed, ${failed} failed\n`);
process.exit(failed === 0 ? 0 : 1);
