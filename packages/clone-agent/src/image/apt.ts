// Where Debian packages come from: the apt sources of this host, narrowed to some suites, so that
// the project names no mirror. Keeps lists of packages of its own in the cache folder (the host's
// may be empty or of another suite) and never touches the host's. Called by `kernel.ts`, `root.ts`
// and the matrix of versions (`test/matrix`).

import fs from 'node:fs/promises';
import path from 'node:path';
import { run, type StepContext, stepFailed } from './run.js';

/** Younger lists are not fetched again only to see whether there is a newer kernel. */
const LISTS_AGE_MS_MAX = 24 * 3_600_000;

export interface Apt {
  readonly sourcesFolder: string;
  /** The narrowed sources: files that apt and mmdebstrap read. */
  readonly sourceFiles: readonly string[];
  /** Options of apt-get and apt-cache that select the narrowed sources and lists of our own. */
  readonly options: readonly string[];
  /** Its time is when the lists were fetched. */
  readonly listsStamp: string;
}

/** What becomes of a suite that a source has: the name that it is kept under, undefined: dropped. */
export type SuiteChoice = (candidate: string) => string | undefined;

const BACKPORTS = '-backports';

/**
 * Backports that the host has no source of come from where it has the suite itself from.
 * @param folders the work folder gets the narrowed sources, the cache folder keeps the lists
 * @throws SnowforkError SF_IMAGE_BUILD_FAILED when the host has no source of such a suite.
 */
export async function openApt(
  suites: readonly string[],
  folders: { readonly cacheFolder: string; readonly workFolder: string },
  context: StepContext,
): Promise<Apt> {
  const folder = path.join(folders.cacheFolder, 'apt', suites.join('+'));
  const parts = path.join(folders.workFolder, 'sources');
  await fs.mkdir(parts, { recursive: true });
  for (const name of ['lists/partial', 'cache/archives/partial']) {
    await fs.mkdir(path.join(folder, name), { recursive: true });
  }
  await fs.writeFile(path.join(folder, 'status'), '');
  const hostFiles = await hostSourceFiles(context);
  const sourceFiles: string[] = [];
  for (const suite of suites) {
    let sources = narrowAll(hostFiles, { choice: ofSuite(suite), archiveOnly: false });
    if (sources.length === 0 && suite.endsWith(BACKPORTS)) {
      sources = narrowAll(hostFiles, { choice: asBackports(suite), archiveOnly: true });
    }
    if (sources.length === 0) {
      const fix = 'add one to /etc/apt/sources.list.d, or change the suite';
      throw stepFailed(context, `no apt source of this host has Debian's suite ${suite}: ${fix}`);
    }
    for (const { extension, text } of sources) {
      const file = path.join(parts, `${sourceFiles.length}${extension}`);
      await fs.writeFile(file, text);
      sourceFiles.push(file);
    }
  }
  return {
    sourcesFolder: parts,
    sourceFiles,
    options: aptOptions(folder, parts),
    listsStamp: path.join(folder, 'fetched'),
  };
}

/** Fetches the lists of packages, unless those at hand are young enough. Whether it did. */
export async function updateLists(
  apt: Apt,
  context: StepContext,
  when: { readonly always: boolean },
): Promise<boolean> {
  const stamp = await fs.stat(apt.listsStamp).catch(() => undefined);
  if (!when.always && stamp !== undefined && Date.now() - stamp.mtimeMs < LISTS_AGE_MS_MAX) {
    return false;
  }
  context.onProgress(context.step, 'fetching lists of packages');
  await run('apt-get', [...apt.options, '-q', 'update'], context);
  await fs.writeFile(apt.listsStamp, '');
  return true;
}

/** The field `name` of the newest version of a package, from our lists. */
export async function packageField(
  apt: Apt,
  packageName: string,
  field: string,
  context: StepContext,
): Promise<string> {
  const parameters = [...apt.options, 'show', '--no-all-versions', packageName];
  const record = await run('apt-cache', parameters, context);
  const line = record.split('\n').find((candidate) => candidate.startsWith(`${field}: `));
  if (line === undefined) throw stepFailed(context, `package ${packageName} has no ${field}`);
  return line.slice(field.length + 2);
}

/** The suite itself and its updates; backports and proposed updates are nobody's default. */
export function ofSuite(suite: string): SuiteChoice {
  const kept = ['', '-updates', '-security', '/updates'].map((suffix) => suite + suffix);
  return (candidate) => (kept.includes(candidate) ? candidate : undefined);
}

/** The suite that these are the backports of, under their name. */
export function asBackports(backports: string): SuiteChoice {
  const suite = backports.slice(0, -BACKPORTS.length);
  return (candidate) => (candidate === suite ? backports : undefined);
}

