// Parallel map: a program inside a VM forks into clones, each prices a share of 64 options by Monte
// Carlo, the parent joins the results and checks them against the closed formula. Prints what
// happened: the family, the times, the pages. Run by `npm start`; arguments: [clones] [paths].

import fs from 'node:fs';
import { connect, type SnapshotInfo, SnowforkError, type VmInfo } from '@snowfork/sdk';

interface Priced {
  readonly strike: number;
  readonly simulated: number;
  readonly standardError: number;
  readonly exact: number;
}

const CLONES_DEFAULT = 8;
const PATHS_DEFAULT = 20_000;
/** A simulated price further than this many standard errors from the exact one would be a fault. */
const ERRORS_MAX = 5;
const clones = Number(process.argv[2] ?? CLONES_DEFAULT);
const paths = Number(process.argv[3] ?? PATHS_DEFAULT);

try {
  await main();
} catch (error) {
  if (!(error instanceof SnowforkError)) throw error;
  process.stderr.write(`${error.code}: ${error.message}\n`);
  process.exitCode = 1;
}

async function main(): Promise<void> {
  await using host = await connect();
  const { qemu } = await host.info();
  print(`QEMU ${qemu.version}, ${qemu.accelerator === 'kvm' ? 'KVM' : 'software emulation (TCG)'}`);

  await using vm = await host.launch('node');
  const { times } = vm.initialInfo;
  print(
    `launched ${vm.id} from the image "node" in ${times?.answeredMs.toFixed(0)} ms, without a boot`,
  );

  const job = new URL('./job.js', import.meta.url);
  await vm.writeFile('/root/job.mjs', fs.readFileSync(job));
  print(`running job.mjs in ${vm.id}: sf.map(64 options, price, { clones: ${clones} })`);
  const { stdout, stderr, code } = await vm.exec([
    'node',
    '/root/job.mjs',
    String(clones),
    String(paths),
  ]);
  if (code !== 0) throw new SnowforkError('SF_CLONE_FAILED', `the job failed (${code}): ${stderr}`);
  const { elapsedMs, results } = JSON.parse(stdout) as { elapsedMs: number; results: Priced[] };

  const family = (await host.vms({ all: true })).filter((member) => member.family === vm.id);
  const snapshot = (await host.snapshots()).find((candidate) => candidate.vm === vm.id);
  printFamily(family, vm.id);
  if (snapshot !== undefined) printFreeze(snapshot);
  printResults(results, elapsedMs);
}

function printFamily(family: VmInfo[], parent: string): void {
  const children = family
    .filter((member) => member.parent === parent)
    .sort((a, b) => (a.cloneId ?? 0) - (b.cloneId ?? 0));
  print(`\n${parent}`);
  print(
    '   clone          resumed   answered   touched    private     shared   (ms; pages of 4 KiB)',
  );
  for (const [index, child] of children.entries()) {
    const branch = index === children.length - 1 ? '└─' : '├─';
    const { times, lastStats } = child;
    const columns = [
      times?.resumedMs.toFixed(0),
      times?.answeredMs.toFixed(0),
      lastStats?.touchedPages,
      lastStats?.privatePages,
      lastStats?.sharedPages,
    ].map((value) => String(value ?? '-').padStart(10));
    print(
      `${branch} ${`${child.id} (${child.cloneId})`.padEnd(10)}${columns.join(' ')}   ${child.end?.how}`,
    );
  }
}

function printFreeze(snapshot: SnapshotInfo): void {
  const { pages, freeze, layerBytes } = snapshot;
  if (freeze !== undefined) {
    const parts = Object.entries(freeze.parts).map(([name, ms]) => `${name} ${ms.toFixed(1)}`);
    print(`\nparent paused ${freeze.pauseMs.toFixed(1)} ms (${parts.join(', ')})`);
  }
  print(
    `of ${pages.totalPages} pages: ${pages.freePages} free (never fetched), ${pages.privatePages} changed since ` +
      `the image; ${pages.storedPages} stored (${(layerBytes / 2 ** 20).toFixed(1)} MiB)`,
  );
}

function printResults(results: Priced[], elapsedMs: number): void {
  const off = (r: Priced) => Math.abs(r.simulated - r.exact) / Math.max(r.standardError, 1e-9);
  const worst = results.reduce((a, b) => (off(a) > off(b) ? a : b));
  print(
    `\n${results.length} options priced in ${(elapsedMs / 1000).toFixed(1)} s by ${clones} clones`,
  );
  for (const r of results.filter((_, index) => index % 16 === 0)) {
    const price = `${r.simulated.toFixed(3)} ± ${r.standardError.toFixed(3)}`;
    print(`  strike ${r.strike}: ${price}, closed formula ${r.exact.toFixed(3)}`);
  }
  print(`  furthest from the closed formula: ${off(worst).toFixed(1)} standard errors`);
  if (off(worst) > ERRORS_MAX) {
    throw new SnowforkError(
      'SF_INTERNAL',
      `strike ${worst.strike} is off: ${JSON.stringify(worst)}`,
    );
  }
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
