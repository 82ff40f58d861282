// Server-sent events: one response per stream, made from an async iterable that is advanced only
// when the caller has taken what was sent, and a bounded queue between what cannot be slowed down
// (a console, changes, progress) and such a stream. Called by the routes alone.
//
//   event: stdout          a word of a-z
//   data: aGVsbG8K         base64 or JSON: never a line break, so one `data` line is enough
//   (empty line)

import { errorBody } from './request.js';

export interface ServerEvent {
  readonly event: string;
  readonly data: string;
}

/**
 * Bytes of a console or log that may wait for a slow reader; older ones are dropped and counted.
 */
export const FEED_QUEUE_BYTES_MAX = 1024 * 1024;
/** Changes, or steps of progress, that may wait for a slow reader. */
export const EVENT_QUEUE_MAX = 1024;

export function jsonEvent(event: string, data: unknown): ServerEvent {
  return { event, data: JSON.stringify(data) };
}

export function bytesEvent(event: string, bytes: Buffer): ServerEvent {
  return { event, data: bytes.toString('base64') };
}

/** Sends `events`; when they throw, the event `error` is the last one. */
export function eventResponse(events: AsyncIterable<ServerEvent>): Response {
  const iterator = events[Symbol.asyncIterator]();
  const stream = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const { done, value } = await iterator.next();
          if (done) controller.close();
          else controller.enqueue(encodeEvent(value));
        } catch (error) {
          controller.enqueue(encodeEvent(jsonEvent('error', errorBody(error))));
          controller.close();
        }
      },
      async cancel() {
        await iterator.return?.();
      },
    },
    // Nothing is fetched ahead: the source feels its reader.
    { highWaterMark: 0 },
  );
  const headers = { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' };
  return new Response(stream, { headers });
}

function encodeEvent({ event, data }: ServerEvent): Buffer {
  return Buffer.from(`event: ${event}\ndata: ${data}\n\n`, 'utf8');
}

/**
 * A queue whose writer never waits. Above `costMax` the oldest items are dropped, and the reader is
 * told how much was lost by `onDropped` before it gets the next one.
 */
export class EventQueue<T> implements AsyncIterable<T> {
  readonly #costMax: number;
  readonly #costOf: (item: T) => number;
  readonly #onDropped: (cost: number) => T;
  readonly #items: T[] = [];
  #cost = 0;
  #droppedCost = 0;
  #ended = false;
  #failure: unknown;
  #wake: (() => void) | undefined;

  constructor(options: {
    costMax: number;
    costOf: (item: T) => number;
    onDropped: (cost: number) => T;
  }) {
    this.#costMax = options.costMax;
    this.#costOf = options.costOf;
    this.#onDropped = options.onDropped;
  }

  push(item: T): void {
    if (this.#ended) return;
    this.#items.push(item);
    this.#cost += this.#costOf(item);
    while (this.#cost > this.#costMax && this.#items.length > 1) {
      const cost = this.#costOf(this.#items.shift()!);
      this.#cost -= cost;
      this.#droppedCost += cost;
    }
    this.#wake?.();
  }

  /** No more items: the reader gets what is left and then the end, or `failure`. */
  end(failure?: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#failure = failure;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    for (;;) {
      if (this.#droppedCost > 0) {
        const cost = this.#droppedCost;
        this.#droppedCost = 0;
        yield this.#onDropped(cost);
      }
      const item = this.#items.shift();
      if (item !== undefined) {
        this.#cost -= this.#costOf(item);
        yield item;
      } else if (this.#ended) {
        if (this.#failure !== undefined) throw this.#failure;
        return;
      } else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
    }
  }
}

/** A queue of ready-made events, each of cost 1; `dropped` says how many were lost. */
export function eventQueue(): EventQueue<ServerEvent> {
  return new EventQueue<ServerEvent>({
    costMax: EVENT_QUEUE_MAX,
    costOf: () => 1,
    onDropped: (count) => jsonEvent('dropped', { count }),
  });
}
