// A file delivered by the programs that people use for it: udpcast and uftp, with the options that
// were fastest here. Neither encrypts; Snowfork does.

import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { NetHost } from '../support/agent-parts.js';
import type { Deliver } from './delivery-way.js';

/** Receivers of both say nothing when they listen. */
const LISTENING_MS = 500;
/** Of the link, of which both count most headers. */
const SHARE = 0.95;
const UFTP_BUFFER_BYTES = 4 * 1024 * 1024;
/** Of 1,500, with the headers. */
const UFTP_BLOCK_BYTES = 1400;
/** First, least and greatest of the round trips that it reckons with; by default seconds. */
const UFTP_ROUND_TRIP_S = '0.05:0.01:0.5';

export const deliverByUdpcast: Deliver = async ({ sender, receivers, folder, file, ...of }) => {
  const common = ['--interface', 'eth0', '--nokbd', '--no-progress'];
  const files = receivers.map(({ name }) => path.join(folder, name));
  const ends = receivers.map((host, index) =>
    ended(quietly(host, 'udp-receiver', ['--file', files[index]!, ...common])),
  );
  await delay(LISTENING_MS);
  const rate = ['--full-duplex', '--max-bitrate', String(of.linkBitsPerSecond * SHARE)];
  const args = ['--file', file, '--min-receivers', String(receivers.length), ...rate, ...common];
  const start = async (): Promise<void> => {
    await Promise.all([ended(quietly(sender, 'udp-sender', args)), ...ends]);
  };
  return { files, start };
};

export const deliverByUftp: Deliver = async ({ sender, receivers, folder, file, ...of }) => {
  const common = ['-I', 'eth0', '-B', String(UFTP_BUFFER_BYTES), '-x', '0'];
  for (const host of receivers) {
    const [into, partly] = [path.join(folder, host.name), path.join(folder, `${host.name}.new`)];
    fs.mkdirSync(into);
    fs.mkdirSync(partly);
    quietly(host, 'uftpd', ['-d', '-D', into, '-T', partly, ...common]);
  }
  await delay(LISTENING_MS);
  const rate = Math.round((of.linkBitsPerSecond / 1000) * SHARE);
  const timing = ['-R', String(rate), '-b', String(UFTP_BLOCK_BYTES), '-r', UFTP_ROUND_TRIP_S];
  const start = async (): Promise<void> => {
    await ended(quietly(sender, 'uftp', [...timing, ...common, file]));
  };
  return {
    files: receivers.map(({ name }) => path.join(folder, name, path.basename(file))),
    start,
  };
};

function quietly(host: NetHost, program: string, args: readonly string[]): ChildProcess {
  return host.spawn(program, args, { stdio: 'ignore' });
}

async function ended(child: ChildProcess): Promise<void> {
  const [code] = (await once(child, 'exit')) as [number | null];
  if (code !== 0) throw new Error(`${child.spawnargs.join(' ')} ended with ${code}`);
}
