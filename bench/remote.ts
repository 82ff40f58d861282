// `npm run bench -- remote`: what it costs to have pages on other hosts, on a network of this
// machine's own (`net-hosts.ts`). `docs/benchmarks.md` says what each figure means. The parts are in
// `remote/`, and they run one after another.

import { benchDelivery, checkDelivery, deliveryTable } from './remote/delivery.js';
import { benchFloor, checkFloor, floorTable } from './remote/floor.js';
import { benchMigration, checkMigration, migrationTable } from './remote/migration.js';
import { part, runBench } from './support/run.js';

await runBench({
  bench: 'remote',
  sizesMib: [],
  parts: {
    floor: part(benchFloor, checkFloor, floorTable),
    delivery: part(benchDelivery, checkDelivery, deliveryTable),
    migration: part(benchMigration, checkMigration, migrationTable),
  },
});
