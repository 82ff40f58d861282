// The OpenAPI document of the agent's API, made from the operations and the zod schemas that check
// them. Served at GET /v1/openapi.json, and written to `docs/reference/openapi.json` by
// `npx tsx packages/clone-agent/src/api/reference.ts`.

import { errorRegistry } from '@snowfork/sdk/api';
import { z } from 'zod';
import {
  type EventSchemas,
  type Operation,
  operations,
  type SchemaName,
  schemas,
} from './operations.js';

type Json = { [key: string]: unknown };

const COMPONENTS = '#/components/schemas/';
const DESCRIPTION = `fork() for virtual machines: the API of a host's agent, on the unix socket \`agent.sock\` of its
state folder. Times are milliseconds, sizes bytes. Unknown fields of a request are refused. Closing
the connection aborts what was asked. Streams are server-sent events, \`data\` JSON or base64; a
stream without its last event was cut off. docs/http.md has it all by curl.`;

/** Shapes of parameters that stand in paths. */
const pathParameters: Readonly<Record<string, Json>> = {
  id: { type: 'string', minLength: 1, maxLength: 64 },
  name: { type: 'string', pattern: '^[a-z0-9][a-z0-9._-]{0,62}$' },
  exec: { type: 'string', pattern: '^\\d{1,10}$', description: '`exec` of the event `started`' },
};

/** The document; `version` is the agent's. */
export function openApi(version: string): Json {
  const paths: Record<string, Json> = {};
  for (const operation of operations) {
    const path = operation.path.replaceAll(/:(\w+)/g, '{$1}');
    paths[path] = { ...paths[path], [operation.method.toLowerCase()]: describe(operation) };
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Snowfork agent',
      version,
      description: DESCRIPTION,
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [
      { url: 'http://agent', description: 'by the unix socket; the name is not looked up' },
    ],
    paths,
    components: { schemas: componentSchemas(), responses: { Error: errorResponse() } },
  };
}

function describe({
  id,
  path,
  summary,
  flags = {},
  body,
  bodyIsOptional,
  answer,
}: Operation): Json {
  const names = [...path.matchAll(/:(\w+)/g)].map(([, name]) => name!);
  const parameters: Json[] = names.map((name) => ({
    name,
    in: 'path',
    required: true,
    schema: pathParameters[name],
  }));
  for (const [name, description] of Object.entries(flags)) {
    const schema = { type: 'string', enum: ['0', '1'] };
    parameters.push({ name, in: 'query', description, schema });
  }
  const required = bodyIsOptional !== true;
  return {
    operationId: id,
    tags: [path.split('/')[2]!.replace('.json', '')],
    summary,
    ...(parameters.length === 0 ? {} : { parameters }),
    ...(body === undefined ? {} : { requestBody: { required, content: bodyContent(body) } }),
    responses: { ...answerOf(answer), default: { $ref: '#/components/responses/Error' } },
  };
}

function bodyContent(body: SchemaName | 'bytes'): Json {
  if (body === 'bytes') return { 'application/octet-stream': { schema: {} } };
  return { 'application/json': { schema: reference(body) } };
}

function answerOf(answer: Operation['answer']): Json {
  if (answer === 'nothing') return { 204: { description: 'done' } };
  if (answer === 'any') {
    return { 200: { description: 'the answer', content: { 'application/json': { schema: {} } } } };
  }
  if (typeof answer === 'object') return { 200: streamResponse(answer) };
  const content = { 'application/json': { schema: reference(answer) } };
  return { 200: { description: 'the answer', content } };
}

/** OpenAPI 3.1 has no words for events: their schemas stand in an extension, by the event's name. */
function streamResponse({ events }: EventSchemas): Json {
  const data = Object.entries(events).map(([event, schema]) => [
    event,
    schema === 'bytes' ? { type: 'string', contentEncoding: 'base64' } : reference(schema),
  ]);
  return {
    description: `server-sent events: ${Object.keys(events).join(', ')}`,
    content: {
      'text/event-stream': {
        schema: { type: 'string' },
        'x-event-data': Object.fromEntries(data),
      },
    },
  };
}

function errorResponse(): Json {
  const codes = Object.entries(errorRegistry).map(([code, { status }]) => `${status} ${code}`);
  return {
    description: `the registry of codes: ${codes.join(', ')}`,
    content: { 'application/json': { schema: reference('Error') } },
  };
}

function reference(name: SchemaName): Json {
  return { $ref: COMPONENTS + name };
}

function componentSchemas(): Json {
  const registry = z.registry<{ id: string }>();
  for (const [id, schema] of Object.entries(schemas)) registry.add(schema, { id });
  // As they go in: what comes out may have fields that this version does not know.
  const made = z.toJSONSchema(registry, { io: 'input', uri: (id) => COMPONENTS + id });
  return Object.fromEntries(
    Object.entries(made.schemas).map(([name, schema]) => [name, tidy(schema)]),
  );
}

/** Without what says nothing: the dialect on each, names twice, the bounds of a double. */
function tidy(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(tidy);
  if (typeof value !== 'object' || value === null) return value;
  const isNoise = ([key, item]: [string, unknown]) =>
    key === '$schema' || key === '$id' || Math.abs(Number(item)) === Number.MAX_SAFE_INTEGER;
  const kept = Object.entries(value).filter((entry) => !isNoise(entry));
  return Object.fromEntries(kept.map(([key, item]) => [key, tidy(item)]));
}
