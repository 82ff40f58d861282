// A cluster for tests, with the tests' images on the first host only (`net-cluster.ts`), and what its
// tests look at.

import { once } from 'node:events';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import {
  type Member,
  NetCluster,
  selfOf,
} from '../../packages/clone-agent/src/system/net-cluster.js';
import { testHost, testState } from './test-host.js';

export type ClusterHost = Member;
export type ClusterHosts = NetCluster;
export { selfOf };

/** So many hosts that know nothing of each other yet; the first has the image `minimal`. */
export async function openHosts(count: number, settings: object = {}): Promise<NetCluster> {
  return await NetCluster.open(await optionsOf(count, settings));
}

/** The same, as hosts of one cluster. */
export async function joinHosts(count: number, settings: object = {}): Promise<NetCluster> {
  return await NetCluster.join(await optionsOf(count, settings));
}

async function optionsOf(hosts: number, settings: object) {
  await (await testHost('minimal')).close();
  return { hosts, settings, imagesFrom: testState, parentFolder: path.dirname(testState) };
}

export function agentLog({ state }: ClusterHost): string {
  return fs.readFileSync(path.join(state, 'agent.log'), 'utf8');
}

/** As Prometheus gets them. */
export async function metricsOf({ state }: ClusterHost): Promise<{ status: number; text: string }> {
  const asked = http.get({ socketPath: path.join(state, 'agent.sock'), path: '/v1/metrics' });
  const [response] = (await once(asked, 'response')) as [http.IncomingMessage];
  return { status: response.statusCode ?? 0, text: await text(response) };
}

/** The process of a host that was started with these words. */
export function processOf({ state }: ClusterHost, program: string): number {
  for (const pid of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    let line: string;
    try {
      line = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8');
    } catch {
      continue;
    }
    if (line.includes(program) && line.includes(state)) return Number(pid);
  }
  throw new Error(`no process of ${state} is ${program}`);
}
