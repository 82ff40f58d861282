// `npm start`: sets up what is missing, then runs the main job: a program inside a VM forks into
// eight clones (examples/01-parallel-map). Arguments are handed on to the example.

import path from 'node:path';
import { root, run, setUp } from './setup.mjs';

setUp();
const sf = path.join(root, 'packages/sdk/dist/cli/main.js');
run(process.execPath, [sf, 'image', 'build', 'node']);
const example = path.join(root, 'examples/dist/01-parallel-map/main.js');
run(process.execPath, [example, ...process.argv.slice(2)], { stdio: 'inherit' });
