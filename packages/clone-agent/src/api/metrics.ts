// What `sf stats` shows, as Prometheus reads it (text format 0.0.4). Made anew for each scrape: the
// numbers are counted where things happen, not here.

import type { HostStats, NetworkStats } from '@snowfork/sdk/api';
import { Counter, Gauge, Registry } from 'prom-client';

type Labels = Readonly<Record<string, string>>;

const MICROSECONDS_PER_SECOND = 1e6;
const MS_PER_SECOND = 1000;

export async function metricsText(stats: HostStats): Promise<string> {
  const metrics = new Metrics();
  addMemory(metrics, stats);
  addVms(metrics, stats);
  addSnapshots(metrics, stats);
  addPager(metrics, stats);
  addNetwork(metrics, stats);
  return (await metrics.text()) + faultLatency(stats);
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

function addVms(metrics: Metrics, { vms }: HostStats): void {
  for (const { vm, snapshot, pages, ...bytes } of vms) {
    const help = "Memory of a VM's QEMU: what it wrote, and what it shares with its siblings";
    const gauge = (kind: string, value: number) =>
      metrics.gauge('vm_memory_bytes', help, value, { vm, snapshot, kind });
    gauge('own', bytes.ownBytes);
    gauge('shared', bytes.sharedBytes);
    for (const [source, count] of Object.entries(pages)) {
      const brought = 'Pages that faults of a VM brought, by where they came from';
      metrics.counter('vm_pages', brought, count, { vm, snapshot, source });
    }
  }
}

function addSnapshots(metrics: Metrics, { snapshots }: HostStats): void {
  for (const { snapshot, pages } of snapshots) {
    for (const [name, count] of Object.entries(pages)) {
      const kind = name.replace(/Pages$/, '');
      const help = 'Pages of a snapshot, by what they were when it was frozen';
      metrics.gauge('snapshot_pages', help, count, { snapshot, kind });
    }
  }
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
}

/** A histogram whose buckets are counted elsewhere: the registry has none of that kind. */
function faultLatency({ pager: { latencyUsBuckets } }: HostStats): string {
  const name = 'snowfork_fault_latency_seconds';
  const lines = [
    `# HELP ${name} How long clones waited for the answer to a READ`,
    `# TYPE ${name} histogram`,
  ];
  let below = 0;
  for (const [power, count] of latencyUsBuckets.entries()) {
    below += count;
    // The last holds whatever took longer.
    const isLast = power === latencyUsBuckets.length - 1;
    const le = isLast ? '+Inf' : String(2 ** power / MICROSECONDS_PER_SECOND);
    lines.push(`${name}_bucket{le="${le}"} ${below}`);
  }
  lines.push(`${name}_count ${below}`);
  return `${lines.join('\n')}\n`;
}

function addNetwork(metrics: Metrics, { network }: HostStats): void {
  if (network === undefined) return;
  const { served, received, replicas } = network;
  metrics.gauge('replica_pages', 'Pages of other hosts that are kept', replicas.pages);
  metrics.counter('replica_pages_evicted', 'Of these, those that had to go', replicas.evicted);
  metrics.counter('datagrams_unknown', 'For no snapshot that is served', served.datagramsUnknown);
  metrics.counter('datagrams_unsent', 'The system would not send them', served.datagramsUnsent);
  for (const [snapshot, of] of Object.entries(served.snapshots)) addServed(metrics, snapshot, of);
  for (const of of received) addReceived(metrics, of);
}

type Served = NetworkStats['served']['snapshots'][string];

function addServed(metrics: Metrics, snapshot: string, of: Served): void {
  const labels = { snapshot };
  const count = (name: string, help: string, value: number, more: Labels = {}) =>
    metrics.counter(name, help, value, { ...labels, ...more });
  const sent = (kind: string, { bytes }: { bytes: number }) =>
    count('sent_bytes', 'Bytes of datagrams sent for pages', bytes, { kind });
  sent('group', of.sent.group);
  sent('unicast', of.sent.unicast);
  sent('signs_of_life', of.sent.signsOfLife);
  sent('probes', of.sent.probes);
  const { packed, ...pagesSent } = of.pagesSent;
  for (const [kind, pages] of Object.entries(pagesSent)) {
    count('pages_sent', 'Pages sent, by what they are', pages, { kind });
  }
  count('pages_sent_packed', 'Of those with data, those that were packed', packed);
  count('requests', 'Datagrams that ask for pages', of.requests);
  count('reports', 'Datagrams that say what came', of.reports);
  count('pages_asked', 'Pages that hosts asked for', of.pagesAsked);
  count('pages_suppressed', 'Asked for and on the way', of.pagesSuppressed);
  count('pages_refused', 'Not taken: a queue was full', of.pagesRefused);
  count('pages_end_game', 'Sent to one host, as others hardly lack them', of.pagesEndGame);
  count('receivers_refused', 'Requests of more hosts than are served', of.receiversRefused);
  metrics.gauge('receivers', 'Hosts that want pages', of.now.receivers, labels);
  metrics.gauge('group_receivers', 'Of these, members of the group', of.now.groupReceivers, labels);
  metrics.gauge('group_bytes_per_second', 'Pace', of.now.groupBytesPerSecond, labels);
  metrics.gauge('group_loss', 'Share of datagrams that is lost', of.now.groupLoss, labels);
  addDropped(metrics, 'server', snapshot, of.dropped);
}

function addReceived(metrics: Metrics, of: NetworkStats['received'][number]): void {
  const { host, snapshot, now } = of;
  const labels = { host, snapshot };
  const count = (name: string, help: string, value: number, more: Labels = {}) =>
    metrics.counter(name, help, value, { ...labels, ...more });
  for (const [kind, pages] of Object.entries(of.pages)) {
    count('pages_received', 'Pages that came from other hosts, by who wanted them', pages, {
      kind,
    });
  }
  count('pages_received_zero', 'Of these, those that are zero', of.zeroPages);
  for (const [kind, { bytes }] of Object.entries(of.received)) {
    count('received_bytes', 'Bytes of datagrams that came with pages', bytes, { kind });
  }
  const asking = { request: of.requestsSent, report: of.reportsSent };
  for (const [kind, { bytes }] of Object.entries(asking)) {
    count('asking_bytes', 'Bytes of datagrams sent to get pages', bytes, { kind });
  }
  count('pages_retried', 'Pages asked for again', of.pagesRetried);
  count(
    'pieces_duplicate',
    'Pieces of pages that came although they were here',
    of.duplicatePieces,
  );
  for (const [reason, pages] of Object.entries(of.pagesLost)) {
    count('pages_lost', 'Pages that did not come', pages, { reason });
  }
  count('demands_refused', 'Faults that had to be asked for later', of.demandsRefused);
  count('prefetch_runs_refused', 'Runs of prefetch that were too many', of.prefetchRunsRefused);
  count('assemblies_evicted', 'Pages in pieces that had to go', of.assembliesEvicted);
  count('assemblies_expired', 'Pages in pieces that were never whole', of.assembliesExpired);
  count('times_left_group', 'It was too slow for the group', of.timesLeftGroup);
  const roundTripSeconds = now.roundTripMs / MS_PER_SECOND;
  metrics.gauge('round_trip_seconds', 'From a request to its page', roundTripSeconds, labels);
  metrics.gauge('prefetch_window_pages', 'Asked for ahead', now.prefetchWindowPages, labels);
  const isUnicast = now.delivery === 'unicast' ? 1 : 0;
  metrics.gauge('is_unicast', '1: multicast does not reach this host', isUnicast, labels);
  addDropped(metrics, 'receiver', snapshot, of.dropped);
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
