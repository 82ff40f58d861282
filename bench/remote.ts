// `npm run bench -- remote`: what it costs to have pages on other hosts, on a network of this
// machine's own (`net-hosts.ts`). `docs/benchmarks.md` says what each figure means. The parts are in
// `remote/`, and they run one after another.

import { benchDelivery, checkDelivery, deliveryTable } from './remote/delivery.js';
import { benchForks, checkForks, forksTable } from './remote/forks.js';
import { benchFree, checkFree, freeTable } from './remote/free.js';
import { benchLatency, checkLatency, latencyTable } from './remote/latency.js';
import { benchMigration, checkMigration, migrationTable } from './remote/migration.js';
import { benchServer, checkServer, serverTable } from './remote/server.js';
import { benchWork, checkWork, workTable } from './remote/work.js';
import { part, runBench } from './support/run.js';

await runBench({
  bench: 'remote',
  sizesMib: [],
  parts: {
    latency: part(benchLatency, checkLatency, latencyTable),
    forks: part(benchForks, checkForks, forksTable),
    delivery: part(benchDelivery, checkDelivery, deliveryTable),
    free: part(benchFree, checkFree, freeTable),
    migration: part(benchMigration, checkMigration, migrationTable),
    server: part(benchServer, checkServer, serverTable),
    work: part(benchWork, checkWork, workTable),
  },
});
