// The guest SDK in an image: the compiled files that `@snowfork/sdk/guest` needs and the packages
// that these import, put into /node_modules, where every script of the guest finds them. Called by
// `index.ts` for images with Node.

import fs from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { runInRoot } from './root.js';
import { type StepContext, stepFailed } from './run.js';

const SDK_NAME = '@snowfork/sdk';
const ENTRY = 'dist/guest/index.js';
const PACKAGES_MAX = 64;
/** Of a package's files those that no program reads at run time. */
const UNREAD = /\.(map|ts|mts|cts|md|c|cc|h|hh|inc|S|def)$/;
const FOLDERS_UNREAD = /^(test|tests|benchmark|node_modules|doc|vendor|musl_x64)(\/|$)/;

/** Files and packages that the entry of the guest SDK leads to. */
export interface GuestSdk {
  readonly sdkFolder: string;
  /** Relative to the SDK's folder, sorted; `package.json` is one of them. */
  readonly files: readonly string[];
  /** Folders of the packages, by their name. */
  readonly packages: ReadonlyMap<string, string>;
}

/** @throws SnowforkError SF_IMAGE_BUILD_FAILED when the SDK is not compiled or lacks a package. */
export async function findGuestSdk(
  sdkFolder: string,
  context: Pick<StepContext, 'step'>,
): Promise<GuestSdk> {
  const files = new Set<string>(['package.json']);
  const packages = new Map<string, string>();
  const todo = [path.join(sdkFolder, ENTRY)];
  while (todo.length > 0) {
    const file = todo.pop()!;
    const relative = path.relative(sdkFolder, file);
    if (files.has(relative)) continue;
    files.add(relative);
    const source = await fs.readFile(file, 'utf8').catch((cause) => {
      throw stepFailed(context, `${file} is not there: run \`npm run build\``, [], cause);
    });
    for (const specifier of importsOf(source)) {
      if (specifier.startsWith('.')) todo.push(path.resolve(path.dirname(file), specifier));
      else if (!specifier.startsWith('node:')) {
        await addPackage(packages, packageNameOf(specifier), file, context);
      }
    }
  }
  return { sdkFolder, files: [...files].sort(), packages };
}

/** Copies it into the root file system, and sees that Node finds it there. */
export async function installGuestSdk(
  sdk: GuestSdk,
  root: string,
  context: StepContext,
): Promise<void> {
  context.onProgress(context.step, `installing ${SDK_NAME}/guest`);
  const modules = path.join(root, 'node_modules');
  for (const file of sdk.files) {
    const target = path.join(modules, SDK_NAME, file);
    await fs.mkdir(path.dirname(target), { recursive: true });
    await fs.copyFile(path.join(sdk.sdkFolder, file), target);
  }
  for (const [name, folder] of sdk.packages) {
    await fs.cp(folder, path.join(modules, name), {
      recursive: true,
      filter: (source) => !isUnread(path.relative(folder, source)),
    });
  }
  const check = `await import('${SDK_NAME}/guest')`;
  await runInRoot(root, ['node', '--input-type=module', '--eval', check], context);
}

/** What a compiled module imports by a literal; enough for what `tsc` writes. */
export function importsOf(source: string): string[] {
  const pattern = /(?:^|[;\n])\s*(?:import|export)\b[^'";]*?\bfrom\s*['"]([^'"]+)['"]/g;
  const bare = /(?:^|[;\n])\s*import\s*['"]([^'"]+)['"]/g;
  const dynamic = /\bimport\(\s*['"]([^'"]+)['"]\s*\)/g;
  const required = /\brequire\(\s*['"]([^'"]+)['"]\s*\)/g;
  return [pattern, bare, dynamic, required].flatMap((form) =>
    [...source.matchAll(form)].map((match) => match[1]!),
  );
}

/** Adds the package and what it depends on; optional dependencies (addons for speed) stay out. */
async function addPackage(
  packages: Map<string, string>,
  name: string,
  importer: string,
  context: Pick<StepContext, 'step'>,
): Promise<void> {
  if (packages.has(name)) return;
  const folder = await findPackage(name, importer);
  if (folder === undefined || packages.size >= PACKAGES_MAX) {
    throw stepFailed(context, `the package ${name} that the guest SDK needs is not installed`);
  }
  packages.set(name, folder);
  const manifest: unknown = JSON.parse(
    await fs.readFile(path.join(folder, 'package.json'), 'utf8'),
  );
  const { dependencies } = manifest as { dependencies?: Record<string, string> };
  for (const needed of Object.keys(dependencies ?? {})) {
    await addPackage(packages, needed, path.join(folder, 'package.json'), context);
  }
}

/** As Node looks it up from `importer`, without asking the package what it exports. */
async function findPackage(name: string, importer: string): Promise<string | undefined> {
  for (const folder of createRequire(importer).resolve.paths(name) ?? []) {
    const candidate = path.join(folder, name);
    const found = await fs.stat(path.join(candidate, 'package.json')).catch(() => undefined);
    if (found !== undefined) return await fs.realpath(candidate);
  }
  return undefined;
}

function packageNameOf(specifier: string): string {
  const steps = specifier.split('/');
  return steps.slice(0, specifier.startsWith('@') ? 2 : 1).join('/');
}

function isUnread(relative: string): boolean {
  return UNREAD.test(relative) || FOLDERS_UNREAD.test(relative);
}
