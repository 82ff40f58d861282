// `/v1/metrics`: that every number of `sf stats --json` is there too, and that the text is what
// Prometheus reads.

import {
  newReceiverCounts,
  newServerCounts,
  type ReceiverCounts,
  type ServerCounts,
} from '@snowfork/memserver';
import { networkStatsSchema } from '@snowfork/sdk/api';
import { describe, expect, test } from 'vitest';
import { metricsText } from '../../packages/clone-agent/src/api/metrics.js';
import { FakeService } from '../support/fake-service.js';

/** What is shown for people's sake, or said by another number. */
const NOT_SHOWN = [/\.datagrams$/, /received\.0\.probes$/, /now\.groupBodyBytes$/];

/** Another number in each place that has one, so that each can be found. */
let next = 1000;
function numbered<T>(value: T): T {
  if (typeof value === 'number') return next++ as T;
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, of]) => [key, numbered(of)])) as T;
}

function* numbersOf(value: unknown, path: string): Generator<[string, number]> {
  if (typeof value === 'number') yield [path, value];
  if (typeof value !== 'object' || value === null) return;
  for (const [key, of] of Object.entries(value)) yield* numbersOf(of, `${path}.${key}`);
}

const served: ServerCounts = numbered(newServerCounts());
const received: ReceiverCounts = numbered(newReceiverCounts());
const network = networkStatsSchema.parse({
  served: { datagramsUnknown: 501, datagramsUnsent: 502, snapshots: { s9: served } },
  received: [
    { host: 'alpha', snapshot: 's1', ...received, now: { ...received.now, delivery: 'unicast' } },
  ],
  replicas: { pages: 503, evicted: 504 },
});
const stats = { ...(await new FakeService().stats()), network };
const text = await metricsText(stats);

/** The samples, without comments. */
const values = text
  .split('\n')
  .filter((line) => line !== '' && !line.startsWith('#'))
  .map((line) => Number(line.slice(line.lastIndexOf(' ') + 1)));

describe('the metrics', () => {
  test('have every number of the network, of both sides', () => {
    const shown = (path: string) => !NOT_SHOWN.some((pattern) => pattern.test(path));
    const missing = [...numbersOf(network, 'network')]
      .filter(([path]) => shown(path))
      // Seconds, as Prometheus wants them.
      .map(([path, value]) => [path, path.endsWith('Ms') ? value / 1000 : value] as const)
      .filter(([, value]) => !values.includes(value));
    expect(missing).toEqual([]);
  });

  test('tell what each clone has of its own, and what it shares', () => {
    expect(text).toContain(
      'snowfork_vm_memory_bytes{vm="vm1",snapshot="s1",kind="own"} 11000000\n',
    );
    expect(text).toContain('snowfork_vm_pages_total{vm="vm1",snapshot="s1",source="demand"} 4\n');
    expect(text).toContain('{vm="vm1",snapshot="s1",kind="shared"} 22000000\n');
  });

  test('tell free pages from those that are zero, by snapshot', () => {
    expect(text).toContain('snowfork_snapshot_pages{snapshot="s1",kind="free"} 50000\n');
    expect(text).toContain('snowfork_snapshot_pages{snapshot="s1",kind="zero"} 5\n');
  });

  test('tell where pages came from, by snapshot and object', () => {
    const sources = [
      ...text.matchAll(/^snowfork_pages_total\{snapshot="s1",object="ram",source="(\w+)"/gm),
    ];
    expect(sources.map(([, source]) => source)).toEqual([
      'zero',
      'local',
      'replica',
      'demand',
      'pushed_zero',
      'pushed_ahead',
      'pushed_replay',
    ]);
  });

  test('have how long faults took as a histogram, each bucket with those below it', () => {
    const lines = text.split('\n').filter((line) => line.includes('fault_latency'));
    expect(lines.slice(1)).toEqual([
      '# TYPE snowfork_fault_latency_seconds histogram',
      'snowfork_fault_latency_seconds_bucket{le="0.000001"} 0',
      'snowfork_fault_latency_seconds_bucket{le="0.000002"} 1',
      'snowfork_fault_latency_seconds_bucket{le="+Inf"} 3',
      'snowfork_fault_latency_seconds_count 3',
    ]);
  });
});
