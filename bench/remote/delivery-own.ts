// A file delivered by Snowfork: one memory server has it as a layer, and receivers prefetch all of
// it.

import path from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { PAGE_BYTES } from '@snowfork/memserver';
import { processorTimes, processorUse } from '../support/machine.js';
import type { DeliverOptions } from './delivery-way.js';
import { type Served, serveFile, spoken } from './memory-server.js';

const RECEIVER_MAIN = fileURLToPath(new URL('./receiver-main.js', import.meta.url));

/** What a receiver is asked for. */
export interface Wanted {
  readonly localAddress: string;
  readonly origin: Served;
  /** Where the pages go. */
  readonly file: string;
  readonly pageCount: number;
}

/** What a receiver says when it has all of it. */
export interface Received {
  /** Of all its threads, since the first page was asked for. */
  readonly processorUs: number;
  /** Of that, in system calls. */
  readonly systemUs: number;
}

/** Besides, `start` says what it cost. */
export async function deliverByMemoryServer(of: DeliverOptions) {
  const { sender, receivers, folder, file, fileBytes, linkBitsPerSecond } = of;
  const linkBytesPerSecond = linkBitsPerSecond / 8;
  const { served: origin, pid } = await serveFile(sender, { folder, file, linkBytesPerSecond });
  const files = receivers.map(({ name }) => path.join(folder, name));
  const pageCount = fileBytes / PAGE_BYTES;
  const children = receivers.map((host, index) => {
    const wanted: Wanted = { localAddress: host.address, origin, file: files[index]!, pageCount };
    const args = [RECEIVER_MAIN, JSON.stringify(wanted)];
    return host.spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  });
  await Promise.all(children.map(spoken));
  const start = async () => {
    const serverUs = (): number => processorUse(pid).processMs * 1000;
    const before = serverUs();
    const timesBefore = processorTimes(pid);
    const ended = children.map(async (child) => {
      child.stdin!.write('go\n');
      const said = await text(child.stdout!);
      if (said === '') throw new Error('a receiver has died');
      return JSON.parse(said) as Received;
    });
    const received = await Promise.all(ended);
    const serverUsPerPage = (serverUs() - before) / pageCount;
    const times = processorTimes(pid);
    const systemTicks = times.systemTicks - timesBefore.systemTicks;
    const userTicks = times.userTicks - timesBefore.userTicks;
    return {
      serverUsPerPage,
      serverSystemPart: systemTicks / Math.max(1, systemTicks + userTicks),
      receiverUsPerPage: received.map(({ processorUs }) => processorUs / pageCount),
      receiverSystemPart: received.map(({ processorUs, systemUs }) => systemUs / processorUs),
    };
  };
  return { files, start };
}
