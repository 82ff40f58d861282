// Sequence numbers of a channel's datagrams: u32, begin with 1, and go round. Used by server and
// receiver.

/** No datagram has come yet. */
export const NO_SEQUENCE = 0;

export function nextSequence(sequence: number): number {
  return sequence === 0xffff_ffff ? 1 : sequence + 1;
}

/** How far `sequence` is ahead of `other`; negative when it is behind. */
export function aheadOf(sequence: number, other: number): number {
  return (sequence - other) | 0;
}
