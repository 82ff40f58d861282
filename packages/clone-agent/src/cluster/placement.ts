// Which hosts get the clones of a ticket. Pure: from the room of each host to a number for each.

import { type Placing, SnowforkError } from '@snowfork/sdk/api';
import type { HostSlots } from './cluster-store.js';

/**
 * All of `asked`, or as many as there are slots. `spread` (the default): as evenly as there is room,
 * `here` first among equals. `pack`: on as few hosts as possible, `here` first, then those with the
 * least room that can take what is left, or else the most.
 * @throws SnowforkError SF_HOST_NOT_FOUND: `placing.hosts` names one that is not there.
 */
export function placeClones(of: {
  readonly asked: number;
  readonly hosts: readonly HostSlots[];
  readonly here: string;
  readonly placing: Placing;
}): HostSlots[] {
  const { asked, here, placing } = of;
  const candidates = choose(of.hosts, placing).filter(({ slots }) => slots > 0);
  candidates.sort((a, b) => Number(b.host === here) - Number(a.host === here) || order(a, b));
  const placed =
    placing.place === 'pack' ? pack(candidates, asked, here) : spread(candidates, asked);
  return placed.filter(({ slots }) => slots > 0);
}

function choose(hosts: readonly HostSlots[], { hosts: names }: Placing): HostSlots[] {
  if (names === undefined) return [...hosts];
  for (const name of names) {
    if (hosts.some(({ host }) => host === name)) continue;
    const known = hosts.map(({ host }) => host).join(', ') || 'none';
    throw new SnowforkError(
      'SF_HOST_NOT_FOUND',
      `no host ${name} takes clones now; the cluster has ${known}`,
    );
  }
  return hosts.filter(({ host }) => names.includes(host));
}

/** Rounds of one each, until all are placed or nobody has room. */
function spread(candidates: readonly HostSlots[], asked: number): HostSlots[] {
  const given = candidates.map(() => 0);
  for (let left = asked; left > 0; ) {
    const before = left;
    for (const [index, { slots }] of candidates.entries()) {
      if (left === 0 || given[index]! >= slots) continue;
      given[index]! += 1;
      left -= 1;
    }
    if (left === before) break;
  }
  return candidates.map(({ host }, index) => ({ host, slots: given[index]! }));
}

function pack(candidates: readonly HostSlots[], asked: number, here: string): HostSlots[] {
  const placed: HostSlots[] = [];
  const rest = [...candidates];
  for (let left = asked; left > 0 && rest.length > 0; ) {
    const own = rest.findIndex(({ host }) => host === here);
    const enough = rest.filter(({ slots }) => slots >= left).sort((a, b) => a.slots - b.slots)[0];
    const most = rest.reduce((a, b) => (b.slots > a.slots ? b : a));
    const chosen = own >= 0 ? rest[own]! : (enough ?? most);
    rest.splice(rest.indexOf(chosen), 1);
    const slots = Math.min(chosen.slots, left);
    placed.push({ host: chosen.host, slots });
    left -= slots;
  }
  return placed;
}

function order(a: HostSlots, b: HostSlots): number {
  return b.slots - a.slots || (a.host < b.host ? -1 : 1);
}
