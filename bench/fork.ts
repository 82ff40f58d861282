// `npm run bench -- fork`: what a fork costs, on real VMs of this machine, by an agent of the bench's
// own. `docs/benchmarks.md` says what each figure means. The parts are in `fork/`; each starts and
// ends its agent, and they run one after another.

import { aloneTable, benchAlone, checkAlone } from './fork/alone.js';
import { benchClones, checkClones, clonesTables } from './fork/clones.js';
import { benchFill, checkFill, fillTable } from './fork/fill.js';
import { benchMemory, checkMemory, memoryTable } from './fork/memory.js';
import { benchPause, checkPause, pauseTable } from './fork/pause.js';
import { part, runBench } from './support/run.js';

await runBench({
  bench: 'fork',
  parts: {
    pause: part(benchPause, checkPause, pauseTable),
    clones: part(benchClones, checkClones, clonesTables),
    memory: part(benchMemory, checkMemory, memoryTable),
    fill: part(benchFill, checkFill, fillTable),
    alone: part(benchAlone, checkAlone, aloneTable),
  },
});
