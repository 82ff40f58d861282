// How fast this host's link is, as its driver says. Reads `/sys/class/net`; knows no addresses but
// those that the interfaces have. Called for the memory server, which sends no faster.

import fs from 'node:fs';
import os from 'node:os';

const MEGABIT = 1e6;

/**
 * Of the interface with this IPv4 address, in bits per second.
 * @returns undefined where that is not known, as on most virtual links
 */
export function linkSpeed(address: string): number | undefined {
  const interfaces = Object.entries(os.networkInterfaces());
  const found = interfaces
    .flatMap(([name, addresses = []]) => addresses.map((each) => ({ ...each, name })))
    .find((each) => each.address === address);
  if (found === undefined) return undefined;
  const read = (file: string) => fs.readFileSync(`/sys/class/net/${found.name}/${file}`, 'utf8');
  try {
    // What is mounted there may be of another network namespace, with an interface of that name.
    if (read('address').trim() !== found.mac) return undefined;
    // 10000 on a veth, which is as fast as the machine; -1, or an error, where nobody knows.
    const megabits = Number(read('speed'));
    return megabits > 0 ? megabits * MEGABIT : undefined;
  } catch {
    return undefined;
  }
}
