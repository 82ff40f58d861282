// Counters of the memory server's two sides, as `sf stats` and `/metrics` show them. Plain numbers
// that only grow, but for those called `now`. Written by server and receiver, read by anybody.

import { DROP_REASONS, type DropReason } from './wire/sealing.js';

export type Dropped = Record<DropReason, number>;

/** What a side sent, or took. */
export interface Traffic {
  datagrams: number;
  bytes: number;
}

export function noneDropped(): Dropped {
  const dropped: Partial<Dropped> = {};
  for (const reason of DROP_REASONS) dropped[reason] = 0;
  return dropped as Dropped;
}

export function newServerCounts() {
  return {
    dropped: noneDropped(),
    requests: 0,
    reports: 0,
    pagesAsked: 0,
    /** Asked for while they waited to be sent, or were under way to the one that asked. */
    pagesSuppressed: 0,
    /** Not taken: a queue was full, or the receiver had its share of it. */
    pagesRefused: 0,
    receiversRefused: 0,
    /** Sent by unicast, because nobody else was likely to lack them. */
    pagesEndGame: 0,
    /** `packed`: so many of `data`. */
    pagesSent: { data: 0, zero: 0, absent: 0, packed: 0 },
    sent: { group: traffic(), unicast: traffic(), signsOfLife: traffic(), probes: traffic() },
    now: {
      receivers: 0,
      groupReceivers: 0,
      groupBytesPerSecond: 0,
      groupLoss: 0,
      groupBodyBytes: 0,
    },
  };
}
export type ServerCounts = ReturnType<typeof newServerCounts>;

export function newReceiverCounts() {
  return {
    dropped: noneDropped(),
    pages: { demand: 0, prefetch: 0, others: 0 },
    zeroPages: 0,
    /** Came although they were here. */
    duplicatePieces: 0,
    pagesLost: { timeout: 0, absent: 0 },
    pagesRetried: 0,
    demandsRefused: 0,
    prefetchRunsRefused: 0,
    /** Pages in reassembly that had to go for others, or were never completed. */
    assembliesEvicted: 0,
    assembliesExpired: 0,
    requestsSent: traffic(),
    reportsSent: traffic(),
    received: { group: traffic(), unicast: traffic() },
    /** Datagrams by which the server finds out what size comes whole. */
    probes: 0,
    timesLeftGroup: 0,
    now: { roundTripMs: 0, prefetchWindowPages: 0 },
  };
}
export type ReceiverCounts = ReturnType<typeof newReceiverCounts>;

export function countDatagram(traffic: Traffic, bytes: number): void {
  traffic.datagrams++;
  traffic.bytes += bytes;
}

function traffic(): Traffic {
  return { datagrams: 0, bytes: 0 };
}
