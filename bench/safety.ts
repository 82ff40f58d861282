// `npm run bench -- safety`: what it costs that a fork can be trusted, and how long deaths are felt, on
// real VMs of this machine, by an agent of the bench's own. `docs/benchmarks.md` says what each figure
// means. The parts are in `safety/`; each starts and ends its agent, and they run one after another.

import { adoptionTable, benchAdoption, checkAdoption } from './safety/adoption.js';
import { benchPager, checkPager, pagerTable } from './safety/pager.js';
import { benchRepair, checkRepair, repairTable } from './safety/repair.js';
import { benchRunning, checkRunning, runningTable } from './safety/running.js';
import { part, runBench } from './support/run.js';

await runBench({
  bench: 'safety',
  sizesMib: [256],
  parts: {
    repair: part(benchRepair, checkRepair, repairTable),
    pager: part(benchPager, checkPager, pagerTable),
    adoption: part(benchAdoption, checkAdoption, adoptionTable),
    running: part(benchRunning, checkRunning, runningTable),
  },
});
