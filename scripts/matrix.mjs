// `npm run matrix`: sets up what is missing and runs `test/matrix/main.ts` with the arguments.

import path from 'node:path';
import { root, run, setUp } from './setup.mjs';

setUp({ curl: 'curl', 'xz-utils': 'xz' });
const tsx = path.join(root, 'node_modules/tsx/dist/cli.mjs');
const main = path.join(root, 'test/matrix/main.ts');
run(process.execPath, [tsx, main, ...process.argv.slice(2)], { stdio: 'inherit' });
