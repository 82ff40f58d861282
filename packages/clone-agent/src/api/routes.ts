// Every route of the agent's API: check what is asked, ask the service, present its answer. No
// state and no knowledge of VMs. `server.ts` serves it; `docs/reference/api.md` documents it.

import type { HttpBindings } from '@hono/node-server';
import {
  buildRequestSchema,
  clusterInitRequestSchema,
  clusterJoinRequestSchema,
  execRequestSchema,
  forkRequestSchema,
  imageNameSchema,
  joinRequestSchema,
  launchRequestSchema,
  SnowforkError,
  signalRequestSchema,
  tokenRequestSchema,
} from '@snowfork/sdk/api';
import { Hono } from 'hono';
import { z } from 'zod';
import { metricsText } from './metrics.js';
import { openApi } from './openapi.js';
import { presentEnd, presentFork, presentSlot, presentVm } from './present.js';
import {
  type AgentContext,
  bodyChunks,
  CONSOLE_BODY_BYTES_MAX,
  callerSignal,
  errorResponse,
  parseBody,
  parseInput,
  readBody,
} from './request.js';
import type { AgentService } from './service.js';
import { eventResponse } from './sse.js';
import { buildEvents, execEvents, feedEvents, watchEvents } from './streams.js';

type Routes = Hono<{ Bindings: HttpBindings }>;

const idSchema = z.string().min(1).max(64);
const execIdSchema = z.string().regex(/^\d{1,10}$/, { error: 'the id of a command is a number' });
const flagSchema = z.enum(['0', '1']).optional();

/** The API of `service`. `closing` aborts what waits when the server closes. */
export function buildRoutes(service: AgentService, closing: AbortSignal): Routes {
  const routes: Routes = new Hono<{ Bindings: HttpBindings }>();
  routes.onError((error) => errorResponse(error));
  routes.notFound((context) => {
    const { method, path } = context.req;
    return errorResponse(new SnowforkError('SF_BAD_REQUEST', `no route ${method} ${path}`));
  });
  addHost(routes, service, closing);
  addImages(routes, service, closing);
  addVms(routes, service, closing);
  addCluster(routes, service, closing);
  addMetrics(routes, service);
  addExecs(routes, service, closing);
  addFeeds(routes, service, closing);
  addSnapshots(routes, service, closing);
  addTickets(routes, service, closing);
  return routes;
}

function addHost(routes: Routes, service: AgentService, closing: AbortSignal): void {
  routes.get('/v1/host', (context) => context.json(service.info()));
  routes.delete('/v1/host', async (context) => {
    await service.shutDown();
    return context.body(null, 204);
  });
  routes.get('/v1/stats', async (context) => context.json(await service.stats()));
  routes.get('/v1/doctor', async (context) => context.json(await service.doctor()));
  routes.get('/v1/openapi.json', (context) => context.json(openApi(service.info().version)));
  routes.get('/v1/events', (context) =>
    eventResponse(watchEvents(service, callerSignal(context, closing))),
  );
}

function addImages(routes: Routes, service: AgentService, closing: AbortSignal): void {
  routes.get('/v1/images', (context) => context.json({ images: service.images() }));
  routes.post('/v1/images', async (context) => {
    const signal = callerSignal(context, closing);
    const request = await parseBody(context, buildRequestSchema);
    return eventResponse(
      buildEvents((onProgress) => service.buildImage(request, onProgress, signal)),
    );
  });
  routes.delete('/v1/images/:name', async (context) => {
    await service.removeImage(parseInput(imageNameSchema, context.req.param('name')));
    return context.body(null, 204);
  });
}

function addMetrics(routes: Routes, service: AgentService): void {
  routes.get('/v1/metrics', async (context) => {
    const text = await metricsText(await service.stats());
    return context.body(text, 200, { 'content-type': 'text/plain; version=0.0.4' });
  });
}

function addCluster(routes: Routes, { cluster }: AgentService, closing: AbortSignal): void {
  routes.get('/v1/cluster', (context) => context.json(cluster.info()));
  routes.post('/v1/cluster', async (context) => {
    const request = await parseBody(context, clusterInitRequestSchema);
    return context.json(await cluster.init(request));
  });
  routes.post('/v1/cluster/join', async (context) => {
    const request = await parseBody(context, clusterJoinRequestSchema);
    return context.json(await cluster.join(request));
  });
  routes.post('/v1/cluster/tokens', async (context) => {
    const { ttlMs } = await parseBody(context, tokenRequestSchema);
    return context.json(cluster.newToken(ttlMs));
  });
  routes.get('/v1/hosts', (context) => context.json({ hosts: cluster.hosts() }));
  routes.delete('/v1/hosts/:id', async (context) => {
    await cluster.removeHost(id(context));
    return context.body(null, 204);
  });
  routes.post('/v1/hosts/:id/drain', async (context) => {
    await cluster.drainHost(id(context), callerSignal(context, closing));
    return context.body(null, 204);
  });
}

