// What `sf stats` shows, as Prometheus reads it (text format 0.0.4). Made anew for each scrape: the
// numbers are counted where things happen, not here.

import type { HostStats } from '@snowfork/sdk/api';
import { Counter, Gauge, Registry } from 'prom-client';

type Labels = Readonly<Record<string, string>>;

/** Latency buckets are powers of two of a microsecond. */
const MICROSECONDS_PER_SECOND = 1e6;

export async function metricsText(stats: HostStats): Promise<string> {
  const metrics = new Metrics();
  addMemory(metrics, stats);
  addPager(metrics, stats);
  addNetwork(metrics, stats);
  return await metrics.text();
}

class Metrics {
  readonly #registry = new Registry();

  counter(name: string, help: string, value: number, labels: Labels = {}): void {
    const known = this.#registry.getSingleMetric(`snowfork_${name}_total`) as Counter | undefined;
    const labelNames = Object.keys(labels);
    const registers = [this.#registry];
    const metric =
      known ?? new Counter({ name: `snowfork_${name}_total`, help, labelNames, registers });
    metric.inc(labels, value);
  }

  gauge(name: string, help: string, value: number, labels: Labels = {}): void {
    const known = this.#registry.getSingleMetric(`snowfork_${name}`) as Gauge | undefined;
    const labelNames = Object.keys(labels);
    const registers = [this.#registry];
    const metric = known ?? new Gauge({ name: `snowfork_${name}`, help, labelNames, registers });
    metric.set(labels, value);
  }

  async text(): Promise<string> {
    return await this.#registry.metrics();
  }
}

function addMemory(metrics: Metrics, { memory, pool }: HostStats): void {
  for (const [kind, bytes] of Object.entries(memory)) {
    const name = kind.replace(/Bytes(Max)?$/, '$1').toLowerCase();
    metrics.gauge('memory_bytes', 'Memory of the host, by what it is for', bytes, { kind: name });
  }
  metrics.gauge('warm_pool_ready', 'QEMUs that wait for the next clone', pool.ready);
}

function addPager(metrics: Metrics, { pager }: HostStats): void {
  for (const { snapshot, object, ...of } of pager.objects) {
    const pages = (source: string, count: number) =>
      metrics.counter('pages', 'Pages that clones got, by where they came from', count, {
        ...{ snapshot, object, source },
      });
    pages('zero', of.zeroPages);
    pages('local', of.localPages);
    pages('replica', of.replicaPages - of.demandedPages);
    pages('demand', of.demandedPages);
    pages('pushed_zero', of.storedPages);
    pages('pushed_ahead', of.aheadPages);
    pages('pushed_replay', of.replayedPages);
    for (const [host, count] of Object.entries(of.dependsOn)) {
      const labels = { snapshot, object, host };
      metrics.gauge('pages_missing', 'Pages that only another host has', count, labels);
    }
  }
  let below = 0;
  for (const [power, count] of pager.latencyUsBuckets.entries()) {
    below += count;
    const le = String(2 ** (power + 1) / MICROSECONDS_PER_SECOND);
    metrics.counter('fault_latency_seconds_bucket', 'READs answered within le seconds', below, {
      le,
    });
  }
}

function addNetwork(metrics: Metrics, { network }: HostStats): void {
  if (network === undefined) return;
  const { served, received, replicas } = network;
  metrics.gauge('replica_pages', 'Pages of other hosts that are kept', replicas.pages);
  metrics.counter('replica_pages_evicted', 'Of these, those that had to go', replicas.evicted);
  for (const [snapshot, of] of Object.entries(served.snapshots)) {
    const sent = (kind: string, { bytes }: { bytes: number }) =>
      metrics.counter('sent_bytes', 'Bytes of datagrams sent for pages', bytes, { snapshot, kind });
    sent('group', of.sent.group);
    sent('unicast', of.sent.unicast);
    sent('signs_of_life', of.sent.signsOfLife);
    sent('probes', of.sent.probes);
    const labels = { snapshot };
    metrics.counter('pages_asked', 'Pages that hosts asked for', of.pagesAsked, labels);
    metrics.counter('pages_suppressed', 'Asked for and on the way', of.pagesSuppressed, labels);
    metrics.counter('pages_refused', 'Not taken: a queue was full', of.pagesRefused, labels);
    metrics.gauge('receivers', 'Hosts that want pages', of.now.receivers, labels);
    metrics.gauge('group_bytes_per_second', 'Pace', of.now.groupBytesPerSecond, labels);
    addDropped(metrics, 'server', snapshot, of.dropped);
  }
  for (const { host, snapshot, ...of } of received) {
    const labels = { host, snapshot };
    for (const [kind, count] of Object.entries(of.pages)) {
      const help = 'Pages that came from other hosts, by who wanted them';
      metrics.counter('pages_received', help, count, { ...labels, kind });
    }
    for (const [kind, { bytes }] of Object.entries(of.received)) {
      const help = 'Bytes of datagrams that came with pages';
      metrics.counter('received_bytes', help, bytes, { ...labels, kind });
    }
    metrics.counter('pages_retried', 'Pages asked for again', of.pagesRetried, labels);
    for (const [reason, count] of Object.entries(of.pagesLost)) {
      metrics.counter('pages_lost', 'Pages that did not come', count, { ...labels, reason });
    }
    addDropped(metrics, 'receiver', snapshot, of.dropped);
  }
}

function addDropped(
  metrics: Metrics,
  side: string,
  snapshot: string,
  dropped: Readonly<Record<string, number>>,
): void {
  for (const [reason, count] of Object.entries(dropped)) {
    const labels = { side, snapshot, reason };
    metrics.counter('datagrams_dropped', 'Datagrams that were none of ours', count, labels);
  }
}
