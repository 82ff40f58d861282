// Every block of TypeScript in the documentation compiles, against the packages as they are; every link
// inside the project leads somewhere.

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { pages, root, type Snippet, snippetsOf } from '../support/snippets.js';

/** Below `test`, so that packages are found; ignored by git. */
const folder = path.join(root, 'test/dist/snippets');
const compilerOptions = {
  noEmit: true,
  composite: false,
  incremental: false,
  rootDir: root,
  // A snippet may show a value and do nothing with it, and name what its reader has.
  noUnusedLocals: false,
};

function moduleOf({ code, note }: Snippet): string {
  const given = note?.startsWith('given ') ? note.slice('given '.length) : '';
  // On the first line, so that the compiler's line numbers are the page's, less a constant.
  return `export {}; ${given}\n${code}\n`;
}

test('the TypeScript of the documentation compiles', () => {
  const snippets = pages()
    .flatMap(snippetsOf)
    .filter(({ language }) => language === 'ts');
  expect(snippets.length).toBeGreaterThan(2);
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(folder, { recursive: true });
  for (const snippet of snippets) {
    const name = `${snippet.page.replaceAll('/', '-')}-${snippet.line}.ts`;
    fs.writeFileSync(path.join(folder, name), moduleOf(snippet));
  }
  const config = { extends: path.join(root, 'tsconfig.base.json'), compilerOptions };
  fs.writeFileSync(path.join(folder, 'tsconfig.json'), JSON.stringify(config));
  const compiler = path.join(root, 'node_modules/.bin/tsc');
  const { status, stdout } = spawnSync(compiler, ['-p', folder], { cwd: folder, encoding: 'utf8' });
  expect({ status, stdout }).toEqual({ status: 0, stdout: '' });
}, 120_000);

test('the links of the documentation lead somewhere', () => {
  const links = pages().flatMap((page) => {
    const text = fs.readFileSync(path.join(root, page), 'utf8').replaceAll(/```.*?```/gs, '');
    return [...text.matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g)].map(([, target]) => ({ page, target }));
  });
  const inside = links.filter(({ target }) => !/^\w+:/.test(target!));
  expect(inside.length).toBeGreaterThan(10);
  const broken = inside.filter(
    ({ page, target }) => !fs.existsSync(path.join(root, path.dirname(page), target!)),
  );
  expect(broken).toEqual([]);
});
