// The edge where requests come in: bodies and parameters are bounded and checked here, and every
// error becomes the one form that the API knows. Called by the routes alone.

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { HttpBindings } from '@hono/node-server';
import { errorRegistry, SnowforkError } from '@snowfork/sdk/api';
import type { Context } from 'hono';
import { z } from 'zod';

export type AgentContext = Context<{ Bindings: HttpBindings }>;

/** A JSON body; the largest is a command with its environment. */
export const JSON_BODY_BYTES_MAX = 1024 * 1024;
/** What one request may type into a console. */
export const CONSOLE_BODY_BYTES_MAX = 1024 * 1024;

/** `input` as the schema has it. @throws SnowforkError SF_BAD_REQUEST that names the field. */
export function parseInput<S extends z.ZodType>(schema: S, input: unknown): z.output<S> {
  const parsed = schema.safeParse(input);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.map((issue) => ({
    field: z.core.toDotPath(issue.path),
    message: issue.message,
  }));
  const words = issues.map(({ field, message }) =>
    field === '' ? message : `${field}: ${message}`,
  );
  throw new SnowforkError('SF_BAD_REQUEST', words.join('; '), { details: { issues } });
}

/** The JSON body as the schema has it; no body counts as `{}`. */
export async function parseBody<S extends z.ZodType>(
  context: AgentContext,
  schema: S,
): Promise<z.output<S>> {
  const body = await readBody(context, JSON_BODY_BYTES_MAX);
  let json: unknown = {};
  if (body.length > 0) {
    try {
      json = JSON.parse(body.toString('utf8'));
    } catch (cause) {
      throw new SnowforkError('SF_BAD_REQUEST', 'the body is no JSON', { cause });
    }
  }
  return parseInput(schema, json);
}

/** The whole body. @throws SnowforkError SF_BAD_REQUEST above `bytesMax`. */
export async function readBody(context: AgentContext, bytesMax: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of bodyChunks(context)) {
    sizeBytes += chunk.length;
    if (sizeBytes > bytesMax) {
      throw new SnowforkError('SF_BAD_REQUEST', `the body is longer than ${bytesMax} bytes`);
    }
    chunks.push(chunk);
  }
  return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
}

/** The body as it comes. Leaving early keeps the connection, so that an error can be answered. */
export function bodyChunks(context: AgentContext): AsyncIterable<Buffer> {
  const incoming: IncomingMessage = context.env.incoming;
  return { [Symbol.asyncIterator]: () => incoming.iterator({ destroyOnReturn: false }) };
}

/** Aborts when the caller closes the connection before the answer is out, or the server closes. */
export function callerSignal(context: AgentContext, closing: AbortSignal): AbortSignal {
  const outgoing: ServerResponse = context.env.outgoing;
  const controller = new AbortController();
  const onClosing = () => controller.abort(closing.reason);
  closing.addEventListener('abort', onClosing, { once: true });
  outgoing.once('close', () => {
    closing.removeEventListener('abort', onClosing);
    if (outgoing.writableFinished) return;
    controller.abort(new SnowforkError('SF_ABORTED', 'the caller closed the connection'));
  });
  if (closing.aborted) onClosing();
  return controller.signal;
}

/** `{ error: { code, message, details } }`, for answers and for the event `error` alike. */
export function errorBody(error: unknown): { error: ReturnType<SnowforkError['toJSON']> } {
  return { error: SnowforkError.from(error).toJSON() };
}

export function errorResponse(error: unknown): Response {
  const ours = SnowforkError.from(error);
  return new Response(JSON.stringify(errorBody(ours)), {
    status: errorRegistry[ours.code].status,
    headers: { 'content-type': 'application/json' },
  });
}
