// What crossed the network for pages, both ways, as `sf stats` and `/v1/metrics` show it. Numbers only
// grow, but for those called `now`.

import { z } from 'zod';

const count = z.number().nonnegative();
const traffic = z.object({ datagrams: count, bytes: count });
/** By reason: too short, forged, replayed and so on. */
const dropped = z.record(z.string(), count);

/** What this host's memory server did for one snapshot. */
export const serverCountsSchema = z.object({
  dropped,
  requests: count,
  reports: count,
  pagesAsked: count,
  /** Asked for while they waited to be sent, or were under way to the one that asked. */
  pagesSuppressed: count,
  /** Not taken: a queue was full, or the receiver had its share of it. */
  pagesRefused: count,
  receiversRefused: count,
  /** Sent by unicast, because nobody else was likely to lack them. */
  pagesEndGame: count,
  pagesSent: z.object({ data: count, zero: count, absent: count, packed: count }),
  sent: z.object({ group: traffic, unicast: traffic, signsOfLife: traffic, probes: traffic }),
  now: z.object({
    receivers: count,
    groupReceivers: count,
    groupBytesPerSecond: count,
    groupLoss: count,
    /** Room in its datagrams: a whole page fits where all hosts get large packets. */
    groupBodyBytes: count,
  }),
});

export const memoryServerStatsSchema = z.object({
  /** They name no snapshot that is served here, or are too short to. */
  datagramsUnknown: count,
  /** The system would not send them. */
  datagramsUnsent: count,
  snapshots: z.record(z.string(), serverCountsSchema),
});
export type MemoryServerStats = z.infer<typeof memoryServerStatsSchema>;

/** What came to this host of one snapshot of another. */
export const receivedStatsSchema = z.object({
  host: z.string(),
  snapshot: z.string(),
  /** Its pages come from this host now, which fetches them too: multicast does not reach here. */
  neighbour: z.string().optional(),
  dropped,
  /** `demand`: a clone waited for it; `others`: another host had asked for it. */
  pages: z.object({ demand: count, prefetch: count, others: count }),
  zeroPages: count,
  duplicatePieces: count,
  pagesLost: z.object({ timeout: count, absent: count }),
  pagesRetried: count,
  demandsRefused: count,
  prefetchRunsRefused: count,
  assembliesEvicted: count,
  assembliesExpired: count,
  requestsSent: traffic,
  reportsSent: traffic,
  received: z.object({ group: traffic, unicast: traffic }),
  /** Datagrams by which the memory server finds out what size comes whole. */
  probes: count,
  timesLeftGroup: count,
  now: z.object({
    roundTripMs: count,
    prefetchWindowPages: count,
    /** `unicast`: its multicast does not come here. */
    delivery: z.enum(['group', 'unicast']),
  }),
});
export type ReceivedStats = z.infer<typeof receivedStatsSchema>;

/** Pages of other hosts that are kept here, and those that had to go for newer ones. */
export const replicaStatsSchema = z.object({ pages: count, evicted: count });

export const networkStatsSchema = z.object({
  served: memoryServerStatsSchema,
  received: z.array(receivedStatsSchema),
  replicas: replicaStatsSchema,
});
export type NetworkStats = z.infer<typeof networkStatsSchema>;
