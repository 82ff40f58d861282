// Waiting for datagrams without going to sleep: what comes is taken once, and nobody waits for ever.

import dgram from 'node:dgram';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { LINGER_MS, linger } from '../../packages/memserver/src/net/linger.js';
import { UdpSocket } from '../../packages/memserver/src/net/udp-socket.js';
import { DATAGRAM, Sealer, snapshotKey } from '../../packages/memserver/src/wire/sealing.js';

const COUNT = 2000;

describe('lingering', () => {
  /** What the third of the askings brings ends it, if its time has not come by then. */
  const lingered = (msPerAsking: number) => {
    let asked = 0;
    const came = linger(
      () => ++asked === 3,
      () => asked * msPerAsking,
    );
    return { came, asked };
  };

  it('ends as soon as something came', () => {
    expect(lingered(LINGER_MS / 10)).toEqual({ came: true, asked: 3 });
  });

  it('ends at its time when nothing does', () => {
    expect(lingered(LINGER_MS / 2)).toEqual({ came: false, asked: 2 });
  });
});

describe('a socket that lingers', () => {
  let socket: UdpSocket | undefined;
  const sender = dgram.createSocket('udp4');
  afterEach(async () => {
    await socket?.close();
    sender.close();
  });

  it('takes each datagram once, and acts on it, also while it may not linger', async () => {
    const sealer = new Sealer(snapshotKey(Buffer.alloc(32, 1)), 1);
    const taken: number[] = [];
    let actedOn = 0;
    socket = await UdpSocket.open({
      ...{ address: '127.0.0.1', port: 0 },
      take: (datagram) => taken.push(datagram.readUIntLE(18, 6)),
      taken: () => {
        actedOn = taken.length;
      },
      mayLinger: () => taken.length % 3 !== 0,
      complain: (message) => expect.unreachable(message),
    });
    const { port } = socket;
    for (let count = 1; count <= COUNT; count++) {
      sender.send(sealer.seal(DATAGRAM.request, Buffer.alloc(8)), port, '127.0.0.1');
      if (count % 20 === 0) await delay(1);
    }
    await vi.waitFor(() => expect(actedOn).toBe(COUNT), { timeout: 10_000 });
    expect(taken).toEqual(Array.from({ length: COUNT }, (_, index) => index + 1));
  });
});
