// The API's streams, as async iterables of server-sent events: a command's output, consoles and
// logs, changes, the progress of an image build. Called by the routes; `sse.ts` sends them.

import type { BuildProgress, BuildResult } from '@snowfork/sdk/api';
import type { AgentService, ByteFeed, ExecSession } from './service.js';
import {
  bytesEvent,
  EventQueue,
  eventQueue,
  FEED_QUEUE_BYTES_MAX,
  jsonEvent,
  type ServerEvent,
} from './sse.js';

/**
 * `started`, then `stdout` and `stderr` in the order of the guest, then `exit`; a command that was
 * killed because `signal` aborted ends with the error instead.
 */
export async function* execEvents(
  session: ExecSession,
  signal: AbortSignal,
): AsyncGenerator<ServerEvent> {
  yield jsonEvent('started', { exec: session.exec, pid: session.pid });
  for await (const event of session.events()) {
    if (signal.aborted) throw signal.reason;
    if (event.kind === 'exit') yield jsonEvent('exit', event.exit);
    else yield bytesEvent(event.kind, event.bytes);
  }
}

/** `output` for the bytes kept and, when `follow`, for those to come; then `end`. */
export async function* feedEvents(
  feed: ByteFeed,
  follow: boolean,
  signal: AbortSignal,
): AsyncGenerator<ServerEvent> {
  const queue = new EventQueue<Buffer | number>({
    costMax: FEED_QUEUE_BYTES_MAX,
    costOf: (item) => (typeof item === 'number' ? 0 : item.length),
    onDropped: (droppedBytes) => droppedBytes,
  });
  // In one tick, so that no byte is missed or sent twice between the past and the future.
  const { history } = feed;
  const unsubscribe = follow
    ? feed.subscribe((chunk) => (chunk === undefined ? queue.end() : queue.push(chunk)))
    : () => {};
  if (!follow) queue.end();
  const release = endOnAbort(queue, signal);
  try {
    if (history.length > 0) yield bytesEvent('output', history);
    for await (const item of queue) {
      if (typeof item === 'number') yield jsonEvent('dropped', { bytes: item });
      else yield bytesEvent('output', item);
    }
    yield jsonEvent('end', {});
  } finally {
    release();
    unsubscribe();
  }
}

/** `change` for each change from now on; `ready` first, so that a caller knows since when. */
export async function* watchEvents(
  service: AgentService,
  signal: AbortSignal,
): AsyncGenerator<ServerEvent> {
  const queue = eventQueue();
  const unsubscribe = service.watch((event) => queue.push(jsonEvent('change', event)));
  const release = endOnAbort(queue, signal);
  try {
    yield jsonEvent('ready', {});
    yield* queue;
  } finally {
    release();
    unsubscribe();
  }
}

/** `progress` for each step, then `done`. */
export async function* buildEvents(
  build: (onProgress: (progress: BuildProgress) => void) => Promise<BuildResult>,
): AsyncGenerator<ServerEvent> {
  const queue = eventQueue();
  build((progress) => queue.push(jsonEvent('progress', progress))).then(
    (result) => {
      queue.push(jsonEvent('done', result));
      queue.end();
    },
    (error: unknown) => queue.end(error),
  );
  yield* queue;
}

function endOnAbort(queue: { end(failure: unknown): void }, signal: AbortSignal): () => void {
  const onAbort = () => queue.end(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  if (signal.aborted) onAbort();
  return () => signal.removeEventListener('abort', onAbort);
}
