// The code blocks of the documentation, for tests that run or compile them. A comment right above a
// block, which readers do not see, says what it needs:
//
//   <!-- test: not run, REASON -->       it cannot be run by a test
//   <!-- test: in a VM of IMAGE -->      it is run in a guest
//   <!-- test: given CODE -->            TypeScript or Python that stands before it

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = path.resolve(fileURLToPath(import.meta.url), '../../..');

export interface Snippet {
  /** Path of the page in the project. */
  readonly page: string;
  /** Of the block's first line. */
  readonly line: number;
  readonly language: string;
  readonly code: string;
  /** What the comment above it says. */
  readonly note: string | undefined;
}

/** README.md and all of `docs`, without what is made by generators. */
export function pages(): string[] {
  const docs = fs.readdirSync(path.join(root, 'docs'), { recursive: true, encoding: 'utf8' });
  const written = docs.filter((file) => file.endsWith('.md') && file !== 'reference/cli.md');
  return ['README.md', ...written.map((file) => path.join('docs', file)).sort()];
}

export function snippetsOf(page: string): Snippet[] {
  const lines = fs.readFileSync(path.join(root, page), 'utf8').split('\n');
  const snippets: Snippet[] = [];
  for (let at = 0; at < lines.length; at++) {
    const language = /^```(\w+)$/.exec(lines[at]!)?.[1];
    if (language === undefined) continue;
    const end = lines.indexOf('```', at + 1);
    if (end === -1) throw new Error(`${page}:${at + 1}: the block has no end`);
    const note = /^<!-- test: (.*) -->$/.exec(lines[at - 1] ?? '')?.[1];
    const code = lines.slice(at + 1, end).join('\n');
    snippets.push({ page, line: at + 2, language, code, note });
    at = end;
  }
  return snippets;
}

/** All TypeScript of the documentation. */
export function typeScriptSnippets(): Snippet[] {
  return pages()
    .flatMap(snippetsOf)
    .filter(({ language }) => language === 'ts');
}

/**
 * Compiles them, against the packages as they are, in a folder below `test`, so that packages are
 * found. Returns what the compiler says, and, with `emit`, where each one's JavaScript is.
 */
export function compileTypeScript(folder: string, { emit }: { emit: boolean }) {
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(folder, { recursive: true });
  const snippets = typeScriptSnippets().map((snippet) => {
    const name = `${snippet.page.replaceAll('/', '-')}-${snippet.line}`;
    fs.writeFileSync(path.join(folder, `${name}.ts`), moduleOf(snippet));
    return { ...snippet, program: path.join(folder, 'out', `${name}.js`) };
  });
  const compilerOptions = {
    noEmit: !emit,
    outDir: path.join(folder, 'out'),
    composite: false,
    incremental: false,
    declaration: false,
    sourceMap: false,
    rootDir: folder,
    // A snippet may show a value and do nothing with it, and name what its reader has.
    noUnusedLocals: false,
  };
  const config = { extends: path.join(root, 'tsconfig.base.json'), compilerOptions };
  fs.writeFileSync(path.join(folder, 'tsconfig.json'), JSON.stringify(config));
  const compiler = path.join(root, 'node_modules/.bin/tsc');
  const { status, stdout } = spawnSync(compiler, ['-p', folder], { cwd: folder, encoding: 'utf8' });
  return { status, stdout, snippets };
}

function moduleOf({ code, note }: Snippet): string {
  const given = note?.startsWith('given ') ? note.slice('given '.length) : '';
  // On the first line, so that the compiler's line numbers are the page's, less a constant.
  return `export {}; ${given}\n${code}\n`;
}
