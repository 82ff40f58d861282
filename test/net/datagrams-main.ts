// A host that sends and counts UDP datagrams, as a process: `node datagrams-main.js PORT GROUP`.
// Does what a test says by the channel to its parent, and ends when that closes.

import dgram from 'node:dgram';

export interface Heard {
  readonly datagrams: number;
  readonly bytes: number;
}

/** Sends, or (without `send`) only tells what it has heard until now. */
export interface DatagramsAsked {
  readonly send?: { readonly to: string; readonly count: number; readonly bytes: number };
}

const [port, group] = [Number(process.argv[2]), process.argv[3]!];
const socket = dgram.createSocket('udp4');
const heard = { datagrams: 0, bytes: 0 };
socket.on('message', (datagram) => {
  heard.datagrams++;
  heard.bytes += datagram.length;
});
socket.bind(port, () => {
  socket.addMembership(group);
  socket.setMulticastLoopback(false);
  socket.setRecvBufferSize(1024 * 1024);
  process.send!(heard);
});
process.on('disconnect', () => process.exit(0));
process.on('message', ({ send }: DatagramsAsked) => void answer(send));

async function answer(send: DatagramsAsked['send']): Promise<void> {
  if (send !== undefined) {
    const datagram = Buffer.alloc(send.bytes, 1);
    for (let sent = 0; sent < send.count; sent++) {
      await new Promise<void>((resolve) => {
        socket.send(datagram, port, send.to, () => resolve());
      });
    }
  }
  process.send!(heard);
}
