// `npm run soak [FILE …]`: the tests that repeat something (`test/support/soak.ts`), for hours.

import fs from 'node:fs';
import path from 'node:path';
import { root } from './setup.mjs';

process.env.SNOWFORK_SOAK = '1';
if (process.argv.length === 2) process.argv.push(...soaking());
await import('./test.mjs');

function soaking() {
  return ['test/unit', 'test/vm'].flatMap((folder) =>
    fs
      .readdirSync(path.join(root, folder))
      .map((name) => path.join(folder, name))
      .filter((file) => /support\/soak\.js/.test(fs.readFileSync(path.join(root, file), 'utf8'))),
  );
}
