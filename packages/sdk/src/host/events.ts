// The reading side of server-sent events: chunks of bytes, cut anywhere, become events. Advancing
// the iterator is what reads on, so a slow consumer slows the sender. Called by the transport.

import { createParser } from 'eventsource-parser';
import { SnowforkError } from '../api/errors.js';

export interface StreamEvent {
  readonly event: string;
  readonly data: string;
}

/** An event longer than this ends the stream; the agent's longest is a console's history. */
export const EVENT_CHARACTERS_MAX = 16 * 1024 * 1024;

/** @throws SnowforkError SF_INTERNAL when an event is longer than EVENT_CHARACTERS_MAX. */
export async function* readEvents(
  chunks: AsyncIterable<Uint8Array>,
): AsyncGenerator<StreamEvent, void, undefined> {
  let parsed: StreamEvent[] = [];
  let failure: SnowforkError | undefined;
  const parser = createParser({
    maxBufferSize: EVENT_CHARACTERS_MAX,
    onEvent: ({ event, data }) => parsed.push({ event: event ?? 'message', data }),
    onError: (cause) => {
      if (cause.type !== 'max-buffer-size-exceeded') return;
      failure = new SnowforkError('SF_INTERNAL', 'the agent sent an event without end', { cause });
    },
  });
  const decoder = new TextDecoder();
  for await (const chunk of chunks) {
    parser.feed(decoder.decode(chunk, { stream: true }));
    if (failure !== undefined) throw failure;
    const ready = parsed;
    parsed = [];
    yield* ready;
  }
}
