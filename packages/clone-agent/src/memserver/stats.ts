// What the memory server's process says of itself (`counts.ts` there says what each number is), as
// the agent takes it. Only the form.

import { DROP_REASONS, type ServerCounts } from '@snowfork/memserver';
import { z } from 'zod';

const count = z.number().nonnegative();
const traffic = z.object({ datagrams: count, bytes: count });

const serverCountsSchema = z.object({
  dropped: z.record(z.enum(DROP_REASONS), count),
  requests: count,
  reports: count,
  pagesAsked: count,
  pagesSuppressed: count,
  pagesRefused: count,
  receiversRefused: count,
  pagesEndGame: count,
  pagesSent: z.object({ data: count, zero: count, absent: count }),
  sent: z.object({ group: traffic, unicast: traffic, signsOfLife: traffic }),
  now: z.object({
    receivers: count,
    groupReceivers: count,
    groupBytesPerSecond: count,
    groupLoss: count,
  }),
}) satisfies z.ZodType<ServerCounts>;

export const memoryServerStatsSchema = z.object({
  /** They name no snapshot that is served here, or are too short to. */
  datagramsUnknown: count,
  /** The system would not send them. */
  datagramsUnsent: count,
  snapshots: z.record(z.string(), serverCountsSchema),
});
export type MemoryServerStats = z.infer<typeof memoryServerStatsSchema>;

export const servedSchema = z.array(z.object({ snapshot: z.string(), layers: count }));