export interface Narrowing {
  readonly choice: SuiteChoice;
  /** Debian's own archive, by its customary path: others have no backports. */
  readonly archiveOnly: boolean;
}

/** One-line sources (`deb [options] uri suite components`). */
export function narrowLines(content: string, { choice, archiveOnly }: Narrowing): string {
  const kept = content.split('\n').flatMap((line) => {
    const match = /^(\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+)(\S+)(\s.*)$/.exec(line);
    if (match === null) return [];
    const [, start, uri, candidate, components] = match as unknown as string[];
    if (archiveOnly && !isArchive(uri!, components!)) return [];
    const name = choice(candidate!);
    return name === undefined ? [] : [`${start}${name}${components}\n`];
  });
  return kept.join('');
}

/** deb822 sources (`Types: deb …`), their `Suites` narrowed. */
export function narrowStanzas(content: string, { choice, archiveOnly }: Narrowing): string {
  const narrowed: string[] = [];
  const lines = content.split('\n').filter((line) => !line.startsWith('#'));
  for (const stanza of lines.join('\n').split(/\n\s*\n/)) {
    // A line that begins with a blank goes on with the field before it.
    const fields = stanza.split(/\n(?=\S)/).map((field) => field.trimEnd());
    const fieldOf = (name: string) => {
      const field = fields.find((candidate) => candidate.toLowerCase().startsWith(`${name}:`));
      return (field ?? '').slice(name.length + 1).trim();
    };
    if (/^(no|false|off|without|disable|0)$/i.test(fieldOf('enabled'))) continue;
    if (!fieldOf('types').split(/\s+/).includes('deb')) continue;
    if (archiveOnly && !isArchive(fieldOf('uris'), fieldOf('components'))) continue;
    const suites = fieldOf('suites').split(/\s+/);
    const kept = suites.map(choice).filter((name) => name !== undefined);
    if (kept.length === 0) continue;
    const others = fields.filter(
      (field) => !/^(suites|types):/i.test(field) && field.trim() !== '',
    );
    narrowed.push(['Types: deb', `Suites: ${kept.join(' ')}`, ...others].join('\n'));
  }
  return narrowed.map((stanza) => `${stanza}\n`).join('\n');
}

function isArchive(uris: string, components: string): boolean {
  const isDebian = (uri: string) => /\/debian\/?$/.test(uri);
  return uris.split(/\s+/).every(isDebian) && components.trim().split(/\s+/).includes('main');
}

interface SourceFile {
  /** apt reads the form of a file from it. */
  readonly extension: '.sources' | '.list';
  readonly text: string;
}

function narrowAll(files: readonly SourceFile[], narrowing: Narrowing): SourceFile[] {
  return files
    .map(({ extension, text }): SourceFile => {
      const narrow = extension === '.sources' ? narrowStanzas : narrowLines;
      return { extension, text: narrow(text, narrowing) };
    })
    .filter(({ text }) => text !== '');
}

async function hostSourceFiles(context: StepContext): Promise<SourceFile[]> {
  const queries = ['list', 'Dir::Etc::sourcelist/f', 'parts', 'Dir::Etc::sourceparts/d'];
  const shown = await run('apt-config', ['shell', ...queries], context);
  const pathOf = (name: string) => new RegExp(`^${name}='(.*)'$`, 'm').exec(shown)?.[1] ?? '';
  const parts = pathOf('parts');
  const names = parts === '' ? [] : await fs.readdir(parts).catch(() => []);
  const inParts = names.filter((name) => /\.(list|sources)$/.test(name)).sort();
  const candidates = [pathOf('list'), ...inParts.map((name) => path.join(parts, name))];
  const found: SourceFile[] = [];
  for (const file of candidates) {
    const isFile = await fs.stat(file).then(
      (stat) => stat.isFile(),
      () => false,
    );
    if (!isFile) continue;
    const extension = file.endsWith('.sources') ? '.sources' : '.list';
    found.push({ extension, text: await fs.readFile(file, 'utf8') });
  }
  return found;
}

function aptOptions(folder: string, parts: string): string[] {
  const settings = [
    `Dir::State=${folder}`,
    `Dir::State::lists=${folder}/lists`,
    // Nothing counts as installed.
    `Dir::State::status=${folder}/status`,
    `Dir::Cache=${folder}/cache`,
    'Dir::Etc::SourceList=/dev/null',
    `Dir::Etc::SourceParts=${parts}`,
    'Acquire::Languages=none',
    // The user `_apt` can't enter the state folder, which is the agent's alone.
    'APT::Sandbox::User=root',
    // What desktops hook into `update` is no business of ours.
    'APT::Update::Post-Invoke-Success=',
    'APT::Update::Post-Invoke=',
  ];
  return settings.flatMap((setting) => ['-o', setting]);
}
