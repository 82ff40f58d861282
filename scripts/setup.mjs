// Sets up whatever is missing to build and run Snowfork, and nothing that is there: Debian packages
// (as root; otherwise it says which command installs them), npm packages, the build. Plain
// JavaScript without dependencies, as it runs before there are any. Used by `npm start`, `npm test`
// and the other scripts of package.json.

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

/** Debian package → a program that it brings. */
const debianPackages = {
  'qemu-system-x86': 'qemu-system-x86_64',
  mmdebstrap: 'mmdebstrap',
  'squashfs-tools': 'mksquashfs',
  kmod: 'depmod',
  mount: 'mount',
};
const NODE_MAJOR_MIN = 20;

/** `more`: packages beside those that Snowfork itself needs. */
export function setUp(more = {}) {
  checkNode();
  installDebianPackages({ ...debianPackages, ...more });
  installNpmPackages();
  build();
}

function checkNode() {
  const major = Number(process.versions.node.split('.')[0]);
  if (major < NODE_MAJOR_MIN) {
    fail(`Node ${NODE_MAJOR_MIN} or later is needed; this is ${process.version}`);
  }
}

function installDebianPackages(packages) {
  const missing = Object.entries(packages)
    .filter(([, program]) => !isInPath(program))
    .map(([name]) => name);
  if (missing.length === 0) return;
  const install = `apt-get install --yes --no-install-recommends ${missing.join(' ')}`;
  if (process.getuid() !== 0) {
    fail(
      `these Debian packages are missing; install them as root:\n  apt-get update && ${install}`,
    );
  }
  say(`installing Debian packages: ${missing.join(', ')}`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  run('apt-get', ['update', '--quiet'], { env });
  run('apt-get', install.split(' ').slice(1), { env });
}

function installNpmPackages() {
  const lock = fs.readFileSync(path.join(root, 'package-lock.json'));
  const wanted = createHash('sha256').update(lock).digest('hex');
  const stamp = path.join(root, 'node_modules', '.snowfork-lock');
  if (fs.existsSync(stamp) && fs.readFileSync(stamp, 'utf8') === wanted) return;
  say('installing npm packages');
  run('npm', ['ci', '--no-audit', '--no-fund']);
  fs.writeFileSync(stamp, wanted);
}

function build() {
  const compiler = path.join(root, 'node_modules', '.bin', 'tsc');
  const started = Date.now();
  run(compiler, ['-b']);
  if (Date.now() - started > 3000) say('built');
}

/** Runs a program in the project's folder; its failure ends this process. */
export function run(program, args, options = {}) {
  // What the program says goes to stderr: stdout belongs to the job itself (`--json`).
  const stdio = ['inherit', process.stderr, process.stderr];
  const { status, error } = spawnSync(program, args, { cwd: root, stdio, ...options });
  if (error) fail(`${program}: ${error.message}`);
  if (status !== 0) fail(`${program} ${args.join(' ')} failed (exit code ${status})`);
}

function isInPath(program) {
  const folders = [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin'];
  return folders.some((folder) => fs.existsSync(path.join(folder, program)));
}

function say(words) {
  process.stderr.write(`snowfork: ${words}\n`);
}

function fail(words) {
  process.stderr.write(`snowfork: ${words}\n`);
  process.exit(1);
}
