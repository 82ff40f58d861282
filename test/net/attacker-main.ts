// A stranger on the network, as a process: `node attacker-main.js ADDRESS GROUP PORT HOST:PORT…`.
// Hears what goes to the group and sends it on to everybody, as it is, spoilt and cut, with bytes of
// its own between, as fast as it can. Says how many datagrams it has sent when its standard input
// ends.

import { randomBytes, randomInt } from 'node:crypto';
import dgram from 'node:dgram';

const OVERHEARD_MAX = 256;
const AT_ONCE = 64;
/** Where a datagram says who sealed it (docs/internals/formats.md). */
const SENDER = { from: 10, to: 16 } as const;

const [address, group, port, ...targets] = process.argv.slice(2) as [
  string,
  string,
  string,
  ...string[],
];
const socket = dgram.createSocket({ type: 'udp4', reuseAddr: true });
const overheard: Buffer[] = [];
let sent = 0;

socket.on('message', (datagram, from) => {
  if (from.address === address) return;
  if (overheard.length < OVERHEARD_MAX) overheard.push(datagram);
  else overheard[randomInt(OVERHEARD_MAX)] = datagram;
});
socket.on('error', () => undefined);
socket.bind(Number(port), () => {
  socket.addMembership(group, address);
  socket.setMulticastInterface(address);
  socket.setSendBufferSize(4 * 1024 * 1024);
  attack();
  process.stdout.write('listening\n');
});
process.stdin.on('end', () => process.exit(0)).resume();
process.on('SIGTERM', () => {
  process.stdout.write(`sent ${sent}\n`, () => process.exit(0));
});

function attack(): void {
  for (let count = 0; count < AT_ONCE; count++) {
    const [host, to] = targets[count % targets.length]!.split(':') as [string, string];
    socket.send(strange(count), Number(to), host, () => undefined);
    sent++;
  }
  setImmediate(attack);
}

function strange(count: number): Buffer {
  const heard = overheard[randomInt(Math.max(overheard.length, 1))] ?? randomBytes(64);
  const spoilt = Buffer.from(heard);
  switch (count % 6) {
    case 0:
      return heard;
    case 1:
      spoilt[randomInt(spoilt.length)]! ^= 1 << randomInt(8);
      return spoilt;
    case 2:
      return spoilt.fill(randomInt(256), Math.min(SENDER.from, spoilt.length));
    case 3:
      return heard.subarray(0, randomInt(heard.length));
    case 4:
      return Buffer.concat([heard, randomBytes(1 + randomInt(40))]);
    default:
      return randomBytes(randomInt(1400));
  }
}
