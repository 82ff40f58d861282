// The entry of a serving thread: takes requests from the kernel and answers READs of objects that it
// knows, at once. Everything else it passes on to the main thread, and goes on. It never waits for
// another thread; the store thread may wait for it.

import { parentPort, workerData } from 'node:worker_threads';
import { Mailbox } from './board.js';
import { EarlyAsks } from './early-asks.js';
import { decodeHeader, decodeRead, FuseWireError, newRequestHeader, Opcode } from './fuse-wire.js';
import { LatencyHistogram } from './histogram.js';
import { Outcome, PageServer } from './page-server.js';
import { ServedObject } from './served-object.js';
import { FuseReplies, FuseSession } from './session.js';
import { StoreRequests } from './stores.js';
import { mapTakenRequests, TakenRequests } from './taken.js';
import type { ThreadData, ThreadWord } from './thread-data.js';

const data: ThreadData = workerData;
const say = (word: ThreadWord) => parentPort!.postMessage(word);

const taken = new TakenRequests(mapTakenRequests(data.runFolder), data.thread);
const server = new PageServer({
  replies: new FuseReplies(data.fuseDescriptor),
  stores: new StoreRequests(data.stores, data.thread),
  complain: (message) => say({ kind: 'complaint', message }),
});
const earlyAsks = new EarlyAsks();
const histogram = new LatencyHistogram(data.histogram, data.thread);
const mailbox = new Mailbox({
  memory: data.board,
  port: data.port,
  thread: data.thread,
  receive: (bulletin) => {
    if (bulletin.kind === 'object') {
      const { nodeid } = bulletin.object;
      server.objects.set(nodeid, new ServedObject(bulletin.object, data.thread));
    } else if (bulletin.kind === 'askable') {
      earlyAsks.know(bulletin.nodeid, bulletin.layers);
    } else if (bulletin.kind === 'drop') {
      for (const node of bulletin.nodes) {
        server.objects.delete(node);
        earlyAsks.forget(node);
      }
    }
  },
});

const header = newRequestHeader();
const wanted = { offset: 0, sizeBytes: 0 };

function serve(request: Buffer, lengthBytes: number): void {
  const startedMs = performance.now();
  let isAsked = false;
  mailbox.enter();
  try {
    decodeHeader(request, lengthBytes, header);
    if (header.opcode === Opcode.interrupt) return;
    if (header.opcode === Opcode.read) {
      decodeRead(request, lengthBytes, wanted);
      const outcome = server.read(header, wanted);
      if (outcome === Outcome.answered) {
        histogram.count(performance.now() - startedMs);
        return;
      }
      if (outcome === Outcome.wouldWait) {
        isAsked = earlyAsks.ask(server.objects.get(header.nodeid)!, wanted);
      }
    }
    const slot = taken.keep(header.opcode, lengthBytes);
    const copy = new Uint8Array(request.subarray(0, lengthBytes));
    const startedAt = performance.timeOrigin + startedMs;
    say({ kind: 'request', request: copy, startedAt, slot, isAsked });
  } catch (error) {
    if (!(error instanceof FuseWireError)) throw error;
    say({ kind: 'complaint', message: `a request that is none: ${error.message}` });
  } finally {
    taken.done();
    mailbox.leave();
  }
}

new FuseSession(data.fuseDescriptor, taken.current, serve).run();
say({ kind: 'gone' });
