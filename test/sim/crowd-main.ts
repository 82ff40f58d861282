// What the protocol itself costs in a crowd: `node crowd-main.js RECEIVERS PAGES` has so many receivers
// go through the same pages in the simulator and prints `CrowdCost` as JSON. The simulator's own time
// does not count, sealing and opening do. Run by `bench/remote/work.ts`.

import { LAYER } from './origin.js';
import type { Puller } from './puller.js';
import { pagesFrom, World } from './world.js';

export interface CrowdCost {
  readonly receivers: number;
  /** Processor time for each page that every receiver got. */
  readonly serverUsPerPage: number;
  /** Of one receiver. */
  readonly receiverUsPerPage: number;
  readonly requests: number;
  /** Of the origin, as a multiple of the pages'. */
  readonly bytesShare: number;
}

const JUMBO = 9000;
const PAGE_BYTES = 4096;
const START_MS = 5;
const LIMIT_MS = 600_000;

/** Adds up the time that calls of these methods take. */
class Stopwatch {
  ms = 0;

  watch<Name extends string>(
    object: { [Key in Name]: (...args: never[]) => unknown },
    names: readonly Name[],
  ): void {
    for (const name of names) {
      const call = object[name].bind(object) as (...args: never[]) => unknown;
      const timed = (...args: never[]): unknown => {
        const startedAt = performance.now();
        const result = call(...args);
        this.ms += performance.now() - startedAt;
        return result;
      };
      Object.defineProperty(object, name, { value: timed });
    }
  }
}

const [receivers, pageCount] = process.argv.slice(2).map(Number) as [number, number];
const world = new World({ seed: 1, pageCount, mtuBytes: JUMBO });
const [server, receiving, network] = [new Stopwatch(), new Stopwatch(), new Stopwatch()];
// It is within the calls of both, and much of it the server's: a datagram goes to everybody.
let ofServerMs = 0;
network.watch(world.network, ['send']);
world.server.advance = outsideNetwork(world.server.advance.bind(world.server));
server.watch(world.server, ['receive', 'advance']);
for (let count = 0; count < receivers; count++) {
  const puller = world.addReceiver();
  receiving.watch(puller.receiver, ['receive', 'advance']);
  world.clockwork.at(world.seeded.between(0, START_MS), () => start(puller));
}
world.runUntilAllHeld(LIMIT_MS);
const ofReceiversMs = receiving.ms - (network.ms - ofServerMs);
const cost: CrowdCost = {
  receivers,
  serverUsPerPage: ((server.ms - ofServerMs) * 1000) / pageCount,
  receiverUsPerPage: (ofReceiversMs * 1000) / pageCount / receivers,
  requests: world.server.counts.requests,
  bytesShare: world.serverHost.bytesSent / (pageCount * PAGE_BYTES),
};
process.stdout.write(JSON.stringify(cost));

function start(puller: Puller): void {
  puller.pull({ pages: pagesFrom(0, pageCount), atOnce: 2 });
  puller.receiver.prefetch(LAYER, 0, pageCount);
  world.poke(puller);
}

/** What of the network's time passes within it is told apart. */
function outsideNetwork(call: () => number): () => number {
  return () => {
    const before = network.ms;
    const nextMs = call();
    ofServerMs += network.ms - before;
    return nextMs;
  };
}