function addVms(routes: Routes, service: AgentService, closing: AbortSignal): void {
  routes.get('/v1/vms', async (context) => {
    const vms = await service.vms(flag(context, 'all', false));
    return context.json({ vms: vms.map(presentVm) });
  });
  routes.post('/v1/vms', async (context) => {
    const signal = callerSignal(context, closing);
    const request = await parseBody(context, launchRequestSchema);
    return context.json(presentVm(await service.launch(request, signal)));
  });
  routes.get('/v1/vms/:id', (context) => context.json(presentVm(service.vm(id(context)))));
  routes.delete('/v1/vms/:id', async (context) => {
    await service.kill(id(context), 'a caller of the API ended it');
    return context.body(null, 204);
  });
  routes.get('/v1/vms/:id/stats', async (context) =>
    context.json(await service.vmStats(id(context))),
  );
  routes.post('/v1/vms/:id/fork', async (context) => {
    const signal = callerSignal(context, closing);
    const request = await parseBody(context, forkRequestSchema);
    return context.json(presentFork(await service.fork(id(context), request, signal)));
  });
  routes.post('/v1/vms/:id/checkpoint', async (context) => {
    const signal = callerSignal(context, closing);
    return context.json(await service.checkpoint(id(context), signal));
  });
  routes.post('/v1/vms/:id/detach', async (context) => {
    const signal = callerSignal(context, closing);
    return context.json(await service.detach(id(context), signal));
  });
  routes.post('/v1/vms/:id/wait', async (context) => {
    const signal = callerSignal(context, closing);
    return context.json(presentEnd(await service.wait(id(context), signal)));
  });
}

function addExecs(routes: Routes, service: AgentService, closing: AbortSignal): void {
  const session = (context: AgentContext) => {
    const exec = Number(parseInput(execIdSchema, context.req.param('exec')));
    return service.execSession(id(context), exec);
  };
  routes.post('/v1/vms/:id/exec', async (context) => {
    const signal = callerSignal(context, closing);
    const request = await parseBody(context, execRequestSchema);
    const started = await service.exec(id(context), request, signal);
    return eventResponse(execEvents(started, signal));
  });
  routes.post('/v1/vms/:id/execs/:exec/stdin', async (context) => {
    const command = session(context);
    for await (const chunk of bodyChunks(context)) await command.writeStdin(chunk);
    return context.body(null, 204);
  });
  routes.delete('/v1/vms/:id/execs/:exec/stdin', (context) => {
    session(context).closeStdin();
    return context.body(null, 204);
  });
  routes.post('/v1/vms/:id/execs/:exec/signal', async (context) => {
    const { signal } = await parseBody(context, signalRequestSchema);
    session(context).signal(signal);
    return context.body(null, 204);
  });
}

function addFeeds(routes: Routes, service: AgentService, closing: AbortSignal): void {
  routes.get('/v1/vms/:id/console', (context) => {
    const feed = service.console(id(context));
    const follow = flag(context, 'follow', true);
    return eventResponse(feedEvents(feed, follow, callerSignal(context, closing)));
  });
  routes.post('/v1/vms/:id/console', async (context) => {
    service.writeConsole(id(context), await readBody(context, CONSOLE_BODY_BYTES_MAX));
    return context.body(null, 204);
  });
  routes.get('/v1/vms/:id/logs', (context) => {
    const feed = service.logs(id(context));
    const follow = flag(context, 'follow', true);
    return eventResponse(feedEvents(feed, follow, callerSignal(context, closing)));
  });
}

function addSnapshots(routes: Routes, service: AgentService, closing: AbortSignal): void {
  routes.get('/v1/snapshots', (context) => context.json({ snapshots: service.snapshots() }));
  routes.delete('/v1/snapshots/:id', async (context) => {
    await service.removeSnapshot(id(context));
    return context.body(null, 204);
  });
  routes.post('/v1/snapshots/:id/clones', async (context) => {
    const signal = callerSignal(context, closing);
    const request = await parseBody(context, forkRequestSchema);
    return context.json(presentFork(await service.createClones(id(context), request, signal)));
  });
}

function addTickets(routes: Routes, service: AgentService, closing: AbortSignal): void {
  routes.post('/v1/tickets/:id/join', async (context) => {
    const signal = callerSignal(context, closing);
    const { timeoutMs } = await parseBody(context, joinRequestSchema);
    const slots = await service.join(id(context), timeoutMs, signal);
    return context.json({ slots: slots.map(presentSlot) });
  });
  routes.delete('/v1/tickets/:id', async (context) => {
    await service.killTicket(id(context));
    return context.body(null, 204);
  });
}

function id(context: AgentContext): string {
  return parseInput(idSchema, context.req.param('id'));
}

function flag(context: AgentContext, name: string, otherwise: boolean): boolean {
  const value = parseInput(z.object({ [name]: flagSchema }), { [name]: context.req.query(name) });
  return value[name] === undefined ? otherwise : value[name] === '1';
}
