// Whether multicast works on each interface of this host, tried: joins a group there and sends itself
// one datagram. Its time to live is 0, so that nothing leaves the host: what the network does with
// multicast is not seen. Called by `facts.ts`.

import { randomBytes } from 'node:crypto';
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';

export interface InterfaceFacts {
  readonly name: string;
  readonly isLoopback: boolean;
  readonly isUp: boolean;
  /** `ok`, or why not. */
  readonly multicast: string;
}

/** Administratively scoped: routers do not hand it on. */
const GROUP = '239.255.83.70';
const ANSWER_TIMEOUT_MS = 500;
/** Of `include/uapi/linux/if.h`. */
const FLAG = { up: 0x1, loopback: 0x8, multicast: 0x1000 } as const;

export async function readInterfaces(): Promise<InterfaceFacts[]> {
  const addresses = networkInterfaces();
  return await Promise.all(
    interfaceNames().map(async (name) => {
      const flags = readFlags(name);
      const isUp = (flags & FLAG.up) !== 0;
      const address = addresses[name]?.find(({ family }) => family === 'IPv4')?.address;
      let multicast = 'ok';
      if (!isUp) multicast = 'down';
      else if ((flags & FLAG.multicast) === 0) multicast = 'switched off';
      else if (address === undefined) multicast = 'no IPv4 address';
      else multicast = await tryMulticast(address);
      return { name, isLoopback: (flags & FLAG.loopback) !== 0, isUp, multicast };
    }),
  );
}

async function tryMulticast(address: string): Promise<string> {
  const socket = createSocket({ type: 'udp4', reuseAddr: true });
  try {
    socket.bind(0, '0.0.0.0');
    await once(socket, 'listening');
    socket.addMembership(GROUP, address);
    socket.setMulticastInterface(address);
    socket.setMulticastLoopback(true);
    socket.setMulticastTTL(0);
    return (await sendToSelf(socket)) ? 'ok' : 'a datagram to oneself did not come back';
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  } finally {
    socket.close();
  }
}

async function sendToSelf(socket: Socket): Promise<boolean> {
  const word = randomBytes(16);
  const heard = new Promise<boolean>((resolve) => {
    const timer = setTimeout(() => resolve(false), ANSWER_TIMEOUT_MS);
    socket.on('message', (message) => {
      if (!message.equals(word)) return;
      clearTimeout(timer);
      resolve(true);
    });
  });
  await new Promise<void>((resolve, reject) => {
    socket.send(word, socket.address().port, GROUP, (error) => (error ? reject(error) : resolve()));
  });
  return await heard;
}

function interfaceNames(): string[] {
  try {
    return readdirSync('/sys/class/net').sort();
  } catch {
    return [];
  }
}

function readFlags(name: string): number {
  try {
    return Number(readFileSync(`/sys/class/net/${name}/flags`, 'latin1'));
  } catch {
    return 0; // it has gone meanwhile
  }
}
