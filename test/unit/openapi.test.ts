// The OpenAPI document: that it is current, that it has every route and no other, that nothing in it
// points nowhere, and that a request which its schemas refuse is refused by the agent.

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { openApi } from '../../packages/clone-agent/src/api/openapi.js';
import { operations } from '../../packages/clone-agent/src/api/operations.js';
import { buildRoutes } from '../../packages/clone-agent/src/api/routes.js';
import { FakeService } from '../support/fake-service.js';

const service = new FakeService();
const routes = buildRoutes(service, new AbortController().signal);
const { version } = service.info();
// biome-ignore lint/suspicious/noExplicitAny: the document is looked into as a reader would.
const document: any = openApi(version);

/** Every object below `value`, itself included. */
function* objectsOf(value: unknown): Generator<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null) return;
  if (!Array.isArray(value)) yield value as Record<string, unknown>;
  for (const item of Object.values(value)) yield* objectsOf(item);
}

describe('the OpenAPI document', () => {
  test('in docs/reference is the one that is served', async () => {
    const file = new URL('../../docs/reference/openapi.json', import.meta.url);
    expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual(document);
    const served = await routes.request('/v1/openapi.json');
    expect(await served.json()).toEqual(document);
  });

  test('has every route of the agent, and no other', () => {
    const served = routes.routes.map(({ method, path }) => `${method} ${path}`);
    const described = operations.map(({ method, path }) => `${method} ${path}`);
    expect(described.sort()).toEqual(served.sort());
    const inDocument = Object.values(document.paths as object).flatMap((item) => Object.keys(item));
    expect(inDocument).toHaveLength(served.length);
  });

  test('names each operation once', () => {
    const ids = operations.map(({ id }) => id);
    expect(new Set(ids).size).toBe(ids.length);
  });

  test('has all that its references point to, and nothing that none points to', () => {
    const references = [...objectsOf(document)].flatMap(({ $ref }) => ($ref ? [String($ref)] : []));
    const schemas = Object.keys(document.components.schemas);
    const pointedTo = references
      .filter((reference) => reference.startsWith('#/components/schemas/'))
      .map((reference) => reference.split('/').at(-1));
    expect(schemas.filter((name) => !pointedTo.includes(name))).toEqual([]);
    expect(pointedTo.filter((name) => !schemas.includes(name!))).toEqual([]);
    expect(references).toContain('#/components/responses/Error');
    expect(document.components.responses.Error).toBeDefined();
  });

  test('describes each parameter of a path', () => {
    for (const [path, item] of Object.entries<Record<string, unknown>>(document.paths)) {
      const names = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name);
      for (const operation of Object.values(item)) {
        const { parameters = [] } = operation as {
          parameters?: { name: string; in: string; schema: unknown }[];
        };
        const inPath = parameters.filter((parameter) => parameter.in === 'path');
        expect(inPath.map(({ name }) => name)).toEqual(names);
        for (const { schema } of inPath) expect(schema).toMatchObject({ type: 'string' });
      }
    }
  });

  test('says of requests that unknown fields are refused', () => {
    for (const { body } of operations) {
      if (body === undefined || body === 'bytes') continue;
      const schema = document.components.schemas[body];
      expect({ body, additionalProperties: schema.additionalProperties }).toEqual({
        body,
        additionalProperties: false,
      });
    }
  });
});
