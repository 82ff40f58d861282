// Every block of TypeScript in the documentation compiles, against the packages as they are; every link
// inside the project leads somewhere.

import fs from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { compileTypeScript, pages, root } from '../support/snippets.js';

test('the TypeScript of the documentation compiles', () => {
  const folder = path.join(root, 'test/dist/snippets');
  const { status, stdout, snippets } = compileTypeScript(folder, { emit: false });
  expect(snippets.length).toBeGreaterThan(2);
  expect({ status, stdout }).toEqual({ status: 0, stdout: '' });
});

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
