// The `sf` command. Everything is in `run.ts`, so that tests and the reference can have it without
// a process.

import { run } from './run.js';

process.exitCode = await run(process.argv.slice(2));
